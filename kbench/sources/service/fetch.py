"""A competition's files from a service into a data folder: everything in one archive, or the files asked for.

Whatever happens on the way, the next call goes on from there, and what is recorded as fetched is not fetched again
(`manifest.py`). On a machine where the service mounts the data itself, the data is used in place. To fetch from
another service, implement `Service`.
"""

from __future__ import annotations

import fnmatch
import glob
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbench import files
from kbench.errors import DataError, ServiceError, SourceError, nearest
from kbench.sources import Fetched, Progress, archive
from kbench.sources.names import one_place, tells_case
from kbench.sources.service import download
from kbench.sources.service.manifest import Manifest
from kbench.sources.service.protocol import Connect, DataFile, Service

REQUEST_BYTES = 2_000_000
"""One request costs about the time of so many bytes; many small files come faster in the archive of all."""

Sleep = Callable[[float], None]
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")


def fetch(
    service: Service,
    target: Path,
    *,
    asked: Sequence[str],
    force: bool,
    nested: bool,
    mounted: Path,
    progress: Progress,
    sleep: Sleep,
) -> Fetched:
    """Bring a competition's files into `target`; what is there and whole is not fetched again.

    Args:
        service: where they come from.
        target: the data folder; made when missing, a link to a folder is followed.
        asked: names or patterns of files, such as `train/*`; none for all.
        force: fetch anew, and overwrite files that differ.
        nested: unpack zips inside too (`archive.unpack`).
        mounted: the folder under which the service mounts data in its own notebooks.
        progress: told bytes.
        sleep: waits seconds.

    Raises:
        SourceError: no such file, or the service refused (`ServiceError`).
        DataError: the disk is full, an archive is unsafe, or a file of the user's own is in the way.
    """
    place = _mounted_place(mounted, service.slug)
    if place is not None:
        return _use_in_place(place, target)
    asked = tuple(sorted(set(asked)))
    manifest = Manifest(target.resolve())
    with files.lock(manifest.store / "lock", waiting="wait for the other `kbench download` to end"):
        waiting = manifest.read("pending") is not None  # an earlier call brought it and could not put it in place
        new = manifest.adopt(replace=force)
        if (force and not waiting) or manifest.holds(asked) is None:
            if force:
                manifest.clear()
            _bring(service, manifest, asked, nested=nested, progress=progress, sleep=sleep)
            new += manifest.adopt(replace=force)
        here = manifest.count()
        return Fetched(here.files, here.bytes, new)


def _mounted_place(mounted: Path, slug: str) -> Path | None:
    return next((place for place in (mounted / slug, mounted / "competitions" / slug) if place.is_dir()), None)


def _use_in_place(place: Path, target: Path) -> Fetched:
    if target.resolve() != place.resolve():
        if target.exists() and not target.is_symlink() and (not target.is_dir() or any(target.iterdir())):
            raise SourceError(
                f"'{target}' is in the way of the data in '{place}'",
                "no folder there, so that it can become a link to the data this notebook already has",
                f"move '{target}' elsewhere, then run the same command",
            )
        files.link_folder(target, place)
    sizes = [size for _, size in archive.walk(place)]
    return Fetched(len(sizes), sum(sizes), 0)


def _bring(
    service: Service, manifest: Manifest, asked: tuple[str, ...], *, nested: bool, progress: Progress, sleep: Sleep
) -> None:
    """Download and stage what is asked for."""
    listed = service.files() if asked else []
    chosen = _choose(listed, asked, slug=service.slug)
    if not asked or _bundle_is_faster(chosen, listed):
        only = _patterns_inside(chosen, asked)
        checked = _bring_bundle(service, manifest, only, nested=nested, progress=progress, sleep=sleep)
    else:
        checked = _bring_files(service, manifest, chosen, nested=nested, progress=progress, sleep=sleep)
    manifest.stage(asked=asked, checked=checked, source=f"kaggle {service.slug}", progress=progress)


def _choose(listed: list[DataFile], asked: tuple[str, ...], *, slug: str) -> list[DataFile]:
    """Return the files that match a pattern.

    Raises:
        SourceError: a name or pattern matches nothing.
    """
    for pattern in asked:
        if not any(_matches(file, pattern) for file in listed):
            raise SourceError(
                f"'{slug}' has no file '{pattern}'",
                f"names or patterns of its {len(listed):,} files, such as `train/*`",
                f"{nearest(pattern, [file.name for file in listed[:5000]])[:300]} (`kbench download` alone brings all)",
            )
    return [file for file in listed if any(_matches(file, pattern) for pattern in asked)]


def _matches(file: DataFile, pattern: str) -> bool:
    name, pattern = (unicodedata.normalize("NFC", text) for text in (file.name, pattern))
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _bundle_is_faster(chosen: list[DataFile], listed: list[DataFile]) -> bool:
    size, everything = (sum(file.bytes for file in some) for some in (chosen, listed))
    return len(chosen) > 1 and size + (len(chosen) - 1) * REQUEST_BYTES > everything


