"""What the user types to train: folds, learning rates, grids of settings."""

from __future__ import annotations

from typing import Annotated

import typer

from kbench.cli.app import (
    Assign,
    Cluster,
    Competition,
    Device,
    Devices,
    Experiment,
    Force,
    Jobs,
    Json,
    Run,
    Threads,
    TimeLimit,
    choose,
    command,
    next_of,
    refuse_together,
)


@command(long=True)
def train(
    competition: Competition = None,
    experiment: Experiment = None,
    run: Run = None,
    fold: Annotated[
        str | None, typer.Option("--fold", help="Folds: 0 or 0,1 or all; default: unfinished ones.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train on all rows with the plan found on the folds.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Two batches of every stage, through to a checked file.")
    ] = False,
    jobs: Jobs = 1,
    cluster: Cluster = None,
    threads: Threads = None,
    time_limit: TimeLimit = None,
    device: Device = "auto",
    devices: Devices = 1,
    assign: Assign = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train folds: those that are not trained yet."""
    from kbench import console
    from kbench.commands import smoke as smoke_command
    from kbench.commands.train import train as run_training
    from kbench.runs.experiment import open_experiment
    from kbench.runs.fold_job import TrainOptions
    from kbench.training.deadline import Stopped
    from kbench.training.deadline import time_limit as limited

    choice = choose(competition, experiment, run, assign)
    refuse_together({"--full": full, "--fold": fold is not None})
    refuse_together({"--cluster": cluster, "--jobs": jobs > 1})
    refuse_together({"--smoke": smoke, "--fold, --full, --jobs or --force": fold or full or jobs > 1 or force})
    if smoke:
        result = smoke_command.smoke(choice, device=device, devices=devices)
    else:
        with limited(time_limit) as ends:
            options = TrainOptions(
                force=force,
                jobs=jobs,
                device=device,
                threads=threads,
                cluster=cluster or None,
                deadline=ends,
                devices=devices,
            )
            result = run_training(open_experiment(choice), "full" if full else fold, options)
    if json:
        console.show_json(result)
    elif smoke:
        stages, rows = len(result["stages"]), result["rows"]
        console.result(f"every step works: {stages} stages, {rows} rows checked in {result['file']}")
        console.next_command("kbench train")
    else:
        console.next_command(next_of(result["run"], choice, full=full))
    if result.get("failed"):
        console.warn(f"folds {', '.join(map(str, result['failed']))} failed")
    if result.get("stopped"):
        console.note(f"folds {', '.join(map(str, result['stopped']))} stopped in time; the same command goes on")
        raise typer.Exit(Stopped.exit_code)
    if result.get("failed"):
        raise typer.Exit(4)


@command("lr-find", long=True)
def lr_find(
    competition: Competition = None,
    experiment: Experiment = None,
    fold: Annotated[int, typer.Option("--fold", help="Whose training rows.")] = 0,
    stage: Annotated[str | None, typer.Option("--stage", help="Which stage; default: the first.")] = None,
    device: Device = "auto",
    assign: Assign = None,
    json: Json = False,
) -> None:
    """Run the learning-rate range test of a stage and draw its curve."""
    from kbench import console
    from kbench.commands.lr_find import lr_find as run_lr_find

    result = run_lr_find(choose(competition, experiment, None, assign), fold=fold, stage=stage, device=device)
    if json:
        console.show_json(result)
        return
    console.result(f"stage {result['stage']}: suggested learning rate {result['suggestion']:.3g}")
    console.wrote(result["csv"])
    console.wrote(result["picture"])
    console.next_command("kbench train")


@command(long=True)
def sweep(
    grid: Annotated[list[str], typer.Argument(help="PATH=VALUE,VALUE,... each a dimension of the grid.")],
    competition: Competition = None,
    experiment: Experiment = None,
    fold: Annotated[str, typer.Option("--fold", help="Folds: 0 or 0,1 or all.")] = "0",
    jobs: Jobs = 1,
    cluster: Cluster = None,
    threads: Threads = None,
    time_limit: TimeLimit = None,
    device: Device = "auto",
    devices: Devices = 1,
    assign: Assign = None,
    json: Json = False,
) -> None:
    """Train every combination of values on the same folds; one table with intervals."""
    from kbench import console
    from kbench.commands.sweep import sweep as run_sweep
    from kbench.runs.fold_job import TrainOptions
    from kbench.training.deadline import time_limit as limited

    choice = choose(competition, experiment, None, assign)
    with limited(time_limit) as ends:
        options = TrainOptions(
            jobs=jobs, device=device, threads=threads, cluster=cluster or None, deadline=ends, devices=devices
        )
        result = run_sweep(choice, grid, fold, options)
    if json:
        console.show_json(result)
    else:
        title = f"{result['metric']}; gain is the difference to the first combination"
        nested = "; nested: what was found on other rows" if any("optimism" in row for row in result["rows"]) else ""
        console.show_table(result["rows"], title=title + nested)
        console.next_command("kbench ensemble RUN, or write the best as an experiment")
    if result["failed"]:
        console.warn(f"failed: {'; '.join(result['failed'])}")
        raise typer.Exit(4)


@command()
def status(
    competition: Competition = None,
    experiment: Experiment = None,
    run: Run = None,
    json: Json = False,
) -> None:
    """Show which folds are trained, running, failed or left, and whose they are."""
    from kbench import console
    from kbench.commands.status import status as run_status

    shown = run_status(choose(competition, experiment, run))
    if json:
        console.show_json(shown)
        return
    columns = ("fold", "state", "stage", "epoch", "epochs", "score", "worker")
    console.show_table([{key: row[key] for key in columns} for row in shown["folds"]], title=shown["run"])
    if shown["left"] or shown["failed"]:
        console.next_command("kbench train")
