"""Which image files there are: every folder is listed once, however many rows ask for it.

Suffixes known here are only a help for YAMLs that name none; any other works when `suffix:` names it. To make
one more known, add it to `IMAGE_SUFFIXES`.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kbench.errors import DataError, nearest

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".webp",
    ".jp2",
    ".ppm",
    ".pgm",
    ".npy",
)


@dataclass(frozen=True)
class Found:
    """Files of some ids in one folder.

    Attributes:
        paths: path of each id's file relative to the root; where it is missing, the path it would have.
        missing: row numbers without a file.
        several: row numbers with several files of one name and different suffixes.
        example: a file that is there, for the message.
    """

    paths: list[str]
    missing: list[int]
    several: list[int]
    example: str


def stem(name: str) -> str:
    """Return a path without its image suffix; any other suffix stays (`scan.v2` is a name)."""
    base, suffix = os.path.splitext(name)
    return base if suffix.lower() in IMAGE_SUFFIXES else name


def find_files(root: Path, folder: str, names: Sequence[str], *, suffix: str | None) -> Found:
    """Find the file of each name in a folder.

    Args:
        root: the competition's data folder.
        folder: path below the root; empty for the root itself.
        names: file names without `suffix`; they may have `/` in them.
        suffix: what the file names end with; None finds it: nothing if every name carries a known suffix, the
            one suffix of the folder's images, or, where there are several, the one of the file there is.

    Raises:
        DataError: the folder does not exist.
    """
    listing, prefix = Listing(folder_of(root, folder)), _prefix(folder)
    if suffix is None:
        suffix = _detect_suffix(listing, names)
    found = Found([], [], [], example=listing.example())
    for row, name in enumerate(names):
        parent, _, base = name.rpartition("/")
        if suffix is None:
            candidates = listing.stems(parent).get(base, [])
            file = candidates[0] if candidates else base
            if len(candidates) > 1:
                found.several.append(row)
            elif not candidates:
                found.missing.append(row)
        else:
            file = base + suffix
            if file not in listing.names(parent):
                found.missing.append(row)
        found.paths.append(prefix + (f"{parent}/{file}" if parent else file))
    return found


def _detect_suffix(listing: Listing, names: Sequence[str]) -> str | None:
    if all(stem(name) != name for name in names):
        return ""
    counts = Counter(
        suffix for parent in {name.rpartition("/")[0] for name in names} for suffix in listing.suffixes(parent)
    )
    images = [suffix for suffix in counts if suffix.lower() in IMAGE_SUFFIXES]
    candidates = images or list(counts)
    return candidates[0] if len(candidates) == 1 else None


@dataclass(frozen=True)
class Listing:
    """The visible names below one folder, listed when first asked for.

    Attributes:
        folder: the folder.
    """

    folder: Path
    _names: dict[str, set[str]] = field(default_factory=dict)
    _stems: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def names(self, parent: str = "") -> set[str]:
        """Return the names in a sub-folder; none when it does not exist."""
        if parent not in self._names:
            path = self.folder / parent
            with _listing(path):
                there = os.listdir(path) if path.is_dir() else []
            self._names[parent] = {name for name in there if _visible(name)}
        return self._names[parent]

    def example(self) -> str:
        """Return a sentence that names one of the files."""
        first = min(self.names(), default=None)
        return f"'{self.folder.name}' has files such as '{first}'" if first else f"'{self.folder}' is empty"

    def suffixes(self, parent: str = "") -> set[str]:
        """Return the distinct suffixes of a sub-folder's names."""
        return {suffix for name in self.names(parent) if (suffix := os.path.splitext(name)[1])}

    def stems(self, parent: str = "") -> dict[str, list[str]]:
        """Return stem -> sorted file names of a sub-folder; images alone where there are any."""
        if parent not in self._stems:
            names = self.names(parent)
            images = [name for name in names if stem(name) != name]
            stems: dict[str, list[str]] = {}
            for name in sorted(images or names):
                stems.setdefault(os.path.splitext(name)[0], []).append(name)
            self._stems[parent] = stems
        return self._stems[parent]


@contextlib.contextmanager
def _listing(path: Path) -> Iterator[None]:
    """Turn what keeps a folder from being listed into an error with a remedy."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"the folder '{error.filename or path}' cannot be listed: {error.strerror or error}",
            "a folder you may read",
            f"look at its permissions (`ls -ld '{path}'`), or name another folder in the YAML",
        ) from error


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def folder_of(root: Path, folder: str) -> Path:
    """Return a folder below the root.

    Raises:
        DataError: it does not exist.
    """
    path = root / folder
    with _listing(path):
        there_is = path.is_dir()
        there = [entry.name for entry in os.scandir(root) if entry.is_dir()] if root.is_dir() and not there_is else []
    if not there_is:
        raise DataError(
            f"the image folder '{path}' does not exist",
            f"a folder below '{root}'",
            f"correct `images:` in the YAML, or `kbench download`; {nearest(folder, there)}",
        )
    return path


def list_folders(root: Path, folder: str) -> list[str]:
    """Return the sorted names of the visible folders in a folder below the root."""
    path = folder_of(root, folder)
    with _listing(path):
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and _visible(entry.name))


def list_images(root: Path, folder: str, *, suffix: str | None) -> tuple[list[str], list[str], int]:
    """List the images of a folder and of the folders below it.

    Args:
        root: the competition's data folder.
        folder: path below the root.
        suffix: keep file names with this ending; None keeps images of any known kind, or every file where
            there is no such image.

    Returns:
        Names relative to the folder and without suffix, sorted; the paths relative to the root in the same
        order; the number of other files.

    Raises:
        DataError: the folder does not exist.
    """
    path = folder_of(root, folder)
    with _listing(path):
        files = list(_below(path))
    if suffix is not None:
        kept = [(file.removesuffix(suffix) if suffix else file, file) for file in files if file.endswith(suffix)]
    else:
        kept = [(stem(file), file) for file in files if stem(file) != file]
        kept = kept or [(os.path.splitext(file)[0], file) for file in files]
    kept.sort()
    prefix = _prefix(folder)
    return [name for name, _ in kept], [prefix + file for _, file in kept], len(files) - len(kept)


def _prefix(folder: str) -> str:
    clean = os.path.normpath(folder) if folder else "."
    return "" if clean == "." else f"{clean}/"


def _raise(error: OSError) -> None:
    raise error  # a folder that may not be read is not one without images


def _below(folder: Path) -> Iterator[str]:
    base = len(os.path.join(folder, ""))
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if _visible(name)]
        for name in names:
            if _visible(name):
                yield os.path.join(parent, name)[base:]