def _patterns_inside(chosen: list[DataFile], asked: tuple[str, ...]) -> tuple[str, ...]:
    """Return patterns for the archive of all, where zips inside are unpacked and brackets in names are patterns."""
    exact = {file.name for file in chosen}
    patterns = [glob.escape(text) if text in exact else text for text in asked]
    inner = [glob.escape(file.name[:-4]) for file in chosen if file.name.lower().endswith(".zip")]
    return (*patterns, *inner, *(f"{name}/*" for name in inner))


@dataclass
class _Bar:
    """Tells the progress of one file among others, and why nothing happens while a service asks to wait."""

    progress: Progress
    what: str
    before: int = 0
    total: int = 0
    last: tuple[int, int] = (0, 0)

    def advance(self, done: int, total: int) -> None:
        self.last = (self.before + done, max(self.total or total, self.before + done if total else 0))
        self.progress(self.what, *self.last)

    def telling(self, sleep: Sleep) -> Sleep:
        def tell_and_sleep(seconds: float) -> None:
            self.progress(f"{self.what}: again in {seconds:.0f} s", *self.last)
            sleep(seconds)

        return tell_and_sleep


def _bring_bundle(
    service: Service, manifest: Manifest, only: tuple[str, ...], *, nested: bool, progress: Progress, sleep: Sleep
) -> str:
    bundle = manifest.got / f"{service.slug}.zip"
    checked = "nothing"  # known only of what is downloaded now
    if not bundle.exists():
        checked = _download(bundle, service.open_bundle(), _Bar(progress, f"download {bundle.name}"), sleep=sleep)
    _unpack(bundle, manifest.new, only, nested=nested, checked=checked, progress=progress)
    return checked


def _download(path: Path, connect: Connect, bar: _Bar, *, sleep: Sleep, listed: int = 0) -> str:
    """Download a file; return what vouches for it."""
    tell = bar.telling(sleep)
    return download.download(path, connect, doing=bar.what, listed=listed, sleep=tell, progress=bar.advance).checked


def _bring_files(
    service: Service, manifest: Manifest, chosen: list[DataFile], *, nested: bool, progress: Progress, sleep: Sleep
) -> str:
    total, before, checks = sum(file.bytes for file in chosen), 0, []
    for file in _checked_names(chosen, one_case=not tells_case(files.make_folder(manifest.new))):
        staged, got = manifest.new / file.name, manifest.got / file.name
        checked = "nothing"  # known only of what is downloaded now
        if not staged.exists() and not got.exists():
            bar = _Bar(progress, f"download {file.name}", before, total)
            checked = _download(got, service.open_file(file.name), bar, sleep=sleep, listed=file.bytes)
            checks.append(checked)
        if nested and file.name.lower().endswith(".zip"):
            files.remove(manifest.one)
            _unpack(got, manifest.one, (), nested=True, checked=checked, progress=progress)
            archive.merge(manifest.one, manifest.new / _own_folder(got, file.name), replace=True)
        elif got.exists():
            files.move(got, staged)
        before += file.bytes
    return min(checks, key=("nothing", "listing", "length", "md5").index, default="nothing")


def _unpack(
    zipped: Path, folder: Path, only: tuple[str, ...], *, nested: bool, checked: str, progress: Progress
) -> None:
    try:
        archive.unpack(zipped, folder, progress=progress, nested=nested, only=only)
    except DataError:
        if checked != "md5":  # it may have been damaged on its way: the next call fetches it anew
            files.remove(zipped)
        raise


def _own_folder(zipped: Path, name: str) -> str:
    """Return where a zip of the listing goes: `train.zip` into `train/`, or beside itself when that is all it holds."""
    with archive.open_zip(zipped) as opened:
        tops = {member.name.split("/")[0] for member in archive.members(opened)}
    return name.rpartition("/")[0] if tops == {zipped.stem} else name[: -len(".zip")]


def _checked_names(chosen: list[DataFile], *, one_case: bool) -> list[DataFile]:
    """Return the files when all names can be paths below the data folder.

    Args:
        chosen: the files.
        one_case: names that differ by case alone would be one file.

    Raises:
        ServiceError: a name leads outside the folder, or two names are one to a file system.
    """
    seen: dict[str, str] = {}
    for file in chosen:
        parts = file.name.split("/")
        other = seen.setdefault(one_place(file.name, one_case=one_case), file.name)
        if any(part in ("", ".", "..") for part in parts) or parts[0] == ".download" or _UNSAFE.search(file.name):
            raise _bad_name(
                f"the service lists a file named {file.name!r}", "a plain path inside the competition's data"
            )
        if other != file.name:
            raise _bad_name(f"'{other}' and '{file.name}' would be one file here", "names that this disk tells apart")
    return chosen


def _bad_name(what: str, expected: str) -> ServiceError:
    todo = "name the files you want with `--file`, without this one"
    return ServiceError(what, expected, todo, kind="protocol")
