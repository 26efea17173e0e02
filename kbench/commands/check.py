"""`kbench check`: YAML, parts, data, folds and sample submission; every problem at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from kbench import console
from kbench.config.reading import load_competition, read_document
from kbench.config.rules import called_default
from kbench.data.masks.cache import images_with_text, look_at_masks, sizes_of
from kbench.data.table.csv_files import texts
from kbench.data.table.image_files import list_images
from kbench.data.table.reading import MaskKind
from kbench.data.table.table import Table, readable
from kbench.data.table.verify import ImageReport, channel_warnings, dtype_problems, look_at_images
from kbench.errors import (
    ConfigError,
    KbenchError,
    Problem,
    SubmissionError,
    as_problems,
    counted,
    first_names,
    raise_all,
)
from kbench.inference.map_store import MaskSet
from kbench.inference.predictions import Predictions
from kbench.machine import cores
from kbench.models.classifier import check_backbone
from kbench.runs.experiment import Experiment, mask_kind, open_experiment, opening_of, size_reader
from kbench.runs.rates import batch_warnings, plan_rows
from kbench.runs.scales import scale_warnings
from kbench.runs.steps import decoding_of
from kbench.runs.trial_build import part_problems
from kbench.runs.unscored import unscored_folds
from kbench.submission.check import check_submission, part_of, sample_problems
from kbench.submission.formats.base import Format, id_column, named_class, near_id, refuse, row_keys, target_columns
from kbench.tasks import SEGMENTATION, exclusive
from kbench.workspace import Choice, Workspace, choose, find_workspace

_Found = TypeVar("_Found")
_FEW = 1000  # rows a submission is tried on
_MIN_UPDATES, _SMALL_BATCH = 4, 8  # per epoch, before a batch of more images is called too large for the data


def check(choice: Choice, *, images: bool, every: bool) -> dict[str, Any]:
    """Check YAML, parts, data, folds and sample submission; report every problem at once.

    Args:
        choice: the competition.
        images: decode every image.
        every: check the YAMLs and parts of all competitions and experiments instead.

    Raises:
        ConfigError: there are problems.
    """
    if every:
        return _check_every(find_workspace())
    experiment = _open(choice)
    name = experiment.competition.name
    result: dict[str, Any] = {"competition": name, "yaml": "ok", "stages": list(experiment.competition.stages)}
    problems = _weights_problems(experiment)
    _gather(problems, "pseudo", experiment.pseudo)
    if experiment.data.exists():
        result |= _check_data(experiment, problems, deep=images)
    else:
        console.warn(f"no data yet: `kbench download {name}`")
        result["data"] = None
    wrong = part_problems(experiment.competition, experiment.train if result.get("rows") else None)
    told = {(problem.what, problem.hint) for problem in wrong}  # under the setting's own name
    problems = [one for one in problems if (one.what, one.hint) not in told] + wrong
    for text in batch_warnings(experiment):
        console.warn(text)
    _gather(problems, "source.solution", lambda: experiment.source().solution(experiment.data))
    problems = [called_default(problem, experiment.competition) for problem in problems]
    raise_all(
        problems, error=ConfigError, subject=f"'{name}'",
        expected="parts that can be built, and data that fits the YAML",
        todo="correct what is named above, then `kbench check` again",
    )  # fmt: skip
    return {**result, "plan": plan_rows(experiment.competition)}


def _open(choice: Choice) -> Experiment:
    """Read the YAML; where it has problems, hold its backbone against timm too, which validation leaves for later."""
    try:
        return open_experiment(choice)
    except ConfigError as error:
        if not error.problems:
            raise
        workspace = find_workspace(choice.workspace)
        name = choose(workspace, choice.competition)
        model = read_document(workspace, name, choice.experiment, choice.assignments).get("model")
        backbone = model.get("backbone") if isinstance(model, dict) and model.get("name", "timm") == "timm" else None
        wrong = check_backbone(backbone) if isinstance(backbone, str) else ""
        raise_all(
            [*error.problems, *([Problem("model.backbone", wrong)] if wrong else [])], error=ConfigError,
            subject=error.what.partition(": ")[0], expected=error.expected, todo=error.todo,
        )  # fmt: skip
        raise


def _check_data(experiment: Experiment, problems: list[Problem], *, deep: bool) -> dict[str, Any]:
    """Return what the data is; add what is wrong with it to the problems."""
    result: dict[str, Any] = {}
    reports: dict[str, ImageReport] = {}
    with console.bar("checking images") as advance:
        result["rows"] = _gather(problems, "data.train", lambda: len(experiment.train))
        if result["rows"]:
            reports["train"] = _looked_at(experiment, experiment.train, deep, advance)
            unreadable = reports["train"].problems()
            problems += unreadable
            kind = None if unreadable else mask_kind(experiment.competition, experiment.data)
            if kind is not None and experiment.train.masks is not None:
                result["masks"] = _check_masks(experiment, kind, problems, advance, deep=deep)
            result["targets"] = len(experiment.train.target_names)
        else:
            problems += _looked_at(experiment, _images_alone(experiment), deep, advance).problems()
        if result["rows"]:
            result["folds"] = _gather(problems, "folds", lambda: experiment.folds.n)
            _warn_of_order(experiment)
            _warn_of_few_updates(experiment)
            for text in scale_warnings(experiment.competition, reports["train"].sizes):
                console.warn(text)
            if result["folds"] and not unreadable:
                for text in _gather(problems, "folds", lambda: unscored_folds(experiment, every_mask=deep)) or ():
                    console.warn(text)
        if experiment.competition.data.test is not None:
            result["test"] = _gather(problems, "data.test", lambda: len(experiment.test))
            if result["test"]:
                reports["test"] = _looked_at(experiment, readable(experiment.test), deep, advance)
                problems += reports["test"].problems() or dtype_problems(reports)
                for text in channel_warnings(reports["train"], reports["test"]) if "train" in reports else ():
                    console.warn(text)
        if result["rows"] and result.get("test", 1):
            for text in _gather(problems, "images", lambda: experiment.doubtful_rows(deep=deep)) or ():
                console.warn(text)
        result["sample"] = _gather(problems, "submission.sample", lambda: len(experiment.read_sample()))
        if result["rows"] and result["sample"] and result.get("test", 1):
            _gather(problems, "submission", lambda: _try_submission(experiment))
    return result


def _warn_of_few_updates(experiment: Experiment) -> None:
    """Say where an epoch is so short that neither batch norm nor a search for the rate can follow."""
    n = experiment.competition.folds.n
    rows = len(experiment.train) * (n - 1) // n if n > 1 else len(experiment.train)
    for name, stage in experiment.competition.stages.items():
        updates = -(-rows // (stage.batch_size * stage.accumulate))
        if updates < _MIN_UPDATES and stage.batch_size > _SMALL_BATCH:
            console.warn(
                f"stage '{name}': about {rows:,} images in batches of {stage.batch_size * stage.accumulate} are "
                f"{counted(updates, 'update')} an epoch; a smaller `batch_size` learns better"
            )


def _warn_of_order(experiment: Experiment) -> None:
    """Say where a metric counts steps between grades whose order nothing says but the alphabet."""
    competition = experiment.competition
    names = experiment.train.target_names
    if competition.metric.name != "quadratic_kappa" or competition.data.classes is not None:
        return
    numbers = [re.findall(r"[0-9]+", name) for name in names]
    counted_up = all(len(digits) == 1 for digits in numbers)
    order = [int(digits[0]) for digits in numbers] if counted_up else []
    if not counted_up or order != sorted(order):
        console.warn(
            f"'quadratic_kappa' counts the steps between grades, and their order is the alphabet's: "
            f"{first_names(names, 10)}; write `data: {{classes: [...]}}`, the lowest first"
        )


def _images_alone(experiment: Experiment) -> Table:
    """Return the training images as the folders have them, for when the rows cannot be told."""
    part = experiment.competition.data.train
    folders = [part.images] if isinstance(part.images, str) else part.images or []
    there = [folder for folder in folders if (experiment.data / folder).is_dir()]
    paths = sorted(path for folder in there for path in list_images(experiment.data, folder, suffix=part.suffix)[1])
    return Table(
        ids=np.array(paths, dtype=str), root=experiment.data, images=tuple((path,) for path in paths),
        task=experiment.competition.task, target_names=(), targets=None,
    )  # fmt: skip


def _try_submission(experiment: Experiment) -> None:
    """Write a submission of a few rows in memory: do the sample's ids and columns fit the targets?

    Raises:
        SubmissionError: the sample has other columns than the targets, or ids that are no test row.
    """
    sample, names, task = experiment.read_sample(), experiment.train.target_names, experiment.competition.task
    try:
        format = experiment.format
    except KbenchError:
        return  # said under `submission.format`
    refuse("the sample submission", sample_problems(sample, format), sample)
    if experiment.competition.data.test is not None:
        _refuse_unknown_ids(texts(sample, id_column(sample)).tolist(), experiment.test.ids, format)
    _warn_of_open_column(experiment, sample)
    if task in SEGMENTATION:
        if experiment.competition.data.test is not None:  # the size of an image is in its file
            _try_masks(experiment, sample)
        return
    if experiment.train.masks is not None:
        return
    few = sample.head(_FEW)
    if experiment.choice.of_a_part:
        few = part_of(few, names, task)
        if few.shape[1] < sample.shape[1]:
            console.warn("not all columns of the sample are targets: `kbench ensemble` needs runs of the others beside")
    ids = np.unique(texts(few, id_column(few)))
    values = np.zeros((len(ids), len(names)), dtype=np.float32)
    values[:, 0 if task == "single_label" else slice(None)] = 1
    frame = format.build(Predictions(ids, names, values, task, {}), few)
    check_submission(frame, few, format=format)


def _looked_at(experiment: Experiment, table: Table, deep: bool, advance: console.Advance) -> ImageReport:
    report = look_at_images(
        table, jobs=2 * cores(), deep=deep, opening=opening_of(experiment.competition),
        progress=lambda what, done, total: advance(done, total),
    )  # fmt: skip
    for text in report.warnings():
        console.warn(text)
    return report


def _warn_of_open_column(experiment: Experiment, sample: pd.DataFrame) -> None:
    """Say which class fills a column of one probability that names none."""
    part, names = experiment.competition.submission.format, experiment.train.target_names
    columns = target_columns(sample)
    if part.name != "single_probability" or part.params.get("target") is not None or len(columns) != 1:
        return
    if named_class(columns[0], names) is None:
        console.warn(
            f"the sample's column '{columns[0]}' names no class: it gets the probability of '{names[-1]}', the last "
            f"one; write `submission: {{format: {{name: single_probability, target: {names[-1]}}}}}` if that is right"
        )


def _refuse_unknown_ids(ids: list[str], known: np.ndarray, format: Format) -> None:
    """Refuse ids of a sample that belong to no test image.

    Raises:
        SubmissionError: with how many there are, the first of them, and what would fit.
    """
    there = set(known.tolist())
    unknown = [name for name in dict.fromkeys(ids) if format.image_of(name) not in there]
    if not unknown:
        return
    todo = f"correct `data.test` or `submission.sample` in the YAML; {near_id(unknown[0], known)}"
    inside = max((str(name) for name in known if str(name) in unknown[0]), key=len, default="")
    if format.image_of is not str and inside:
        template = unknown[0].replace(inside, "{id}", 1)
        todo = f"`submission: {{format: {{id: \"{template}\"}}}}` would fit '{unknown[0]}', if '{inside}' is its image"
    raise SubmissionError(
        f"{counted(len(unknown), 'id')} of the sample {'is' if len(unknown) == 1 else 'are'} no test row: "
        f"{first_names(unknown)}",
        "a test row for each id of the sample", todo,
    )  # fmt: skip


def _one_of_each(sample: pd.DataFrame, images: list[str], format: Format) -> list[str]:
    """Return images whose rows stand for all rows of a sample: one for each way an id goes on after its image."""
    known: dict[str, str] = {}
    for key, name, image in zip(row_keys(sample, format), texts(sample, id_column(sample)), images, strict=True):
        known.setdefault(f"{name.replace(image, '', 1)} {key.removeprefix(name)}", image)
    return list(dict.fromkeys(known.values()))[:_FEW]


def _try_masks(experiment: Experiment, sample: pd.DataFrame) -> None:
    """Write a submission of a few images' masks in memory, each of one class: do the ids and columns fit the format?

    Raises:
        SubmissionError: the sample asks for what the format cannot write.
    """
    format, names, task = experiment.format, experiment.train.target_names, experiment.competition.task
    images = [format.image_of(name) for name in texts(sample, id_column(sample)).tolist()]
    few = _one_of_each(sample, images, format)
    rows = sample[np.isin(images, few)].reset_index(drop=True)
    ids = np.array(sorted(few), dtype=str)

    def one(row: int) -> np.ndarray:
        size = experiment.test_size(str(ids[row]))
        if exclusive(task, len(names)):
            return np.full(size, row % len(names), dtype=np.uint8)
        return np.ones((len(names), *size), dtype=np.uint8)

    check_submission(format.build(MaskSet(ids, names, task, {}, one), rows), rows, format=format)


def _check_masks(
    experiment: Experiment, kind: MaskKind, problems: list[Problem], advance: console.Advance, *, deep: bool
) -> list[str]:
    """Return in how many images each class is; of files that is known only where they are read.

    Args:
        experiment: the competition; its masks' files can be opened.
        kind: reads the masks.
        problems: what is wrong with them is added.
        advance: moves the bar.
        deep: read every mask.
    """
    images = images_with_text(experiment.train, kind)
    if deep:
        size_of = sizes_of(experiment.train, size_reader(experiment.competition), decoding_of(experiment.competition))
        report = look_at_masks(experiment.train, kind=kind, size_of=size_of, progress=advance, jobs=2 * cores())
        problems += report.problems
        images = {} if report.problems else report.images
    nowhere = [name for name, count in images.items() if count == 0]
    if nowhere:
        console.warn(f"no training image shows {first_names(nowhere)}")
    if len(kind.on) > 1:
        ways = ", ".join(f"{value} in '{file}'" for value, file in sorted(kind.on.items()))
        console.warn(
            f"masks say yes in {len(kind.on)} ways: {ways}; all are taken as the class. If one of them is void, write "
            "`ignore: [VALUE]` in data.masks"
        )
    return [f"{name}: {count:,} of {counted(len(experiment.train), 'image')}" for name, count in images.items()]


def _gather(problems: list[Problem], where: str, look: Callable[[], _Found]) -> _Found | None:
    try:
        return look()
    except KbenchError as error:
        said = {(problem.what, problem.hint) for problem in problems}  # the sample may be made of the rows
        problems += [one for one in as_problems(where, error) if (one.what, one.hint) not in said]
        return None


def _weights_problems(experiment: Experiment) -> list[Problem]:
    weights = experiment.weights()
    if weights is None or weights.is_file():
        return []
    return [Problem("model.weights", f"'{weights}' does not exist", "the path is relative to the workspace")]


def _check_every(workspace: Workspace) -> dict[str, Any]:
    problems: list[Problem] = []
    checked = []
    for name in workspace.competition_names():
        experiments = [None, *sorted(path.stem for path in workspace.own(name).glob("*.yaml"))]
        for experiment in experiments:
            where = name if experiment is None else f"{name}/{experiment}"
            try:
                competition = load_competition(workspace, name, experiment=experiment)
                wrong = part_problems(competition, None)
                problems += [Problem(f"{where}: {problem.where}", problem.what, problem.hint) for problem in wrong]
                checked += [] if wrong else [where]
            except KbenchError as error:
                problems.append(Problem(where, error.what))
    raise_all(
        problems, error=ConfigError, subject="the workspace", expected="YAMLs without problems",
        todo="`kbench check -c NAME` after correcting one",
    )  # fmt: skip
    return {"checked": checked}
