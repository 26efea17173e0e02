"""A bundle opened: the ensemble it was made of, without folds, without a training table, and nothing of it written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kbench import files, records
from kbench.config.reading import read_yaml, validate
from kbench.data.table.table import Table
from kbench.errors import ConfigError, counted, first_names
from kbench.runs import map_results
from kbench.runs.blend import Blend
from kbench.runs.bundle import VERSION
from kbench.runs.bundle_engines import engine_of
from kbench.runs.experiment import Experiment
from kbench.runs.opening import read_manifest
from kbench.runs.results import Share, recipe_of
from kbench.runs.run import Engine, Run
from kbench.tasks import is_dense
from kbench.workspace import BundlePaths, Choice, WorkPaths, Workspace

_KEYS: Mapping[str, type] = {
    "competition": str, "task": str, "targets": list, "runs": list, "members": list, "combiner": dict, "engine": str,
}  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """A bundle that is opened.

    Attributes:
        paths: its files.
        said: what `bundle.json` says.
        combined: the ensemble.
    """

    paths: BundlePaths
    said: dict[str, Any]
    combined: Blend


def read_bundle(folder: Path) -> dict[str, Any]:
    """Return what a bundle says of itself.

    Raises:
        ConfigError: the folder is no bundle, or one of another kbench.
        DataError: its record is damaged.
    """
    path = BundlePaths(folder).manifest
    if not path.is_file():
        raise ConfigError(f"'{folder}' is no bundle: it has no '{path.name}'", "a folder that `kbench export` wrote",
                          "`kbench export RUN...` writes one")  # fmt: skip
    said = records.read_record(path, keys={"bundle": int}, todo="`kbench export` writes the bundle anew")
    if said["bundle"] != VERSION:
        raise ConfigError(
            f"'{folder}' is a bundle of layout {said['bundle']}", f"layout {VERSION}, as this kbench writes it",
            "`kbench export` it again, or install the kbench wheel that lies in it",
        )  # fmt: skip
    return records.read_record(path, keys=_KEYS, todo="`kbench export` writes the bundle anew")


def open_bundle(folder: Path, work: Path) -> Bundle:
    """Open a bundle as the ensemble it was made of.

    Args:
        folder: the bundle; it may be read-only, and may have lost its folders on the way (`flat_name`).
        work: where predictions and decoded images go.

    Raises:
        ConfigError: it is no bundle, or one of another kbench.
        DataError: its record is damaged.
    """
    said = read_bundle(folder)
    paths = _with_folders(BundlePaths(folder), said, work)
    engine = engine_of(paths, said["engine"])
    shares = tuple(_share(paths, one, work, engine) for one in said["runs"])
    first = shares[0].run.experiment
    train = replace(first.train, target_names=tuple(said["targets"]))
    experiment = first if train.target_names == first.train.target_names else first.with_train(train)
    recipe = recipe_of(experiment, combine=said["combiner"]["name"])
    fit = _fit(experiment, said)
    combined = Blend(
        experiment, shares, said["combiner"]["name"], recipe, said["combiner"]["weights"], fit, said["thresholds"],
        said["score"], said["gains"],
    )  # fmt: skip
    return Bundle(paths, said, combined)


def _with_folders(paths: BundlePaths, said: Mapping[str, Any], work: Path) -> BundlePaths:
    """Return the bundle's files as they were written; links make folders of them where they were carried without."""
    listed = said.get("files", [])
    gone = [one for one in listed if not (paths.file(one["path"])).is_file()]
    if not gone:
        return paths
    lost = [one["path"] for one in gone if not (paths.file(one["name"])).is_file()]
    if lost:
        raise ConfigError(
            f"the bundle '{paths.root}' lacks {counted(len(lost), 'file')}: {first_names(lost)}", "every file it lists",
            "`kbench push` uploads it again; `kbench export` writes it anew",
        )  # fmt: skip
    linked = BundlePaths(WorkPaths(work).bundle)
    for one in listed:
        flat = paths.file(one["name"])
        files.link_folder(linked.file(one["path"]), flat if flat.is_file() else paths.file(one["path"]))
    return linked


def _share(paths: BundlePaths, one: Mapping[str, Any], work: Path, engine: Engine | None) -> Share:
    own = paths.run(one["name"], written=WorkPaths(work).predictions)
    manifest = read_manifest(own)
    competition = validate(
        read_yaml(own.config), file=str(own.config), folder=own.plugins, name=manifest["competition"],
        experiment=manifest["experiment"], record=True,
    )  # fmt: skip
    competition = competition.model_copy(
        update={
            "input": competition.input.model_copy(update={"cache": "off"}),  # every image is decoded once, for all
            "data": competition.data.model_copy(update={"on_problem": "fill"}),
        }
    )
    names = tuple(one["targets"])
    nothing = Table(np.array([], dtype=str), Path(), (), competition.task, names)
    experiment = Experiment(
        Workspace(work, fixed=True), competition, Choice(competition.name), own.plugins,
        share=np.array([one["share"][name] for name in names]), _train=nothing,
    )  # fmt: skip
    run = Run(experiment, own, {key: manifest[key] for key in ("training", "contract", "folds")}, engine)
    return Share(run, one["weight"], None, tuple(one["places"]), one["subset"], tuple(one["missing"]))


def _fit(experiment: Experiment, said: Mapping[str, Any]) -> Any:
    """Return what is applied to the mean: the mask rule with its numbers, thresholds and cut points, or nothing."""
    if is_dense(experiment.competition.task):
        return map_results.build_rule(experiment, (said["rule"] or {}).get("params"))
    return None if said["decision"] is None else said["decision"]["fit"]
