"""`kbench push`: a bundle becomes a dataset and a notebook on Kaggle, which is run once on the public test set."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kbench import console, files
from kbench.commands.infer import infer
from kbench.errors import ConfigError, ServiceError, SourceError, SubmissionError, counted
from kbench.runs.bundle_notebook import notebook_text
from kbench.runs.bundle_opening import read_bundle
from kbench.runs.experiment import Experiment, open_experiment
from kbench.sources.kaggle.notebooks import KaggleNotebooks, NotebookVersion, Uploadable
from kbench.submission.ledger import Lineage, reserve
from kbench.workspace import BundlePaths, Choice

_DATASET_S = 3600.0  # until an uploaded dataset can be mounted, at most
_ALIKE = 1e-3  # largest difference of a number that another machine may make


@dataclass(frozen=True)
class PushOptions:
    """How a notebook is made.

    Attributes:
        accelerator: machine shape, such as `NvidiaTeslaT4`; None: the CPU alone.
        image: Kaggle's docker image, pinned by digest; None: the one of the notebook's first version.
        dry: print every request, and send none.
    """

    accelerator: str | None = None
    image: str | None = None
    dry: bool = False


def push(choice: Choice, folder: Path, options: PushOptions) -> dict[str, Any]:
    """Upload a bundle, run its notebook on the public test set, and keep what it wrote as a submission to be sent.

    Args:
        choice: the competition, whose data is predicted here to compare; the bundle's by default.
        folder: the bundle.
        options: how.

    Returns:
        `dataset`, `notebook`, `version`, `file` (what the notebook wrote), `name` (of the ledger) and `difference` from
        what this machine writes; in a dry run the `requests`.

    Raises:
        SubmissionError: the competition takes no notebooks, or the notebook wrote something else than this machine.
        ServiceError: Kaggle refused something, or the notebook failed.
    """
    said = read_bundle(folder)
    experiment = open_experiment(replace(choice, competition=choice.competition or said["competition"]))
    slug = said["slug"]
    if slug is None:
        raise ConfigError(
            f"the bundle is of '{said['competition']}', which is no competition on Kaggle",
            "`source: {name: kaggle, slug: ...}` in its YAML", "`kbench infer` predicts with it here",
        )  # fmt: skip
    source = experiment.source()
    if options.dry:
        return _dry(folder, said, source.slug, options)
    about = source.about()
    if about.closed or not about.code_only:
        raise SubmissionError(
            f"'{slug}' takes {'no submissions now' if about.closed else 'files, no notebooks'}",
            "an open code competition", "`kbench ensemble`, then `kbench submit`",
        )  # fmt: skip
    left = source.remaining()
    if left is not None:
        console.note(f"{counted(left, 'submission')} left today")
    kaggle = KaggleNotebooks(source.client, source.client.user(), console.note)
    expected, seconds = _local(folder, experiment)
    _hold_against_quota(kaggle, options, hours=min(said["hours"], seconds / 3600))
    with _locked(folder):
        dataset = _dataset(kaggle, folder, said)
        notebook = _notebook(kaggle, folder, said, dataset, options)
        kaggle.await_notebook(notebook, limit=said["hours"] * 3600 + 12 * 3600)
        entry, difference = _fetched(kaggle, notebook, said, experiment, expected)
    return {
        "dataset": f"{kaggle.owner}/{dataset}", "notebook": f"{notebook.owner}/{notebook.slug}",
        "version": notebook.version, "file": str(entry), "name": entry.name.partition(".")[0],
        "difference": difference, "requests": None,
    }  # fmt: skip


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time push a bundle: two would make two versions."""
    lock = BundlePaths(folder.absolute()).push.with_suffix(".lock")
    with files.lock(lock, waiting="wait until it is pushed, then type this again"):
        yield


def _local(folder: Path, experiment: Experiment) -> tuple[Path, float]:
    """Return what this machine writes for the public test set, and how many seconds it took."""
    name = f"{folder.absolute().name}.local"
    work = folder.absolute().with_name(name)
    suffix = experiment.format.suffix
    written = infer(folder, data=experiment.data, out=work / f"submission{suffix}", work=work, hours=None)
    return Path(written["file"]), float(written["seconds"])


def _hold_against_quota(kaggle: KaggleNotebooks, options: PushOptions, *, hours: float) -> None:
    if options.accelerator is None or not options.accelerator.lower().startswith("nvidia"):
        return
    left = kaggle.accelerator_hours()
    if left is None:
        console.warn("Kaggle does not say how many hours of GPU are left")
    elif left < max(hours, 0.05):
        raise SourceError(
            f"{max(left, 0):.1f} h of GPU are left this week, and the notebook needs about {hours:.1f} h",
            "hours for one run on the public test set",
            "wait for the new week, or `kbench push` without `--accelerator`, on CPUs alone",
        )


