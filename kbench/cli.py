"""What the user types. Each command imports its module inside the function, so that `--help` stays quick."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from kbench.errors import KbenchError

app = typer.Typer(
    name="kbench",
    help="The workbench for image competitions: download, folds, train, ensemble, submit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Competition = Annotated[str | None, typer.Option("-c", "--competition", help="Competition; default: the chosen one.")]
Experiment = Annotated[str | None, typer.Option("-e", "--experiment", help="Experiment; default: the baseline.")]
Run = Annotated[str | None, typer.Option("--run", help="Run; default: <experiment>-s<seed>.")]
Assign = Annotated[list[str] | None, typer.Option("--set", help="PATH=VALUE: one value of the YAML, for this run.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Do again what is done.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
_Command = TypeVar("_Command", bound=Callable[..., None])
_debug = False


def _show_version(asked: bool) -> None:
    if asked:
        from kbench import __version__, console

        console.result(f"kbench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Set what holds for every command."""
    global _debug
    _debug = debug or bool(os.environ.get("KBENCH_DEBUG"))


def main() -> None:
    """Run the command line; turn every error into a message and an exit code."""
    try:
        app()
    except KbenchError as error:
        _fail(error)
    except KeyboardInterrupt:
        from kbench import console

        console.note("stopped; the same command goes on from the last resume point")
        sys.exit(130)


def _fail(error: KbenchError) -> None:
    if _debug:
        raise error
    from kbench import console

    console.show_error(error)
    sys.exit(error.exit_code)


def command(name: str | None = None) -> Callable[[_Command], _Command]:
    """Register a command whose interruptions and defects end in a message."""

    def add(function: _Command) -> _Command:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except KeyboardInterrupt:
                from kbench import console

                console.note(f"stopped; `{' '.join(['kbench', *sys.argv[1:]])}` goes on from the last resume point")
                sys.exit(130)
            except (KbenchError, typer.Exit):
                raise
            except BrokenPipeError:  # `kbench list | head`: nobody reads on
                os._exit(1)  # without the flush that would complain again
            except Exception as error:
                if _debug:
                    raise
                raise KbenchError(
                    f"a defect of kbench: {type(error).__name__}: {error}",
                    "no such error; your files are as they were before the command",
                    "`kbench --debug` before the same command shows where; please report it",
                ) from error

        app.command(name)(guarded)
        return function

    return add


def _choice(competition: str | None, experiment: str | None = None, run: str | None = None, assign: Any = None) -> Any:
    from kbench.commands.choice import Choice

    return Choice(competition, experiment, run, tuple(assign or ()))


@command()
def init(folder: Annotated[str, typer.Argument(help="The new workspace.")] = ".") -> None:
    """Make a folder a workspace."""
    from kbench import console
    from kbench.commands import workspace

    console.wrote(workspace.init(folder))
    console.next_command("kbench demo, or kbench new NAME --data FOLDER")


@command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="A kind of part, such as loss or metric.")] = None,
    competition: Competition = None,
    json: Json = False,
) -> None:
    """List competitions and runs, or the names of a kind of part."""
    from kbench import console
    from kbench.commands import workspace

    found = workspace.listing(kind, _choice(competition))
    if json:
        console.show_json(found)
        return
    console.show_table(found["rows"])
    if kind is None:
        console.note(f"kinds of parts: {', '.join(found['kinds'])}")


@command()
def use(name: Annotated[str, typer.Argument(help="A competition.")]) -> None:
    """Choose the current competition."""
    from kbench import console
    from kbench.commands import workspace

    workspace.use(name)
    console.next_command("kbench download, then kbench train")


@command()
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

    found = run_check(_choice(competition, experiment, None, assign), images=images, every=every)
    if json:
        console.show_json(found)
    else:
        console.show_table([found] if not every else [{"checked": name} for name in found["checked"]])
        console.next_command("kbench train")


