"""`kbench train`: train folds of a run; `kbench lr-find`: only the learning-rate range test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from kbench import console, files
from kbench.errors import Busy, ConfigError, RankLost, TrainingError
from kbench.pictures.curves import draw_fold, draw_lr_finds
from kbench.runs import leases
from kbench.runs.experiment import Experiment
from kbench.runs.fold_job import FULL, FoldJob, TrainOptions, fold_option, prepare_fold, use_threads
from kbench.runs.fold_processes import FoldCommand, Local, end_with_parent, run_commands, visible_gpus
from kbench.runs.opening import prepare_run
from kbench.runs.out_of_fold import score_of_fold
from kbench.runs.rank_processes import check_devices, train_on_devices
from kbench.runs.rates import batch_warnings, found_rates, on_activations, rate_notes
from kbench.runs.run import Run
from kbench.training.deadline import Stopped
from kbench.training.events import Epoch, Note
from kbench.training.fold import clear, train_fold
from kbench.training.ranks import ALONE, Ranks
from kbench.workspace import FoldPaths, RunPaths


def train(experiment: Experiment, which: str | None, options: TrainOptions) -> dict[str, Any]:
    """Train the folds that are not trained yet.

    Args:
        experiment: competition and experiment.
        which: numbers of folds separated by commas, `all`, `full`, or None for all that are unfinished.
        options: how.

    Returns:
        `run`, the folds that were `trained`, were `done` before, `failed` or were `stopped`, and `rates`: what
        `found_rates` returns.

    Raises:
        TrainingError: the only fold that is wanted cannot be trained.
    """
    end_with_parent()
    check_devices(experiment.competition, options)
    wanted = wanted_folds(experiment, which)
    asked = options.threads
    options = replace(options, threads=asked or torch.get_num_threads())
    run = prepare_run(experiment, force=options.force and which in (None, "all"))
    paths = run.paths
    if options.force:
        for fold in wanted:
            with leases.holding(paths.fold(fold), todo=busy(fold)):
                clear(paths.fold(fold))
    states = {fold: run.state(fold) for fold in wanted}
    failed = [fold for fold in wanted if states[fold]["state"] == "failed"]
    done = [fold for fold in wanted if states[fold]["state"] == "done"]
    todo = [fold for fold in wanted if fold not in (*failed, *done)]
    for fold in failed:
        error = TrainingError(
            f"fold {fold} of '{paths.name}' failed before: {states[fold].get('error')}",
            "a recipe that trains",
            f"change it (such as a lower `lr`), or try the same again with `kbench train {fold_option(fold)} --force`",
        )
        if len(wanted) == 1:
            raise error
        console.show_error(error)
    for fold in done:
        console.note(f"fold {fold} is trained already")
        _complete(run, fold, options)  # a process killed after training did not
    for text in batch_warnings(experiment):
        console.warn(text)
    activated = on_activations(experiment.competition)
    if activated and options.jobs > 1 and len(todo) > 1:
        console.note(f"--jobs {options.jobs} is not used: every stage trains on activations, and a fold takes seconds")
    here = len(wanted) == 1 or options.jobs == 1 or activated  # the same way, and threads, however often it is killed
    codes: dict[int | str, int] = {}
    for some in _rounds(experiment, todo):
        if options.cluster:
            codes |= _train_elsewhere(experiment, some, replace(options, threads=asked), paths)
        elif here:
            failed += _train_here(run, some, options, alone=len(wanted) == 1)
        else:
            commands = [_command(experiment, fold, replace(options, threads=asked)) for fold in some]
            workers = Local(options.jobs, options.devices)
            codes |= run_commands(commands, workers=workers, paths=paths, deadline=options.deadline)
        if Stopped.exit_code in codes.values():
            break
    stopped = [fold for fold in todo if codes.get(fold) == Stopped.exit_code]
    failed += [fold for fold, code in codes.items() if code and fold not in stopped]
    rates = found_rates(run)
    for text in rate_notes(rates):
        console.note(text)
    return {
        "run": paths.name, "trained": [fold for fold in todo if fold not in (*failed, *stopped)],
        "done": done, "failed": failed, "stopped": stopped,
        "rates": rates,
    }  # fmt: skip


def _train_elsewhere(
    experiment: Experiment, todo: Sequence[int | str], options: TrainOptions, paths: RunPaths
) -> dict[int | str, int]:
    """Train folds on the workers of a cluster; return their exit codes."""
    from kbench.runs.cluster import Wanted, connected

    wanted = Wanted(options.threads, gpu=options.device.startswith("cuda"), paths=paths)
    with connected(str(options.cluster), wanted) as workers:
        commands = [_command(experiment, fold, replace(options, jobs=1), there=True) for fold in todo]
        return run_commands(commands, workers=workers, paths=paths, deadline=options.deadline)


def _rounds(experiment: Experiment, todo: Sequence[int | str]) -> list[list[int | str]]:
    """Return the folds in two rounds: the others take rates from the first ones (`lr_from_fold`)."""
    asked = {stage.lr_from_fold for stage in experiment.competition.stages.values() if stage.lr == "find"}
    rounds = [[fold for fold in todo if (fold in asked) == first] for first in (True, False)]
    return [folds for folds in rounds if folds]


def busy(fold: int | str) -> str:
    """Return what to do where a fold is another worker's."""
    return f"wait for it, or stop it; then `kbench train {fold_option(fold)}` goes on from its last resume point"