# -- the dataset -----------------------------------------------------------------------------------------------------


def _name_of(said: Mapping[str, Any]) -> str:
    """Return the slug of the dataset and of the notebook: that of its title, as Kaggle makes it."""
    return f"kbench-{said['slug']}"[:48].rstrip("-")


def _uploads(folder: Path, said: Mapping[str, Any]) -> list[Uploadable]:
    manifest = BundlePaths(folder).manifest
    listed = [Uploadable(one["name"], folder / one["path"]) for one in said["files"]]
    wrong = [one.name for one in listed if not one.path.is_file()]
    if wrong:
        raise ConfigError(f"the bundle '{folder}' lacks '{wrong[0]}'", "every file it lists",
                          "`kbench export` writes it anew")  # fmt: skip
    return [Uploadable(manifest.name, manifest), *listed]


def _dataset(kaggle: KaggleNotebooks, folder: Path, said: Mapping[str, Any]) -> str:
    """Upload a bundle unless it is there already; return the dataset's slug."""
    slug, record = _name_of(said), BundlePaths(folder.absolute()).push
    uploads, digest = _uploads(folder, said), files.sha256(BundlePaths(folder).manifest)
    known = files.read_json(record) if record.is_file() else {}
    if known.get("digest") == digest and known.get("dataset") == f"{kaggle.owner}/{slug}":
        console.note(f"the dataset '{slug}' has this bundle already")
    else:
        with console.bar("uploading") as advance:
            tokens = []
            for number, one in enumerate(uploads, start=1):
                tokens.append(kaggle.upload(one))
                advance(number, len(uploads))
        kaggle.save_dataset(slug, slug.replace("-", " "), tokens, f"kbench bundle {digest[:12]}")
    kaggle.await_dataset(slug, limit=_DATASET_S)
    kaggle.check_dataset(slug, uploads)
    files.write_json(record, {**known, "digest": digest, "dataset": f"{kaggle.owner}/{slug}"})
    return slug


# -- the notebook ----------------------------------------------------------------------------------------------------


def notebook_body(
    said: Mapping[str, Any], owner: str, dataset: str, options: PushOptions, *, tag: str
) -> dict[str, Any]:
    """Return the request that saves the notebook: private, without network, stopped when its time is over."""
    shape = {"machineShape": options.accelerator} if options.accelerator else {}
    image = {"dockerImage": options.image} if options.image else {"dockerImagePinningType": "original"}
    name = _name_of(said)
    return {
        "slug": f"{owner}/{name}", "newTitle": name.replace("-", " "),
        "text": notebook_text(said["slug"], said["file"], tag=tag), "language": "python", "kernelType": "notebook",
        "datasetDataSources": [f"{owner}/{dataset}"], "competitionDataSources": [said["slug"]], "isPrivate": True,
        "enableGpu": bool(options.accelerator), "enableInternet": False,
        "sessionTimeoutSeconds": math.ceil(said["hours"] * 3600), **shape, **image,
    }  # fmt: skip


def _notebook(
    kaggle: KaggleNotebooks, folder: Path, said: Mapping[str, Any], dataset: str, options: PushOptions
) -> NotebookVersion:
    body = notebook_body(said, kaggle.owner, dataset, options, tag=os.urandom(4).hex())
    notebook = kaggle.save_notebook(_name_of(said), body)
    record = BundlePaths(folder.absolute()).push
    files.write_json(record, {**files.read_json(record), "notebook": vars(notebook)})
    return notebook


def _fetched(
    kaggle: KaggleNotebooks, notebook: NotebookVersion, said: Mapping[str, Any], experiment: Experiment, expected: Path
) -> tuple[Path, float]:
    """Bring what the notebook wrote, hold it against what this machine writes, and keep it as a submission."""
    output = kaggle.output(notebook)
    if output.log:
        console.note(f"the end of the notebook's log:\n{output.log}")
    if said["file"] not in output.files:
        raise ServiceError(
            f"the notebook '{notebook.slug}' wrote no '{said['file']}', but {', '.join(output.files) or 'nothing'}",
            "the submission of the public test set", "see the end of its log above; `kbench push` again",
            kind="rejected",
        )  # fmt: skip
    content = kaggle.download(output.files[said["file"]], doing=f"download '{said['file']}' of '{notebook.slug}'")
    difference = _difference(content, expected)
    name = f"{_name_of(said)}-v{notebook.version}"
    lineage = _lineage(said, experiment, notebook)
    with reserve(experiment.workspace.submissions(experiment.competition.name), name) as place:
        file = files.write_bytes(place.file(said["file"].removeprefix("submission")), content)
        place.record(file, lineage)
    return file, difference


