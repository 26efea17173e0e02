"""Competitions made of data that comes with an installed package, so that the whole job runs without a download.

`digits` are the 1,797 handwritten digits of scikit-learn (8 x 8 pixels, 17 grey levels), written the way a
competition would hand them out. To add one, write a function that returns `Rows` and add a row to `_DATASETS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kbench import files
from kbench.errors import SourceError, nearest
from kbench.registry import register
from kbench.sources import Fetched, Progress, Source, Unserved
from kbench.sources.archive import merge, walk

_MANIFEST = ".kbench-manifest.json"
_SOLUTION = ".solution/solution.csv"


@dataclass(frozen=True)
class Rows:
    """Labelled images and which of them are the test set.

    Attributes:
        images: [N, H, W] uint8.
        labels: [N] class index.
        classes: class names.
        test: number of test rows, the classes in the proportions of all rows.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    test: int


def _digits() -> Rows:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # [N, 8, 8]
    return Rows(images, bunch.target.astype(np.int64), tuple("0123456789"), test=360)


_DATASETS: dict[str, Callable[[], Rows]] = {"digits": _digits}


@register("source")
def embedded(*, dataset: str = "digits") -> Source:
    """Write a data set of an installed package as a competition, graded on this machine.

    Args:
        dataset: `digits`.

    Raises:
        SourceError: there is no such data set.
    """
    if dataset not in _DATASETS:
        raise SourceError(
            f"there is no embedded data set '{dataset}'",
            f"one of {', '.join(_DATASETS)}",
            f"correct `source:` in the YAML; {nearest(dataset, _DATASETS)}",
        )
    data = _Embedded(dataset)
    return Unserved(data.fetch, data.solution, data.refusal)


@dataclass(frozen=True)
class _Embedded:
    """One of the embedded data sets.

    Attributes:
        dataset: a key of `_DATASETS`.
    """

    dataset: str

    def fetch(self, target: Path, *, files: Sequence[str], force: bool, progress: Progress) -> Fetched:
        """Write `train.csv`, `train/`, `test/`, `sample_submission.csv` and, kept apart, the solution.

        A second fetch compares checksums and writes only what is missing or, with `force`, was changed.

        Raises:
            SourceError: only some files are asked for.
            DataError: a file was changed and `force` is not given, or the disk cannot be written.
        """
        if files:
            raise SourceError(
                f"--file {' '.join(files)}: the embedded competition is small and written whole",
                "no --file",
                f"`kbench download {self.dataset}`",
            )
        _remove_link(target)
        known = _read_manifest(target / _MANIFEST)
        whole = bool(known) and all(_is(target / name, checksum) for name, checksum in known.items())
        new = 0 if whole and not force else _write(target, self.dataset, progress, replace=force)
        sizes = [size for _, size in walk(target)]
        return Fetched(files=len(sizes), bytes=sum(sizes), new=new)

    def solution(self, data: Path) -> Path:
        """Return the file with the true labels of the test rows and their `Usage`."""
        return data / _SOLUTION

    def refusal(self, what: str) -> SourceError:
        """Return the error for what only a service does."""
        return SourceError(
            f"{what}: '{self.dataset}' has no service",
            "its solution file, which `kbench submit` grades with",
            f"`kbench download {self.dataset} --force` writes the solution again",
        )


def _remove_link(target: Path) -> None:
    """Remove a link made for another source; what it points to stays as it is."""
    if target.is_symlink():
        files.remove(target)


def _read_manifest(path: Path) -> dict[str, str]:
    """Return name -> SHA-256 of the files written before; empty when there was no complete fetch."""
    return dict(files.read_json(path).get("sha256", {})) if path.is_file() else {}


def _write(target: Path, dataset: str, progress: Progress, *, replace: bool) -> int:
    """Write every file beside the target, then move what is missing or differs; the manifest comes last."""
    contents = _contents(_DATASETS[dataset]())
    checksums: dict[str, str] = {}
    with files.staging_folder(target) as folder:
        for done, (name, content) in enumerate(contents.items(), start=1):
            files.make_folder((folder / name).parent)
            files.write_new(folder / name, [content])
            checksums[name] = hashlib.sha256(content).hexdigest()
            progress(f"write {dataset}", done, len(contents))
        new = sum(not name.startswith(".") and not _is(target / name, checksums[name]) for name in contents)
        merge(folder, target, replace=replace)
    files.write_json(target / _MANIFEST, {"dataset": dataset, "sha256": checksums})
    return new


def _is(path: Path, checksum: str) -> bool:
    return path.is_file() and files.sha256(path) == checksum


def _contents(rows: Rows) -> dict[str, bytes]:
    """Return name -> content of every file of the competition."""
    order = _shuffled(len(rows.labels), "ids")  # ids say nothing about labels, origin or split
    in_test = _stratified(rows.labels, rows.test)
    width = len(str(len(order)))
    contents: dict[str, bytes] = {}
    train, sample, solution = ["id,label"], [",".join(["id", *rows.classes])], ["id,label,Usage"]
    evenly = [f"{1 / len(rows.classes):.6g}"] * len(rows.classes)
    usage = dict.fromkeys(rows.classes, 0)
    for number, row in enumerate(order):
        name, label = f"{number + 1:0{width}d}", rows.classes[rows.labels[row]]
        contents[f"{'test' if in_test[row] else 'train'}/{name}.png"] = _png(rows.images[row])
        if in_test[row]:
            usage[label] += 1
            sample.append(",".join([name, *evenly]))
            solution.append(f"{name},{label},{'Public' if usage[label] % 2 else 'Private'}")
        else:
            train.append(f"{name},{label}")
    for name, lines in (("train.csv", train), ("sample_submission.csv", sample), (_SOLUTION, solution)):
        contents[name] = ("\n".join(lines) + "\n").encode()
    return contents


def _shuffled(count: int, purpose: str) -> list[int]:
    """Return row numbers in an order without meaning, the same with every version of every library."""
    return sorted(range(count), key=lambda row: hashlib.sha256(f"kbench-{purpose}-{row}".encode()).digest())


def _stratified(labels: np.ndarray, count: int) -> np.ndarray:
    """Return [N] bool: `count` rows, the classes in the proportions of all rows (by largest remainders)."""
    exact = np.bincount(labels) * count / len(labels)
    quota = np.floor(exact).astype(int)
    quota[np.argsort(quota - exact, kind="stable")[: count - quota.sum()]] += 1
    order = np.array(_shuffled(len(labels), "split"))
    chosen = np.zeros(len(labels), dtype=bool)
    for label, size in enumerate(quota):
        chosen[order[labels[order] == label][:size]] = True
    return chosen


def _png(image: np.ndarray) -> bytes:
    import cv2

    done, encoded = cv2.imencode(".png", image)
    if not done:
        raise AssertionError("OpenCV encodes 8-bit grey PNGs")
    return bytes(encoded)
