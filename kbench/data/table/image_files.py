"""Which image files there are: every folder is listed once, however many rows ask for it.

Suffixes known here are only a help for YAMLs that name none; any other works when `suffix:` names it. To make
one more known, add it to `IMAGE_SUFFIXES`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
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


ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar", ".tar.bz2", ".tar.xz")
_BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True)
class MatchedFiles:
    """Files of some ids in one folder.

    Attributes:
        paths: path of each id's file relative to the root; where it is missing, the path it would have.
        missing: row numbers without a file.
        several: row numbers with several files of one name, in several folders or with different suffixes.
        example: a file that is there, for the message.
        there: paths of the files of the folders, relative to the root, where one is missing.
    """

    paths: list[str]
    missing: list[int]
    several: list[int]
    example: str
    there: set[str] = field(default_factory=set)


def stem(name: str) -> str:
    """Return a path without its image suffix; any other suffix stays (`scan.v2` is a name)."""
    base, suffix = os.path.splitext(name)
    return base if suffix.lower() in IMAGE_SUFFIXES else name


def clean(name: str) -> str:
    """Return a path with `/` between its parts and without `./` in front."""
    return name.replace("\\", "/").removeprefix("./")


def find_files(root: Path, folder: str, names: Sequence[str], *, suffix: str | None) -> MatchedFiles:
    """Find the file of each name in a folder, or in one of several.

    Args:
        root: the competition's data folder.
        folder: path below the root, empty for the root itself, or a pattern of folders; see `folders_of`.
        names: file names without `suffix`; they may have `/` in them.
        suffix: what the file names end with; None finds it: nothing if every name carries a known suffix, the
            one suffix of the folder's images, or, where there are several, the one of the file there is.

    Raises:
        DataError: the folder does not exist.
    """
    listings = [Listing(root / one, _prefix(one)) for one in folders_of(root, folder)]
    names = [clean(name) for name in names]
    if suffix is None:
        suffix = _detect_suffix(listings, names)
    files = MatchedFiles([], [], [], example=listings[0].example())
    prefix = _prefix(folder)
    for row, name in enumerate(names):
        paths = _paths_of(listings, name, suffix)
        if len(paths) > 1:
            files.several.append(row)
        elif not paths:
            files.missing.append(row)
        files.paths.append(paths[0] if paths else prefix + name + (suffix or ""))
    for listing in listings if files.missing else ():
        files.there.update(listing.prefix + name for name in listing.names())
    return files


def _paths_of(listings: Sequence[Listing], name: str, suffix: str | None) -> list[str]:
    """Return the paths below the root of the files a name may mean, in its sub-folder of each listing."""
    parent, _, base = name.rpartition("/")
    inside = f"{parent}/" if parent else ""
    if suffix is None:
        files = [(listing, file) for listing in listings for file in listing.stems(parent).get(base, ())]
    else:
        files = [(listing, base + suffix) for listing in listings if base + suffix in listing.names(parent)]
    return [f"{listing.prefix}{inside}{file}" for listing, file in files]


def _detect_suffix(listings: Sequence[Listing], names: Sequence[str]) -> str | None:
    if all(stem(name) != name for name in names):
        return ""
    parents = {name.rpartition("/")[0] for name in names}
    counts = Counter(suffix for listing in listings for parent in parents for suffix in listing.suffixes(parent))
    images = [suffix for suffix in counts if suffix.lower() in IMAGE_SUFFIXES]
    candidates = images or list(counts)
    return candidates[0] if len(candidates) == 1 else None


@dataclass(frozen=True)
class Listing:
    """The visible names below one folder, listed when first asked for.

    Attributes:
        folder: the folder.
        prefix: its path below the root, with `/` behind it.
    """

    folder: Path
    prefix: str = ""
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
    if not there_is:
        raise _no_folder(root, folder)
    return path


def _no_folder(root: Path, folder: str) -> DataError:
    there = [entry.name for entry in os.scandir(root)] if root.is_dir() else []
    packed = [name for name in there if name.lower().endswith(ARCHIVES) and name.startswith(folder.partition("/")[0])]
    todo = f"unpack '{packed[0]}' in that folder, such as with `tar -xf` or `unzip`" if packed else (
        f"correct `images:` in the YAML, or `kbench download`; "
        f"{nearest(folder, [name for name in there if (root / name).is_dir()])}"
    )  # fmt: skip
    return DataError(f"the image folder '{root / folder}' does not exist", f"a folder below '{root}'", todo)


def folders_of(root: Path, folder: str) -> list[str]:
    """Return the folders below the root that a name means: itself where it exists, else those that fit it as a pattern.

    `*` and `?` stand for signs of one folder's name, `**` for any folders below one another, `{a,b}` for one of several
    texts: `train_part_*`, `images/**`, `{first,second}`.

    Raises:
        DataError: there is none.
    """
    with _listing(root / folder):
        if (root / folder).is_dir():
            return [folder]
        folders = list(dict.fromkeys(path for one in _without_braces(folder) for path in _fitting(root, one)))
    if not folders:
        raise _no_folder(root, folder)
    return folders


def _without_braces(pattern: str) -> list[str]:
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    rest = _without_braces(pattern[match.end() :])
    return [pattern[: match.start()] + text.strip() + end for text in match[1].split(",") for end in rest]


def _fitting(root: Path, pattern: str) -> list[str]:
    """Return the sorted folders below the root that fit a pattern without braces."""
    places = [""]
    for part in [part for part in pattern.split("/") if part not in ("", ".")]:
        inner: list[str] = []
        for place in places:
            if part == "**":
                inner += [place, *(_joined(place, below) for below in _folders_below(root / place))]
            elif not set(part) & set("*?["):
                inner += [_joined(place, part)] if (root / place / part).is_dir() else []
            else:
                names = sorted(name for name in Listing(root / place).names() if fnmatch.fnmatchcase(name, part))
                inner += [_joined(place, name) for name in names if (root / place / name).is_dir()]
        places = inner
    return [place for place in dict.fromkeys(places) if place]


def _joined(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _folders_below(folder: Path) -> list[str]:
    """Return the sorted paths of all folders below one."""
    base = len(os.path.join(folder, ""))
    return sorted(parent[base:] for parent, _ in _walk(folder) if len(parent) > base)


def list_folders(root: Path, folder: str) -> list[str]:
    """Return the sorted names of the visible folders in a folder below the root."""
    path = folder_of(root, folder)
    with _listing(path):
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and _visible(entry.name))


def list_images(root: Path, folder: str, *, suffix: str | None) -> tuple[list[str], list[str], int]:
    """List the images of a folder and of the folders below it.

    Args:
        root: the competition's data folder.
        folder: path below the root, or a pattern of folders; see `folders_of`.
        suffix: keep file names with this ending; None keeps images of any known kind, or every file where
            there is no such image.

    Returns:
        Names relative to the folder and without suffix, sorted; the paths relative to the root in the same
        order; the number of other files.

    Raises:
        DataError: the folder does not exist.
    """
    folders = folders_of(root, folder)
    with _listing(root / folder):
        files = [(_prefix(one), file) for one in folders for file in _below(root / one)]
    if suffix is not None:
        kept = [(file.removesuffix(suffix) if suffix else file, prefix + file) for prefix, file in files
                if file.endswith(suffix)]  # fmt: skip
    else:
        kept = [(stem(file), prefix + file) for prefix, file in files if stem(file) != file]
        kept = kept or [(os.path.splitext(file)[0], prefix + file) for prefix, file in files]
    kept.sort()
    return [name for name, _ in kept], [path for _, path in kept], len(files) - len(kept)


def _prefix(folder: str) -> str:
    clean = os.path.normpath(folder) if folder else "."
    return "" if clean == "." else f"{clean}/"


def _raise(error: OSError) -> None:
    raise error  # a folder that may not be read is not one without images


def _below(folder: Path) -> Iterator[str]:
    base = len(os.path.join(folder, ""))
    for parent, names in _walk(folder):
        for name in names:
            if _visible(name):
                yield os.path.join(parent, name)[base:]


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every visible folder from one down with the names of its files."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if _visible(name)]
        yield parent, names