def _difference(content: bytes, expected: Path) -> float:
    """Return the largest difference of a number between two files of one competition.

    Raises:
        SubmissionError: it is above 1e-3, or their columns, ids or texts differ.
    """
    own = expected.read_bytes()
    if content == own:
        return 0.0
    wrong, largest = "it is another file, byte by byte", math.inf
    if expected.suffix == ".csv":
        theirs, ours = (pd.read_csv(io.BytesIO(one), dtype=str, keep_default_na=False) for one in (content, own))
        wrong, largest = _wrong(theirs, ours)
    if wrong:
        raise SubmissionError(
            f"the notebook's file is not what this machine writes for the public test set: {wrong}",
            f"the same ids and texts, numbers within {_ALIKE:g}",
            "see that `kbench --version` here is that of the bundle; `kbench export`, then `kbench push` again",
        )
    return largest


def _wrong(theirs: pd.DataFrame, ours: pd.DataFrame) -> tuple[str, float]:
    """Return what is wrong with a frame, and the largest difference of its numbers."""
    if list(theirs.columns) != list(ours.columns) or len(theirs) != len(ours):
        return f"{len(theirs):,} rows of {len(theirs.columns)} columns, {len(ours):,} of {len(ours.columns)} here", 0.0
    largest = 0.0
    for name in ours.columns:
        one, other = theirs[name].to_numpy(), ours[name].to_numpy()
        unequal = np.flatnonzero(one != other)
        try:
            gaps = np.abs(one[unequal].astype(float) - other[unequal].astype(float))
        except ValueError:
            return f"{counted(len(unequal), 'cell')} of '{name}' differ", largest
        largest = max(largest, float(gaps.max(initial=0.0)))
        if largest > _ALIKE:
            return f"'{name}' differs by up to {largest:.3g}", largest
    return "", largest


def _lineage(said: Mapping[str, Any], experiment: Experiment, notebook: NotebookVersion) -> Lineage:
    score, runs = said["score"], said["runs"]
    return Lineage(
        competition=experiment.competition.name, runs=[one["name"] for one in runs],
        members=[{key: one[key] for key in ("run", "place", "member", "sha256")} for one in said["members"]],
        mean=said["mean"], combine={"name": said["combiner"]["name"], "weights": said["combiner"]["weights"]},
        thresholds=said["thresholds"], views=said["views"], format=said["format"], folds=runs[0]["folds"],
        hashes={one["name"]: one["training"] for one in runs}, commit=said["versions"].get("commit"),
        metric=score.get("metric") or said["metric"]["name"], maximise=bool(score.get("maximise", True)),
        score=score.get("score"), low=score.get("low"), high=score.get("high"), optimism=score.get("optimism"),
        notes=["what a notebook wrote for the public test set; the notebook is sent"],
        kernel={"owner": notebook.owner, "slug": notebook.slug, "version": notebook.version, "file": said["file"]},
    )  # fmt: skip


# -- without sending anything ----------------------------------------------------------------------------------------


def _dry(folder: Path, said: Mapping[str, Any], slug: str, options: PushOptions) -> dict[str, Any]:
    """Return every request of a push, in order; the owner and tokens are those that Kaggle would say."""
    owner, dataset, requests = "OWNER", _name_of(said), list[dict[str, Any]]()

    def add(method: str, body: Mapping[str, Any]) -> None:
        requests.append({"method": method, **body})

    add("GetCompetition", {"competitionName": slug})
    add("GetSubmissionLimits", {"competitionName": slug})
    if options.accelerator:
        add("GetAcceleratorQuotaStatistics", {})
    uploads = _uploads(folder, said)
    for number, one in enumerate(uploads, start=1):
        add("StartBlobUpload", {"type": "DATASET", "name": one.name, "contentLength": one.path.stat().st_size})
        add("PUT", {"url": f"ADDRESS-{number}", "bytes": one.path.stat().st_size})
    tokens = [{"token": f"TOKEN-{number}"} for number in range(1, len(uploads) + 1)]
    whose = {"ownerSlug": owner, "datasetSlug": dataset}
    add("GetDataset", whose)
    add("CreateDataset or CreateDatasetVersion", {**whose, "isPrivate": True, "files": tokens})
    add("GetDatasetStatus", whose)
    add("ListDatasetFiles", whose)
    add("SaveKernel", notebook_body(said, owner, dataset, options, tag="TAG"))
    kernel = {"userName": owner, "kernelSlug": dataset}
    add("GetKernelSessionStatus", kernel)
    add("ListKernelSessionOutput", kernel)
    return {"dataset": f"{owner}/{dataset}", "notebook": f"{owner}/{dataset}", "version": None, "file": None,
            "name": None, "difference": None, "requests": requests}  # fmt: skip