@command()
def download(
    name: Annotated[str | None, typer.Argument(help="A competition; it becomes the current one.")] = None,
    competition: Competition = None,
    file: Annotated[list[str] | None, typer.Option("--file", help="Only these files; * and ? match.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Fetch a competition's files."""
    from kbench import console
    from kbench.commands import data

    found = data.download(_choice(name or competition), only=file or [], force=force)
    if json:
        console.show_json(found)
    else:
        console.result(
            f"{found['files']:,} files, {found['bytes'] / 1e6:,.1f} MB, {found['new']:,} new: {found['folder']}"
        )
        console.next_command("kbench check, then kbench train")


@command()
def folds(
    competition: Competition = None,
    adopt: Annotated[str | None, typer.Option("--from", help="Adopt a fold file (CSV or JSON).")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Cut the folds, or show them."""
    from kbench import console
    from kbench.commands import data

    found = data.folds(_choice(competition), adopt=adopt, force=force)
    if json:
        console.show_json(found)
        return
    console.show_table(found["rows"], title=f"{found['strategy']}, hash {found['hash']}")
    for text in found["warnings"]:
        console.warn(text)
    console.next_command("kbench train")


@command()
def train(
    competition: Competition = None,
    experiment: Experiment = None,
    run: Run = None,
    fold: Annotated[
        str | None, typer.Option("--fold", help="A fold's number, or all; default: unfinished ones.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Train on all rows with the plan found on the folds.")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Two batches of every stage, through to a checked file.")
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Folds at once.")] = 1,
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

    choice = _choice(competition, experiment, run, assign)
    if smoke:
        found = smoke_command.smoke(choice, device=device)
    else:
        options = TrainOptions(force=force, jobs=jobs, device=device)
        found = run_training(open_setup(choice), "full" if full else fold, options)
    if json:
        console.show_json(found)
    else:
        console.next_command("kbench ensemble && kbench submit" if not smoke else "kbench train")
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
    from kbench.commands.runs import open_run_setup
    from kbench.commands.score import out_of_fold

    setup, paths, identity = open_run_setup(_choice(competition, experiment, run))
    found = out_of_fold(setup, paths, identity, device=device).score
    if json:
        console.show_json(found)
        return
    console.show_table(
        [{"fold": fold, found["metric"]: value} for fold, value in found["folds"].items()],
        title=f"{found['run']}: {found['members']} members",
    )
    console.result(
        f"{found['metric']} {found['score']:.5f} [{found['low']:.5f}, {found['high']:.5f}] over {found['rows']:,} "
        f"rows, spread of folds {found['spread']:.5f}"
    )
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
        weights=tuple(weight) if weight else None,
    )  # fmt: skip
    found = run_ensemble(_choice(competition, experiment), runs or [], chosen)
    if json:
        console.show_json(found)
        return
    console.wrote(found["file"])
    if found["score"] is not None:
        console.result(
            f"{found['members']} members, out of fold {found['metric']} {found['score']:.5f} "
            f"[{found['low']:.5f}, {found['high']:.5f}]"
        )
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

    found = run_submit(_choice(competition), file, wait=wait, wait_s=wait_s, resend=resend)
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

    found = read_leaderboard(_choice(competition))
    if json:
        console.show_json(found)
    elif csv:
        console.show_csv(found["rows"])
    else:
        keys = ("name", "run", "members", "metric", "cv", "public", "private", "gap", "status")
        console.show_table([{key: row[key] for key in keys} for row in found["rows"]])
        if found["rank_correlation"] is not None:
            console.result(f"rank correlation of CV and public score: {found['rank_correlation']:.2f}")


@command()
def predict(
    competition: Competition = None,
    experiment: Experiment = None,
    run: Run = None,
    data: Annotated[str | None, typer.Option("--data", help="A folder laid out like the competition's.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="The submission's file, with --data.")] = None,
    device: Device = "auto",
    force: Force = False,
    json: Json = False,
) -> None:
    """Predict the test set, or the unseen rows of another folder."""
    from kbench import console
    from kbench.commands.predicting import predict_rows

    found = predict_rows(_choice(competition, experiment, run), data=data, out=out, device=device, force=force)
    if json:
        console.show_json(found)
        return
    console.result(f"{found['rows']:,} rows, {found['members']} members")
    if found["file"]:
        console.wrote(found["file"])
    else:
        console.next_command("kbench ensemble")


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

    found = run_lr_find(_choice(competition, experiment, None, assign), fold=fold, stage=stage, device=device)
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
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Folds at once.")] = 1,
    device: Device = "auto",
    assign: Assign = None,
    json: Json = False,
) -> None:
    """Train every combination of values on the same folds; one table with intervals."""
    from kbench import console
    from kbench.commands.fold_job import TrainOptions
    from kbench.commands.sweep import sweep as run_sweep

    choice = _choice(competition, experiment, None, assign)
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

    found = import_run(_choice(competition), name, oof=oof, test=test, force=force)
    if json:
        console.show_json(found)
        return
    console.result(f"{found['run']}: {found['metric']} {found['score']:.5f} [{found['low']:.5f}, {found['high']:.5f}]")
    console.next_command(f"kbench ensemble baseline-s0 {found['run']}")


@command()
def new(
    name: Annotated[str, typer.Argument(help="A Kaggle competition's slug or address; with --data any name.")],
    data: Annotated[str | None, typer.Option("--data", help="A folder or zip you already have.")] = None,
    solution: Annotated[str | None, typer.Option("--solution", help="A CSV of true targets, to grade here.")] = None,
    force: Force = False,
) -> None:
    """Draft a competition's YAML from its files."""
    from kbench import console
    from kbench.commands.new import new as draft

    found = draft(name, data=data, solution=solution, force=force)
    console.wrote(found["file"])
    for text in found["todo"]:
        console.warn(text)
    console.next_command(f"edit {found['file']}, then kbench check")


@command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything.")] = False, json: Json = False
) -> None:
    """Show the image cache, or clear it."""
    from kbench import console
    from kbench.commands.cache import cache as run_cache

    found = run_cache(clear=clear)
    if json:
        console.show_json(found)
        return
    console.show_table(found["rows"], title=found["folder"])
    if clear:
        console.result(f"freed {found['freed_mb']} MB")


@command()
def run(
    competition: Competition = None,
    experiment: Experiment = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Folds at once.")] = 1,
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

    found = run_all(_choice(competition, experiment, name, assign), TrainOptions(jobs=jobs, device=device), send=send)
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


@command()
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

    found = look_at(_choice(competition, experiment, None, assign), fold=fold, samples=samples)
    if json:
        console.show_json(found)
        return
    keys = ("stage", "size", "lr", "schedule", "epochs", "updates", "batch", "members")
    console.show_table(found["rows"], title="rows")
    console.show_table(found["missing"], title="missing values")
    console.show_table([{key: stage[key] for key in keys} for stage in found["stages"]], title="stages")
    for text in found["warnings"]:
        console.warn(text)
    for file in [*found["files"], found["page"]]:
        console.wrote(file)
    console.next_command("kbench lr-find, then kbench train")


@command()
def report(
    competition: Competition = None,
    experiment: Experiment = None,
    run: Run = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Images per class of a sheet.")] = 4,
    by_class: Annotated[
        bool | None, typer.Option("--by-class/--overall", help="Sheets by class, or not; default: up to 20 classes.")
    ] = None,
    slice_: Annotated[list[str] | None, typer.Option("--slice", help="A metadata column; default: all.")] = None,
    solution: Annotated[
        bool, typer.Option("--solution", help="Also grade folds one by one on the local solution.")
    ] = False,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Draw what a run learned and where it errs; one page with everything."""
    from kbench import console
    from kbench.commands.look import ReportOptions
    from kbench.commands.report import report as write_report

    options = ReportOptions(k=k, by_class=by_class, slices=tuple(slice_ or ()), solution=solution, device=device)
    found = write_report(_choice(competition, experiment, run), options)
    if json:
        console.show_json(found)
        return
    console.show_table(found.get("growth", []), title=f"{found['run']}: {found['score']['metric']}, out of fold")
    console.show_table(found.get("adds", []), title="what each member adds (larger is better)")
    console.show_table(found.get("test", []), title="graded on the local solution")
    console.wrote(found["page"])
    console.next_command("kbench ensemble")


@command()
def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Do not ask Kaggle.")] = False, json: Json = False
) -> None:
    """Check the device, the disk and the Kaggle sign-in; show no secret."""
    from kbench import console
    from kbench.commands.doctor import doctor as diagnose

    found = diagnose(online=not offline)
    if json:
        console.show_json(found)
    else:
        for row in found["rows"]:  # no table: what is to be typed must not be cut
            console.result(f"{row['level']}: {row['what']}" + (f"\n  next: {row['todo']}" if row["todo"] else ""))
    if not found["ok"]:
        raise typer.Exit(1)
