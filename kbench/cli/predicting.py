"""What the user types to score, predict and join runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from kbench.cli.app import Competition, Device, Experiment, Force, Json, Run, choose, command, refuse_together


@command(long=True)
def score(
    competition: Competition = None,
    experiment: Experiment = None,
    run: Run = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Score the rows a run did not train on: per fold, overall, with an interval."""
    from kbench import console
    from kbench.commands.score import score as run_score

    result = run_score(choose(competition, experiment, run), device=device)
    if json:
        console.show_json(result)
        return
    rows = result.get("table") or [{"fold": fold, "mean": value} for fold, value in result["folds"].items()]
    if "cv_mean" in result and len(rows) > 1:
        rows = [*rows, {"fold": "mean", "rows": None, **result["cv_mean"]}]
    console.show_table(rows, title=f"{result['run']}: {result['metric']}, {result['members']} members")
    console.show_score(result, f"over {result['rows']:,} rows, spread of folds {console.score_text(result['spread'])}")
    for text in result["doubts"]:
        console.warn(text)
    console.next_command("kbench ensemble")


@command(long=True)
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
    from kbench.commands.ensemble import ensemble as run_ensemble
    from kbench.runs.blend import EnsembleOptions

    chosen = EnsembleOptions(
        full=full, require_all=require_all, mixed_folds=mixed_folds, name=name, device=device,
        weights=tuple(weight) if weight else None, combine=combine, prune=prune,
    )  # fmt: skip
    result = run_ensemble(choose(competition, experiment), runs or [], chosen)
    if json:
        console.show_json(result)
        return
    console.show_table(result["gains"], title="what each member adds (larger is better; an interval around 0: chance)")
    console.wrote(result["file"])
    if result["score"] is not None:
        console.show_score(result, f"out of fold, {result['members']} members")
    for text in result["doubts"]:
        console.warn(text)
    for text in result["notes"]:
        console.note(text)
    console.next_command("kbench submit")


@command(long=True)
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
    from kbench.commands.predict import predict_rows

    refuse_together({"--image": image or images, "--data": data})
    refuse_together({"--image": image or images, "--out": out})
    if image or images:
        _show_images([*(image or ()), *(images or ())], choose(competition, experiment, run), device, json)
        return
    result = predict_rows(choose(competition, experiment, run), data=data, out=out, device=device, force=force)
    if json:
        console.show_json(result)
        return
    console.result(f"{result['rows']:,} rows, {result['members']} members")
    if result["file"]:
        console.wrote(result["file"])
    else:
        console.next_command("kbench ensemble")


def _show_images(files: list[str], choice: Any, device: str, json: bool) -> None:
    from kbench import console
    from kbench.commands.predict import predict_files

    result = predict_files(choice, files, device=device)
    if json:
        console.show_json({key: result[key] for key in ("run", "task", "rows")})
    else:
        console.show_table(result["words"])


@command("import", long=True)
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
    from kbench.commands.import_run import import_run

    result = import_run(choose(competition), name, oof=oof, test=test, force=force)
    if json:
        console.show_json(result)
        return
    console.result(
        f"{result['run']}: {result['metric']} {result['score']:.5f} [{result['low']:.5f}, {result['high']:.5f}]"
    )
    console.next_command(f"kbench ensemble baseline-s0 {result['run']}")


@command(long=True)
def compare(
    runs: Annotated[list[str], typer.Argument(help="Two runs or more; the others are held against the first.")],
    competition: Competition = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Say whether runs are better than the first: differences, intervals, verdicts."""
    from kbench import console
    from kbench.commands.compare import compare as run_compare

    compared = run_compare(choose(competition), runs, device=device)
    if json:
        console.show_json(compared)
        return
    columns = ("run", "score", "difference", "low", "high", "verdict", "folds")
    title = f"{compared['metric']}, against {compared['base']}; {compared['level']:.0%} intervals, Holm over all"
    console.show_table([{key: row.get(key) for key in columns} for row in compared["rows"]], title=title)
    console.show_table([{"setting": key, **values} for key, values in compared["differs"].items()])
    if any(row.get("folds") == 1 for row in compared["rows"]):
        console.note("on one fold only images speak: what another seed would change is not known")
    console.next_command("kbench ensemble RUN")
