"""`kbench check`: YAML, parts, data, folds and sample submission; every problem at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from kbench import console
from kbench.commands.choice import Choice
from kbench.commands.dry_build import part_problems
from kbench.commands.rates import batch_warnings, plan_rows
from kbench.commands.setup import Setup, mask_kind, open_setup, size_reader
from kbench.data.mask_cache import mask_problems, sizes_of
from kbench.data.tables import Table
from kbench.data.verify import unreadable_images
from kbench.documents import load_competition
from kbench.errors import ConfigError, KbenchError, Problem, as_problem, raise_all
from kbench.submission.check import read_sample
from kbench.workspace import Workspace, find_workspace


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
    setup = open_setup(choice)
    name = setup.competition.name
    found: dict[str, Any] = {"competition": name, "yaml": "ok", "stages": list(setup.competition.stages)}
    problems = _weights_problems(setup)
    if setup.data.exists():
        found |= _check_data(setup, problems, deep=images)
    else:
        console.warn(f"no data yet: `kbench download {name}`")
        found["data"] = None
    problems += part_problems(setup.competition, setup.train if found.get("rows") else None)
    for text in batch_warnings(setup):
        console.warn(text)
    raise_all(
        problems, error=ConfigError, subject=f"'{name}'",
        expected="parts that can be built, and data that fits the YAML",
        todo="correct what is named above, then `kbench check` again",
    )  # fmt: skip
    return {**found, "plan": plan_rows(setup.competition)}


def _check_data(setup: Setup, problems: list[Problem], *, deep: bool) -> dict[str, Any]:
    """Return what the data is; add what is wrong with it to the problems."""
    found: dict[str, Any] = {}
    with console.bar("checking images") as advance:
        found["rows"] = _gather(problems, "data.train", lambda: len(setup.train))
        if found["rows"]:
            unreadable = _unreadable(setup.train, deep, advance)
            problems += unreadable or (_wrong_masks(setup, advance) if deep else [])
            found["targets"] = len(setup.train.target_names)
            found["folds"] = _gather(problems, "folds", lambda: setup.folds.n)
        if setup.competition.data.test is not None:
            found["test"] = _gather(problems, "data.test", lambda: len(setup.test))
            if found["test"]:
                problems += _unreadable(setup.test, deep, advance)
        found["sample"] = _gather(problems, "submission.sample", lambda: len(read_sample(setup.sample)))
    return found


def _unreadable(table: Table, deep: bool, advance: console.Advance) -> list[Problem]:
    jobs = 2 * (os.cpu_count() or 1)
    return unreadable_images(table, jobs=jobs, progress=lambda what, done, total: advance(done, total), deep=deep)


def _wrong_masks(setup: Setup, advance: console.Advance) -> list[Problem]:
    """Return what is wrong in masks whose files can be read."""
    kind = mask_kind(setup.competition, setup.data)
    if kind is None or setup.train.masks is None:
        return []
    size_of = sizes_of(setup.train, size_reader(setup.competition))
    return mask_problems(setup.train, kind=kind, size_of=size_of, progress=advance, jobs=2 * (os.cpu_count() or 1))


def _gather(problems: list[Problem], where: str, look: Callable[[], int]) -> int | None:
    try:
        return look()
    except KbenchError as error:
        problems.append(as_problem(where, error))
        return None


def _weights_problems(setup: Setup) -> list[Problem]:
    weights = setup.weights()
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
