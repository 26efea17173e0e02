"""What the user types to do the job. Each command imports its module inside the function, so `--help` stays quick."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kbench import cli_data
from kbench.cli_base import (
    Assign,
    Competition,
    Device,
    Experiment,
    Force,
    Jobs,
    Json,
    Run,
    app,
    choose,
    command,
    main,
    next_of,
    refuse_together,
    script,
)

__all__ = ["app", "cli_data", "main", "script"]


@command()
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
    device: Device = "auto",
    assign: Assign = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Train folds: those that are not trained yet."""
    from kbench import console
    from kbench.commands import smoke as smoke_command
    from kbench.commands.fold_job import TrainOptions
    from kbench.commands.setup import open_setup
    from kbench.commands.train import train as run_training

    choice = choose(competition, experiment, run, assign)
    refuse_together({"--full": full, "--fold": fold is not None})
    refuse_together({"--smoke": smoke, "--fold, --full, --jobs or --force": fold or full or jobs > 1 or force})
    if smoke:
        found = smoke_command.smoke(choice, device=device)
    else:
        options = TrainOptions(force=force, jobs=jobs, device=device)
        found = run_training(open_setup(choice), "full" if full else fold, options)
    if json:
        console.show_json(found)
    elif smoke:
        stages, rows = len(found["stages"]), found["rows"]
        console.result(f"every step works: {stages} stages, {rows} rows checked in {found['file']}")
        console.next_command("kbench train")
    else:
        console.next_command(next_of(found["run"], choice, full=full))
    if found.get("failed"):
        console.warn(f"folds {', '.join(map(str, found['failed']))} failed")
        raise typer.Exit(4)


