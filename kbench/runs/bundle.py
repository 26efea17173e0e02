"""A bundle: all that predicts hidden rows in one folder, to be carried to a machine without data, folds or network.

`bundle.json` says everything in numbers; `runs/<run>/` holds what a run's folder holds of its members: configuration,
plug-ins, snapshots, each frozen body once. What is read from it is opened as the runs it was made of
(`bundle_opening.py`), so that one way of predicting serves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kbench import __version__, files, records
from kbench.config.yaml12 import dump_yaml
from kbench.errors import ConfigError
from kbench.models.checkpoint import Checkpoint, read_checkpoint, read_tensors, write_tensors
from kbench.runs.blend import Blend
from kbench.runs.leaving_out import Model, models_of
from kbench.runs.opening import environment
from kbench.runs.results import Share, decision_of
from kbench.runs.run import Run
from kbench.tasks import is_dense
from kbench.workspace import BundlePaths, FoldPaths, RunPaths

VERSION = 1
"""Of the layout of a bundle; raise it where an older kbench could not read a new one."""

ENGINES = ("torch", "openvino", "onnx")


def write_bundle(combined: Blend, folder: Path, *, half: bool) -> dict[str, Any]:
    """Write the runs of an ensemble, and return what `bundle.json` is to say; the caller writes it last.

    Args:
        combined: the ensemble.
        folder: an empty folder.
        half: store float32 weights as float16.

    Raises:
        ConfigError: a run has no models.
    """
    paths = BundlePaths(folder)
    _refuse_foreign(combined.shares)
    wanted = models_of(combined.shares, combined.weights, combined.gains)
    for share in combined.shares:
        _write_run(paths.run(share.run.name), share, {one.checksum for one in wanted}, half=half)
    return {**_description(combined), "fp16": half, "members": _members(paths, combined, wanted)}


def _refuse_foreign(shares: Sequence[Share]) -> None:
    foreign = [share.run.name for share in shares if share.run.foreign]
    if foreign:
        others = [share.run.name for share in shares if not share.run.foreign]
        raise ConfigError(
            f"'{foreign[0]}' is somebody else's predictions: no model of it could see hidden rows",
            "runs that were trained here", f"`kbench export {' '.join(others) or 'RUN'}`, without it",
        )  # fmt: skip


def _write_run(paths: RunPaths, share: Share, wanted: set[str], *, half: bool) -> None:
    run = share.run
    competition = run.competition
    content = competition.model_dump(mode="json")
    content["submission"] = competition.submission.model_dump(mode="json", exclude_unset=True)
    content["source"] = {"name": competition.source.name, **competition.source.params}
    files.write_text(paths.config, dump_yaml(content))
    for name in competition.plugins:
        files.copy(run.experiment.plugins / name, paths.plugins / name)
    files.write_json(
        paths.manifest,
        {"competition": competition.name, "experiment": competition.experiment, "seed": competition.seed, "set": [],
         **run.trained_as},
    )  # fmt: skip
    for place in share.places:
        own = [one for one in run.checkpoints(place, subset=share.subset) if one.checksum in wanted]
        fold = paths.fold(place)
        for one in own:
            _copy_snapshot(one, fold, half=half)
        state = {"state": "done", "training": run.trained_as["training"], "snapshots": [one.path.name for one in own]}
        files.write_json(fold.status, state)


def _copy_snapshot(snapshot: Checkpoint, fold: FoldPaths, *, half: bool) -> None:
    _copy(snapshot.path, fold.snapshot_named(snapshot.path.name), half=half)
    if snapshot.body:
        body = fold.body(snapshot.body)
        if not body.is_file():
            _copy(FoldPaths(snapshot.path.parent).body(snapshot.body), body, half=half)


def _copy(source: Path, target: Path, *, half: bool) -> None:
    """Copy a snapshot or a body, its record last; the same weights give the same record."""
    checkpoint = read_checkpoint(source)
    if checkpoint is None:
        raise ConfigError(
            f"the weights of '{source}' are missing or damaged", "the file that was written with its JSON",
            "bring it back, or train its fold again with `--force`",
        )  # fmt: skip
    weights = target.with_suffix(".safetensors")
    if half:
        tensors = read_tensors(checkpoint.tensors)
        write_tensors(weights, {name: one.half() if one.is_floating_point() else one for name, one in tensors.items()})
    else:
        files.copy(checkpoint.tensors, weights)
    said = {key: value for key, value in checkpoint.info.items() if key != "files"}
    records.seal(target, {**said, "origin": checkpoint.checksum}, parts={"weights": weights}, timed=False)


def _members(paths: BundlePaths, combined: Blend, wanted: Sequence[Model]) -> list[dict[str, Any]]:
    """Return a record of each model: what it is, the checksum of its weights here, and its share of the mean."""
    members = []
    for model in wanted:
        share = next(one for one in combined.shares if one.run.name == model.run)
        snapshot = next(
            one
            for one in share.run.checkpoints(model.place, subset=share.subset)
            if one.checksum == model.checksum
        )  # fmt: skip
        here = read_checkpoint(paths.run(model.run).fold(model.place).snapshot_named(snapshot.path.name))
        assert here is not None, "it was written just now"
        members.append({
            "run": model.run, "place": model.place, "member": model.member, "sha256": here.checksum,
            "origin": model.checksum, "body": here.body, "file": str(here.tensors.relative_to(paths.root)),
            "size": here.info["size"], "scale": here.info["scale"], "precision": here.info["precision"],
            "gain": model.gain,
            "weight": share.weight if combined.weights is None else combined.weights[f"{model.run}/{model.member}"],
        })  # fmt: skip
    return members


def _description(combined: Blend) -> dict[str, Any]:
    experiment = combined.experiment
    competition, score = experiment.competition, combined.score or {}
    decision = competition.ensemble.decision
    dense = is_dense(competition.task)
    return {
        "bundle": VERSION, "competition": competition.name, "experiment": competition.experiment,
        "slug": competition.source.params.get("slug"), "title": competition.title, "task": competition.task,
        "targets": list(experiment.train.target_names),
        "runs": [_run_record(share) for share in combined.shares],
        "combiner": {"name": combined.combiner, "ranks": combined.recipe.combiner.ranks, "weights": combined.weights},
        "mean": competition.ensemble.mean,
        "decision": None if decision is None or decision_of(experiment) is None
        else {**decision.model_dump(mode="json"), "fit": combined.fit},
        "rule": combined.fit.source if dense and combined.fit is not None else None,
        "views": competition.tta.model_dump(mode="json"), "windows": competition.maps.windows.model_dump(mode="json"),
        "input": competition.input.model_dump(mode="json"),
        "format": competition.submission.format.model_dump(mode="json"), "sample": competition.submission.sample,
        "file": f"submission{experiment.format.suffix}{'.gz' if competition.submission.gzip else ''}",
        "metric": competition.metric.model_dump(mode="json"),
        "score": {key: score.get(key) for key in ("metric", "maximise", "score", "low", "high", "optimism")},
        "thresholds": combined.thresholds, "gains": combined.gains,
        "versions": {"kbench": __version__, **environment()},
    }  # fmt: skip


def _run_record(share: Share) -> dict[str, Any]:
    run: Run = share.run
    names = list(run.experiment.train.target_names)
    return {
        "name": run.name, "weight": share.weight, "places": list(share.places), "subset": share.subset,
        "missing": list(share.missing), "targets": names,
        "share": dict(zip(names, map(float, run.experiment.filler()), strict=True)), **run.trained_as,
    }  # fmt: skip
