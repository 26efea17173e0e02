"""What the user types to send submissions, and to do the whole job at once."""

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
    Jobs,
    Json,
    Run,
    TimeLimit,
    choose,
    command,
    refuse_together,
)


@command(long=True)
def submit(
    file: Annotated[str | None, typer.Argument(help="A submission; default: the newest unsent one.")] = None,
    own: Annotated[
        str | None, typer.Option("--file", help="A file of your own: checked, kept, and sent without a CV score.")
    ] = None,
    competition: Competition = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the score.")] = True,
    wait_s: Annotated[
        float | None, typer.Option("--wait-seconds", help="How long at most; default: 900, of a notebook 12 h.")
    ] = None,
    kernel: Annotated[bool, typer.Option("--kernel", help="The notebook that `kbench push` ran last.")] = False,
    resend: Annotated[
        bool, typer.Option("--resend", help="Its outcome is unknown, and Kaggle's page does not list it: send again.")
    ] = False,
    json: Json = False,
) -> None:
    """Check a submission and send it, or grade it here."""
    from kbench import console
    from kbench.commands.submit import submit as run_submit

    refuse_together({"a submission": file, "--file": own, "--kernel": kernel})
    result = run_submit(choose(competition), file, own=own, kernel=kernel, wait=wait, wait_s=wait_s, resend=resend)
    if json:
        console.show_json(result)
        return
    shown = {key: result[key] for key in ("status", "metric", "cv", "low", "high", "public", "private", "gap")}
    console.show_table([shown], title=result["file"])
    if result.get("left") is not None:
        console.note(f"submissions left today: {result['left']}")
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

    result = read_leaderboard(choose(competition))
    if json:
        console.show_json(result)
    elif csv:
        console.show_csv(result["rows"])
    else:
        keys = ("name", "run", "members", "metric", "cv", "public", "private", "gap", "status")
        console.show_table([{key: row[key] for key in keys} for row in result["rows"]])
        if not result["rows"]:
            console.note("no submission yet")
            console.next_command("kbench ensemble")
        if result["rank_correlation"] is not None:
            console.result(f"rank correlation of CV and public score: {result['rank_correlation']:.2f}")


@command(long=True)
def run(
    competition: Competition = None,
    experiment: Experiment = None,
    jobs: Jobs = 1,
    cluster: Cluster = None,
    time_limit: TimeLimit = None,
    send: Annotated[bool, typer.Option("--submit", help="Send the submission to the service, too.")] = False,
    device: Device = "auto",
    devices: Devices = 1,
    assign: Assign = None,
    name: Run = None,
    json: Json = False,
) -> None:
    """Do every step in order, skipping what is done; send only if asked."""
    from kbench import console
    from kbench.commands.run import run as run_all
    from kbench.runs.fold_job import TrainOptions
    from kbench.training.deadline import time_limit as limited

    with limited(time_limit) as ends:
        options = TrainOptions(jobs=jobs, device=device, cluster=cluster or None, deadline=ends, devices=devices)
        result = run_all(choose(competition, experiment, name, assign), options, send=send)
    if json:
        console.show_json(result)
        return
    console.wrote(result["file"])
    console.next_command("kbench leaderboard" if "submitted" in result else "kbench submit")


@command(long=True)
def demo(
    folder: Annotated[str, typer.Argument(help="Where, if there is no workspace here.")] = "kbench-demo",
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Folds at once.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Do the whole job on the embedded digits."""
    from kbench import console
    from kbench.commands.demo import demo as run_demo

    result = run_demo(folder=folder, jobs=jobs, device=device)
    if json:
        console.show_json(result)
    else:
        console.next_command("kbench leaderboard; then kbench new NAME --data FOLDER for your own competition")
