"""What the user types to enter a code competition: a bundle of runs, and the notebook that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kbench.cli.app import Competition, Device, Experiment, Json, choose, command


@command()
def export(
    runs: Annotated[list[str] | None, typer.Argument(help="Runs; default: the current experiment's.")] = None,
    competition: Competition = None,
    experiment: Experiment = None,
    out: Annotated[str, typer.Option("--out", help="The bundle's folder.")] = "bundle",
    hours: Annotated[float, typer.Option("--hours", help="How long the notebook may run.")] = 9.0,
    fp16: Annotated[bool, typer.Option("--fp16", help="Store weights as float16: half the size.")] = False,
    engine: Annotated[str, typer.Option("--engine", help="torch, openvino or onnx.")] = "torch",
    wheels: Annotated[str | None, typer.Option("--wheels", help="Folder of wheels that the notebook lacks.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Send models trained on all rows.")] = False,
    mixed_folds: Annotated[
        bool, typer.Option("--mixed-folds", help="Let runs on other folds join a plain mean.")
    ] = False,
    weight: Annotated[list[float] | None, typer.Option("--weight", help="One per run.")] = None,
    combine: Annotated[
        str | None, typer.Option("--combine", help="mean, greedy, weights or rank; default: the YAML's.")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Leave out members whose gain is inside the noise.")] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Write an ensemble as a bundle that predicts without data, folds or network."""
    from kbench import console
    from kbench.commands.export import ExportOptions
    from kbench.commands.export import export as run_export
    from kbench.runs.blend import EnsembleOptions

    chosen = EnsembleOptions(
        full=full, mixed_folds=mixed_folds, device=device, weights=tuple(weight) if weight else None, combine=combine,
        prune=prune,
    )  # fmt: skip
    how = ExportOptions(Path(out), hours, fp16, engine, None if wheels is None else Path(wheels))
    written = run_export(choose(competition, experiment), runs or [], chosen, how)
    if json:
        console.show_json(written)
        return
    console.wrote(written["bundle"])
    each = written["seconds_per_image"]
    console.result(
        f"{written['members']} models, {written['bytes'] / 1e6:.1f} MB"
        + (f", {each:.4f} s an image on this machine" if each else "")
    )
    if written["check"] is not None:
        console.show_table([written["check"]], title="the same rows, not trained on, by the runs and by the bundle")
    console.next_command(f"kbench infer {out} --data DIR --out submission.csv --work work; then kbench push {out}")


@command()
def infer(
    bundle: Annotated[str, typer.Argument(help="A folder that `kbench export` wrote.")],
    data: Annotated[str, typer.Option("--data", help="The data folder, with the test set to predict.")],
    out: Annotated[str | None, typer.Option("--out", help="The submission's file.")] = None,
    work: Annotated[str, typer.Option("--work", help="Where partial results go.")] = "kbench-work",
    hours: Annotated[float | None, typer.Option("--hours", help="Time limit; default: the bundle's.")] = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Predict a test set with a bundle, within its time; go on where it was killed."""
    from kbench import console
    from kbench.commands.infer import infer as run_infer

    written = run_infer(
        Path(bundle), data=Path(data), out=None if out is None else Path(out), work=Path(work), hours=hours,
        device=device,
    )  # fmt: skip
    if json:
        console.show_json(written)
        return
    console.result(f"{written['rows']:,} rows, {written['members']} models, {written['seconds']:.0f} s")
    console.wrote(written["file"])


@command()
def push(
    bundle: Annotated[str, typer.Argument(help="A folder that `kbench export` wrote.")] = "bundle",
    competition: Competition = None,
    accelerator: Annotated[
        str | None, typer.Option("--accelerator", help="Machine shape, such as NvidiaTeslaT4; default: the CPU alone.")
    ] = None,
    image: Annotated[
        str | None, typer.Option("--docker-image", help="Kaggle's image with its digest; default: the first version's.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every request and send none.")] = False,
    json: Json = False,
) -> None:
    """Upload a bundle to Kaggle, run its notebook on the public test set, and see what it wrote."""
    from kbench import console
    from kbench.commands.push import PushOptions
    from kbench.commands.push import push as run_push

    done = run_push(choose(competition), Path(bundle), PushOptions(accelerator, image, dry_run))
    if json or dry_run:
        console.show_json(done)
        return
    console.result(
        f"{done['notebook']} version {done['version']}: what it wrote is within {done['difference']:.2g} of what this "
        "machine writes"
    )
    console.wrote(done["file"])
    console.next_command(f"kbench submit --kernel{f' -c {competition}' if competition else ''}")