@command()
def score(
    competition: Competition = None,
    experiment: Experiment = None,
    run: Run = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score the rows a run did not train on: per fold, overall, with an interval."""
    from kbench import console
    from kbench.commands.rules import score_run
    from kbench.commands.runs import open_run_setup

    setup, paths, identity = open_run_setup(choose(competition, experiment, run))
    found = score_run(setup, paths, identity, device=device)
    if json:
        console.show_json(found)
        return
    rows = found.get("table") or [{"fold": fold, "mean": value} for fold, value in found["folds"].items()]
    if "cv_mean" in found and len(rows) > 1:
        rows = [*rows, {"fold": "mean", "rows": None, **found["cv_mean"]}]
    console.show_table(rows, title=f"{found['run']}: {found['metric']}, {found['members']} members")
    console.show_score(found, f"over {found['rows']:,} rows, spread of folds {found['spread']:.5f}")
    console.next_command("kbench ensemble")


@command()
def ensemble(
    runs: Annotated[list[str] | None, typer.Argument(help="Runs; default: the current experiment's.")] = None,
    competition: Competition = None,
    experiment: Experiment = None,
    full: Annotated[bool, typer.Option("--full", help="Send models trained on all rows.")] = False,
    require_all: Annotated[bool, typer.Option("--require-all", help="Untrained folds are an error.")] = False,
    mixed_folds: Annotated[
        bool, typer.Option("--mixed-folds", help="Let runs on other folds join a plain mean.")
    ] = False,
    weight: Annotated[list[float] | None, typer.Option("--weight", help="One per run.")] = None,
    combine: Annotated[
        str | None, typer.Option("--combine", help="mean, greedy, weights or rank; default: the YAML's.")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Leave out members whose gain is inside the noise.")] = False,
    name: Annotated[str | None, typer.Option("--name", help="Name of the submission.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Average folds, snapshots and views into a checked submission."""
    from kbench import console
    from kbench.commands.ensemble import EnsembleOptions
    from kbench.commands.ensemble import ensemble as run_ensemble

    chosen = EnsembleOptions(
        full=full, require_all=require_all, mixed_folds=mixed_folds, name=name, device=device,
        weights=tuple(weight) if weight else None, combine=combine, prune=prune,
    )  # fmt: skip
    found = run_ensemble(choose(competition, experiment), runs or [], chosen)
    if json:
        console.show_json(found)
        return
    console.show_table(found["gains"], title="what each member adds (larger is better; an interval around 0: chance)")
    console.wrote(found["file"])
    if found["score"] is not None:
        console.show_score(found, f"out of fold, {found['members']} members")
    for text in found["notes"]:
        console.note(text)
    console.next_command("kbench submit")


@command()
def submit(
    file: Annotated[str | None, typer.Argument(help="A submission; default: the newest unsent one.")] = None,
    competition: Competition = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the score.")] = True,
    wait_s: Annotated[float, typer.Option("--wait-seconds", help="How long at most.")] = 900.0,
    resend: Annotated[
        bool, typer.Option("--resend", help="Its outcome is unknown, and Kaggle's page does not list it: send again.")
    ] = False,
    json: Json = False,
) -> None:
    """Check a submission and send it, or grade it here."""
    from kbench import console
    from kbench.commands.submit import submit as run_submit

    found = run_submit(choose(competition), file, wait=wait, wait_s=wait_s, resend=resend)
    if json:
        console.show_json(found)
        return
    shown = {key: found[key] for key in ("status", "metric", "cv", "low", "high", "public", "private", "gap")}
    console.show_table([shown], title=found["file"])
    if found.get("left") is not None:
        console.note(f"submissions left today: {found['left']}")
    console.next_command("kbench leaderboard")


@command()
def leaderboard(
    competition: Competition = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    json: Json = False,
) -> None:
    """Show every submission: run, CV, public, private, gap."""
    from kbench import console
    from kbench.commands.submit import leaderboard as read_leaderboard

    found = read_leaderboard(choose(competition))
    if json:
        console.show_json(found)
    elif csv:
        console.show_csv(found["rows"])
    else:
        keys = ("name", "run", "members", "metric", "cv", "public", "private", "gap", "status")
        console.show_table([{key: row[key] for key in keys} for row in found["rows"]])
        if not found["rows"]:
            console.note("no submission yet")
            console.next_command("kbench ensemble")
        if found["rank_correlation"] is not None:
            console.result(f"rank correlation of CV and public score: {found['rank_correlation']:.2f}")


@command()
def predict(
    images: Annotated[list[str] | None, typer.Argument(help="More images, after --image.")] = None,
    competition: Competition = None,
    experiment: Experiment = None,
    run: Run = None,
    data: Annotated[str | None, typer.Option("--data", help="A folder laid out like the competition's.")] = None,
    image: Annotated[list[str] | None, typer.Option("--image", help="Image files to predict instead.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="The submission's file, with --data.")] = None,
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Predict the test set, the unseen rows of another folder, or single images."""
    from kbench import console
    from kbench.commands.predicting import predict_rows

    if image or images:
        _show_images([*(image or ()), *(images or ())], choose(competition, experiment, run), device, json)
        return
    found = predict_rows(choose(competition, experiment, run), data=data, out=out, device=device, force=force)
    if json:
        console.show_json(found)
        return
    console.result(f"{found['rows']:,} rows, {found['members']} members")
    if found["file"]:
        console.wrote(found["file"])
    else:
        console.next_command("kbench ensemble")


def _show_images(files: list[str], choice: Any, device: str, json: bool) -> None:
    from kbench import console
    from kbench.commands.single import predict_files

    found = predict_files(choice, files, device=device)
    if json:
        console.show_json({key: found[key] for key in ("run", "task", "rows")})
    else:
        console.show_table(found["words"])


@command("lr-find")
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

    found = run_lr_find(choose(competition, experiment, None, assign), fold=fold, stage=stage, device=device)
    if json:
        console.show_json(found)
        return
    console.result(f"stage {found['stage']}: suggested learning rate {found['suggestion']:.3g}")
    console.wrote(found["csv"])
    console.wrote(found["picture"])
    console.next_command("kbench train")


@command()
def sweep(
    grid: Annotated[list[str], typer.Argument(help="PATH=VALUE,VALUE,... each a dimension of the grid.")],
    competition: Competition = None,
    experiment: Experiment = None,
    fold: Annotated[str, typer.Option("--fold", help="Folds: 0 or 0,1 or all.")] = "0",
    jobs: Jobs = 1,
    device: Device = "auto",
    assign: Assign = None,
    json: Json = False,
) -> None:
    """Train every combination of values on the same folds; one table with intervals."""
    from kbench import console
    from kbench.commands.fold_job import TrainOptions
    from kbench.commands.sweep import sweep as run_sweep

    choice = choose(competition, experiment, None, assign)
    found = run_sweep(choice, grid, fold, TrainOptions(jobs=jobs, device=device))
    if json:
        console.show_json(found)
    else:
        console.show_table(found["rows"], title=f"{found['metric']}; gain is the difference to the first combination")
        console.next_command("kbench ensemble RUN, or write the best as an experiment")
    if found["failed"]:
        console.warn(f"failed: {'; '.join(found['failed'])}")
        raise typer.Exit(4)


@command("import")
def import_(
    name: Annotated[str, typer.Argument(help="Name of the new run.")],
    oof: Annotated[str, typer.Option("--oof", help="CSV of out-of-fold predictions.")],
    test: Annotated[str, typer.Option("--test", help="CSV of test predictions.")],
    competition: Competition = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Make a run of another team's predictions."""
    from kbench import console
    from kbench.commands.foreign import import_run

    found = import_run(choose(competition), name, oof=oof, test=test, force=force)
    if json:
        console.show_json(found)
        return
    console.result(f"{found['run']}: {found['metric']} {found['score']:.5f} [{found['low']:.5f}, {found['high']:.5f}]")
    console.next_command(f"kbench ensemble baseline-s0 {found['run']}")


@command()
def run(
    competition: Competition = None,
    experiment: Experiment = None,
    jobs: Jobs = 1,
    send: Annotated[bool, typer.Option("--submit", help="Send the submission to the service, too.")] = False,
    device: Device = "auto",
    assign: Assign = None,
    name: Run = None,
    json: Json = False,
) -> None:
    """Do every step in order, skipping what is done; send only if asked."""
    from kbench import console
    from kbench.commands.fold_job import TrainOptions
    from kbench.commands.pipeline import run as run_all

    found = run_all(choose(competition, experiment, name, assign), TrainOptions(jobs=jobs, device=device), send=send)
    if json:
        console.show_json(found)
        return
    console.wrote(found["file"])
    console.next_command("kbench leaderboard" if "submitted" in found else "kbench submit")


@command()
def demo(
    folder: Annotated[str, typer.Argument(help="Where, if there is no workspace here.")] = "kbench-demo",
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Folds at once.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Do the whole job on the embedded digits."""
    from kbench import console
    from kbench.commands.pipeline import demo as run_demo

    found = run_demo(folder=folder, jobs=jobs, device=device)
    if json:
        console.show_json(found)
    else:
        console.next_command("kbench leaderboard; then kbench new NAME --data FOLDER for your own competition")
