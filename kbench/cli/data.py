"""What the user types to bring data, cut folds and look at both."""

from __future__ import annotations

from typing import Annotated

import typer

from kbench.cli.app import Assign, Competition, Device, Experiment, Force, Json, Run, choose, command


@command(long=True)
def check(
    competition: Competition = None,
    experiment: Experiment = None,
    assign: Assign = None,
    images: Annotated[bool, typer.Option("--images", help="Decode every image.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Check all YAMLs of the workspace.")] = False,
    json: Json = False,
) -> None:
    """Check YAML, data and folds; every problem at once."""
    from kbench import console
    from kbench.commands.check import check as run_check

    result = run_check(choose(competition, experiment, None, assign), images=images, every=every)
    if json:
        console.show_json(result)
    else:
        plan = result.pop("plan", [])
        console.show_table([result] if not every else [{"checked": name} for name in result["checked"]])
        console.show_table(plan, title="the recipe, with every default")
        console.next_command("kbench train")


@command(long=True)
def new(
    name: Annotated[str, typer.Argument(help="A Kaggle competition's slug or address; with --data any name.")],
    data: Annotated[str | None, typer.Option("--data", help="A folder or zip you already have.")] = None,
    solution: Annotated[str | None, typer.Option("--solution", help="A CSV of true targets, to grade here.")] = None,
    force: Force = False,
) -> None:
    """Draft a competition's YAML from its files."""
    from kbench import console
    from kbench.commands.new import new as draft

    result = draft(name, data=data, solution=solution, force=force)
    console.wrote(result["file"])
    for text in result["todo"]:
        console.warn(text)
    console.next_command(f"edit {result['file']}, then kbench check")


@command(long=True)
def download(
    name: Annotated[str | None, typer.Argument(help="A competition; it becomes the current one.")] = None,
    competition: Competition = None,
    file: Annotated[list[str] | None, typer.Option("--file", help="Only these files; * and ? match.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Fetch a competition's files."""
    from kbench import console
    from kbench.commands.download import download as fetch

    result = fetch(choose(name or competition), only=file or [], force=force)
    if json:
        console.show_json(result)
    else:
        console.result(
            f"{result['files']:,} files, {result['bytes'] / 1e6:,.1f} MB, {result['new']:,} new: {result['folder']}"
        )
        console.next_command("kbench check, then kbench train")


@command(long=True)
def folds(
    competition: Competition = None,
    adopt: Annotated[str | None, typer.Option("--from", help="Adopt a fold file (CSV or JSON).")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Cut the folds, or show them."""
    from kbench import console
    from kbench.commands.folds import folds as cut_folds

    result = cut_folds(choose(competition), adopt=adopt, force=force)
    if json:
        console.show_json(result)
        return
    console.show_table(result["rows"], title=f"{result['strategy']}, hash {result['hash']}")
    for text in result["warnings"]:
        console.warn(text)
    console.next_command("kbench train")


@command(long=True)
def inspect(
    competition: Competition = None,
    experiment: Experiment = None,
    fold: Annotated[int, typer.Option("--fold", help="Whose rates and augmented images are drawn.")] = 0,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Images per sheet of augmentations.")] = 6,
    assign: Assign = None,
    json: Json = False,
) -> None:
    """Look at the data and the recipe before training: balance, sizes, folds, rates, augmented images."""
    from kbench import console
    from kbench.commands.inspect import inspect as look_at

    result = look_at(choose(competition, experiment, None, assign), fold=fold, samples=samples)
    if json:
        console.show_json(result)
        return
    keys = ("stage", "size", "lr", "schedule", "epochs", "updates", "batch", "members")
    console.show_table(result["rows"], title="rows")
    console.show_table(result["missing"], title="missing values")
    console.show_table([{key: stage[key] for key in keys} for stage in result["stages"]], title="stages")
    for text in result["warnings"]:
        console.warn(text)
    for file in [*result["files"], result["page"]]:
        console.wrote(file)
    console.next_command("kbench lr-find, then kbench train")


@command(long=True)
def report(
    competition: Competition = None,
    experiment: Experiment = None,
    run: Run = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Images per class of a sheet.")] = 4,
    by_class: Annotated[
        bool | None, typer.Option("--by-class/--overall", help="Sheets by class, or not; default: up to 20 classes.")
    ] = None,
    slice_: Annotated[list[str] | None, typer.Option("--slice", help="A metadata column; default: all.")] = None,
    views: Annotated[
        bool, typer.Option("--views", help="Also predict with the plain view alone, to see what the others add.")
    ] = False,
    solution: Annotated[
        bool, typer.Option("--solution", help="Also grade folds one by one on the local solution.")
    ] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw what a run learned and where it errs; one page with everything."""
    from kbench import console
    from kbench.commands.report import report as write_report
    from kbench.report.subject import ReportOptions

    options = ReportOptions(
        k=k, by_class=by_class, slices=tuple(slice_ or ()), views=views, solution=solution, device=device
    )
    result = write_report(choose(competition, experiment, run), options)
    if json:
        console.show_json(result)
        return
    console.show_table(result.get("growth", []), title=f"{result['run']}: {result['score']['metric']}, out of fold")
    console.show_table(result.get("adds", []), title="what each member adds (larger is better)")
    console.show_table(result.get("views", []), title="step by step (larger is better)")
    console.show_table(result.get("test", []), title="graded on the local solution")
    console.wrote(result["page"])
    console.next_command("kbench ensemble")


@command("pseudo-label", long=True)
def pseudo_label(
    run: Annotated[str, typer.Argument(help="The run whose snapshots label the test set.")],
    competition: Competition = None,
    threshold: Annotated[float, typer.Option("--threshold", help="Probability from which on it is sure.")] = 0.9,
    least: Annotated[float, typer.Option("--least", help="Share of pixels or labels that must be sure.")] = 0.5,
    most: Annotated[int | None, typer.Option("--most", help="Rows at most, of single labels per class.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the labels.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Label the test rows a run is sure of, fold by fold, to train with."""
    from kbench import console
    from kbench.commands.pseudo_label import pseudo_label as label_rows
    from kbench.ensemble.pseudo_labels import Sure

    result = label_rows(choose(competition, None, run), sure=Sure(threshold, least, most), name=name, device=device)
    if json:
        console.show_json(result)
        return
    console.show_table(result["rows"])
    console.wrote(result["file"])
    console.next_command(f"`pseudo: {result['labels']}` in an experiment's YAML, then kbench train -e NAME")