def wanted_folds(experiment: Experiment, which: str | None) -> list[int | str]:
    """Return the folds that a command line names.

    Args:
        experiment: the competition.
        which: numbers separated by commas, `all` or None, or `full`.

    Raises:
        ConfigError: a word is no number.
        FoldError: there is no such fold.
    """
    if which == FULL:
        return [FULL]
    if which in (None, "all"):
        return list(range(experiment.folds.n))
    try:
        folds = [int(word) for word in str(which).split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--fold '{which}' is no fold",
            f"a number from 0 to {experiment.folds.n - 1}, or all",
            "`kbench train --fold 0`",
        ) from error
    for fold in folds:
        experiment.folds.valid(fold)  # says so when there is no such fold
    return list(dict.fromkeys(folds))


def _train_here(run: Run, todo: Sequence[int | str], options: TrainOptions, *, alone: bool) -> list[int | str]:
    failed: list[int | str] = []
    for fold in todo:
        try:
            train_one(run, fold, options)
        except TrainingError as error:
            if alone:
                raise
            console.show_error(error)
            failed.append(fold)
    return failed


def _command(experiment: Experiment, fold: int | str, options: TrainOptions, *, there: bool = False) -> FoldCommand:
    choice = experiment.choice
    device = options.device.partition(":")[0] if there or visible_gpus() else options.device  # the one GPU it is given
    words = ["train", "-c", experiment.competition.name, "--device", device, "--jobs", str(options.jobs)]
    words += ["--threads", str(options.threads)] if options.threads else []
    words += fold_option(fold).split()
    words += ["--devices", str(options.devices)] if options.devices > 1 else []
    words += ["-e", choice.experiment] if choice.experiment else []
    words += ["--run", choice.run] if choice.run else []
    for assignment in choice.assignments:
        words += ["--set", assignment]
    return FoldCommand(fold, tuple(words))


def train_one(run: Run, fold: int | str, options: TrainOptions) -> None:
    """Train one fold to its end and predict the rows it did not train on."""
    place = run.paths.fold(fold)
    if options.devices > 1:
        train_on_devices(run, fold, options)  # the first of its processes, which writes, is the fold's worker
    with leases.holding(place, todo=busy(fold)):
        if options.devices == 1:
            train_held(run, fold, options)
        _pictures(place)
        _finish(run, fold, options)


def train_held(run: Run, fold: int | str, options: TrainOptions, ranks: Ranks = ALONE) -> None:
    """Train a fold that is this process's, or its first rank's, unless it was trained while it was waited for."""
    if not ranks.decided(run.state(fold)["state"] in ("none", "started")):
        return
    try:
        _watch(prepare_fold(run, fold, options, ranks), fold)
    except RankLost:
        raise
    except TrainingError:
        for picture in draw_lr_finds(run.paths.fold(fold)) if ranks.first else ():
            console.wrote(picture)  # such as one that shows no rate, which the error says to look at
        raise


def _pictures(place: FoldPaths) -> None:
    """Draw a trained fold's curves where they are missing, and remove what a killed process left half drawn."""
    files.remove_temporaries(place.root)
    if not place.losses.is_file():
        draw_fold(place)


def _complete(run: Run, fold: int | str, options: TrainOptions) -> None:
    """Draw and predict what a fold that is trained still lacks, unless another worker does."""
    try:
        with leases.holding(run.paths.fold(fold), todo=busy(fold)):
            _pictures(run.paths.fold(fold))
            _finish(run, fold, options)
    except Busy as error:
        console.note(error.what)


def _finish(run: Run, fold: int | str, options: TrainOptions) -> None:
    """Predict the rows a trained fold did not train on, where they are not predicted yet, and score them."""
    if fold == FULL:
        return
    use_threads(run.plan(fold), options)
    score = score_of_fold(run, int(fold), device=options.device, limit=options.limit)
    if options.limit is None:
        how = ", nested: each fifth of its rows with what was found on the others" if score.nested else ""
        console.note(f"fold {fold}: {run.competition.metric.name} {shown(score.value)} out of fold{how}")


def shown(score: float | None) -> str:
    """Return a score as it is printed: `-` where the metric has no value on the rows."""
    return "-" if score is None else console.score_text(score)


def _watch(job: FoldJob, fold: int | str) -> None:
    """Train a fold and show what happens: the updates of the stage that are made, and the time the others need."""
    with console.bar(f"fold {fold}") as advance:
        context = replace(job.context, tell=lambda what, done, total: advance(done, total, f"fold {fold}  {what}"))
        for event in train_fold(context, job.stages, job.build, resumed=job.resumed):
            if isinstance(event, Epoch):
                if console.told_in_lines():
                    console.epoch(fold, asdict(event))
                else:
                    console.note(_line(fold, event))
            elif isinstance(event, Note):
                console.note(f"fold {fold}: {event.text}")


def _line(fold: int | str, epoch: Epoch) -> str:
    judged = "" if epoch.valid_loss is None else f"  valid {epoch.valid_loss:.4f}  score {shown(epoch.score)}"
    scale = "" if epoch.loss_scale is None else f"  loss scale {epoch.loss_scale:.4g}"
    return (
        f"fold {fold}  {epoch.stage} {epoch.epoch + 1}/{epoch.epochs}  train {epoch.train_loss:.4f}{judged}"
        f"{' *' if epoch.best else ''}  {epoch.images_per_s:.0f} images/s  {epoch.waiting:.0%} waiting"
        f"  {epoch.seconds:.1f} s{scale}"
    )
