"""Bytes from a service's storage, over connections that break.

`download` keeps what has arrived in `<name>.part` and a description of the remote file in `<name>.part.json`.
Every attempt asks for a fresh address, goes on where the last one ended (`Range`, and `If-Range` so that a changed
file starts over), hashes while it writes, and gives the file its name only when length and MD5 agree. Memory does
not grow with the file. Nothing here knows Kaggle: `connect` brings the answers. To check what arrives in one more
way, add it to `_vouch`.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import urllib.parse
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import requests

from kbench import files
from kbench.errors import DataError, ServiceError
from kbench.sources import archive
from kbench.sources.service import faults
from kbench.sources.service.protocol import Connect

CHUNK = 1 << 20
_STUCK = 6  # attempts in a row that bring no new byte
_CORRUPT = 3  # attempts whose content is wrong

Advance = Callable[[int, int], None]
"""Called as `progress(done, total)` with bytes; total is 0 while it is not known."""


@dataclass(frozen=True)
class Remote:
    """What an answer says of the whole file.

    Attributes:
        length: bytes on the wire; -1 when the answer does not say.
        validator: strong ETag or Last-Modified; empty: the file cannot be resumed.
        md5: of the bytes on the wire, base64; empty when the answer does not say.
        gzipped: the bytes on the wire are compressed, the file is not.
        name: last part of the final address.
    """

    length: int
    validator: str
    md5: str
    gzipped: bool
    name: str


@dataclass(frozen=True)
class Arrived:
    """A file that is there, whole.

    Attributes:
        bytes: its size.
        sha256: 64 hexadecimal digits.
        checked: what vouches for it: `md5`, `length`, `listing`, or `nothing`.
    """

    bytes: int
    sha256: str
    checked: str


class _Part:
    """The bytes that have arrived so far, with their hashes."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.part.json")
        self.remote = _read_note(self.note)
        self.size = 0
        self.md5, self.sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        if self.remote and self.remote.validator and self.path.is_file():
            with open(self.path, "rb") as handle:
                while chunk := handle.read(CHUNK):
                    self._count(chunk)
        else:
            self.discard()

    def _count(self, chunk: bytes) -> None:
        self.md5.update(chunk)
        self.sha256.update(chunk)
        self.size += len(chunk)

    def complete(self) -> bool:
        return self.remote is not None and self.size > 0 and self.size == self.remote.length

    def range(self) -> dict[str, str]:
        """Return the headers that ask for the rest only."""
        if not self.size or self.remote is None or not self.remote.validator:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self.remote.validator}

    def begin(self, remote: Remote) -> None:
        """Start over, for a remote file of this description."""
        self.discard()
        self.remote = remote
        files.write_json(self.note, asdict(remote))

    def append(self, chunks: Iterator[bytes], *, progress: Advance) -> None:
        assert self.remote is not None
        with files.appending(self.path, keep=self.size) as write:
            for chunk in chunks:
                write(chunk)
                self._count(chunk)
                progress(self.size, max(self.remote.length, 0))

    def discard(self) -> None:
        files.remove(self.path)
        files.remove(self.note)
        self.remote, self.size = None, 0
        self.md5, self.sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()


def _read_note(path: Path) -> Remote | None:
    try:
        return Remote(**files.read_json(path))
    except (DataError, TypeError):
        return None  # missing, half-written or of another version: start over


def download(
    path: Path,
    connect: Connect,
    *,
    doing: str,
    listed: int,
    sleep: Callable[[float], None],
    progress: Advance,
) -> Arrived:
    """Bring a file to `path`, resuming what an earlier call left; an existing file is replaced at the very end.

    Args:
        path: where the file goes; `<name>.part` beside it holds what has arrived.
        connect: asks for the file with the headers given, at a fresh address each time.
        doing: what is being done, for messages.
        listed: size the service lists; only decides when the answer tells neither length nor MD5. 0: not known.
        sleep: waits seconds.
        progress: told after every packet.

    Raises:
        ServiceError: refused for good, no new byte in several attempts, or the content is wrong several times.
        DataError: the disk is full.
    """
    part = _Part(path)
    most, stuck, wrong = part.size, 0, 0
    while True:
        try:
            if not part.complete():
                _attempt(part, connect, doing=doing, progress=progress)
            return _finish(part, path, doing=doing, listed=listed)
        except ServiceError as error:
            stuck = 1 if part.size > most else stuck + 1
            most = max(most, part.size)
            if error.kind == "corrupt":
                wrong += 1
                part.discard()
            wait = faults.pause(stuck, error)
            if not error.transient or stuck >= _STUCK or wrong >= _CORRUPT or wait > faults.LONGEST:
                raise
        sleep(wait)


def _attempt(part: _Part, connect: Connect, *, doing: str, progress: Advance) -> None:
    with connect(part.range()) as response:
        remote = _describe(response)
        if response.status_code == 206 and not _continues(part, response, remote):
            raise _corrupt(doing, "the rest that was sent does not continue what has arrived")
        if response.status_code != 206:
            part.begin(remote)
            _refuse_if_too_large(part.path, remote.length, doing=doing)
        part.append(_packets(response, doing=doing), progress=progress)
    if remote.length >= 0 and part.size < remote.length:
        raise ServiceError(
            f"{doing}: the connection ended after {part.size:,} of {remote.length:,} bytes",
            "a connection that delivers the whole file",
            "run the same command; what has arrived is kept",
            kind="network",
            transient=True,
        )


def _describe(response: requests.Response) -> Remote:
    headers = response.headers
    etag = headers.get("ETag", "")
    encoding = headers.get("Content-Encoding", "identity").lower()
    stored = headers.get("x-goog-stored-content-encoding", "identity").lower()
    unpacked_on_the_way = stored == "gzip" and encoding != "gzip"  # then the MD5 is of other bytes
    md5 = [part.strip()[4:] for part in headers.get("x-goog-hash", "").split(",") if part.strip().startswith("md5=")]
    return Remote(
        length=_length(response),
        validator=etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", ""),
        md5=md5[0] if md5 and not unpacked_on_the_way else "",
        gzipped=encoding == "gzip",
        name=urllib.parse.unquote(urllib.parse.urlsplit(response.url).path).rpartition("/")[2],
    )


def _length(response: requests.Response) -> int:
    span = response.headers.get("Content-Range", "").rpartition("/")[2]
    text = span if response.status_code == 206 else response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else -1


def _continues(part: _Part, response: requests.Response, remote: Remote) -> bool:
    """Return whether an answer is the rest of the very file of which a part has arrived."""
    begins = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    known = part.remote
    if known is not None and known.length < 0:
        known = part.remote = replace(known, length=remote.length)  # the first answer did not say
    return known == remote and begins == str(part.size)


def _refuse_if_too_large(path: Path, length: int, *, doing: str) -> None:
    free = files.free_bytes(path.parent)
    if length > free:
        raise DataError(
            f"{doing}: it has {length / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in '{path.parent}'",
            "room for the file",
            "free some space, or move the data with KBENCH_DATA, then run the same command",
        )


def _packets(response: requests.Response, *, doing: str) -> Iterator[bytes]:
    """Yield what arrives as it arrives, undecoded: little is lost when the connection breaks."""
    while True:
        try:
            chunk = response.raw.read1(CHUNK, decode_content=False)
        except Exception as error:  # urllib3's and the socket's own
            raise faults.explain(error, doing=doing, slug="") from None
        if not chunk:
            return
        yield chunk


def _finish(part: _Part, path: Path, *, doing: str, listed: int) -> Arrived:
    remote = part.remote
    assert remote is not None
    checked = _vouch(part, remote, doing=doing, listed=listed)
    if remote.gzipped and not path.name.endswith(".gz"):
        return _unwrap(part, path, _gunzipped(part.path, doing=doing), checked=checked)
    if remote.name == f"{path.name}.zip":  # some files are handed out as a zip of that one file
        chunks = _only_member(part.path, doing=doing)
        if chunks is not None:
            return _unwrap(part, path, chunks, checked=checked)
    arrived = Arrived(part.size, part.sha256.hexdigest(), checked)
    files.move(part.path, path)
    part.discard()
    return arrived


def _vouch(part: _Part, remote: Remote, *, doing: str, listed: int) -> str:
    """Return what vouches for the content; raise when it is wrong."""
    checksum = b64encode(part.md5.digest()).decode()
    if remote.md5:
        if checksum != remote.md5:
            raise _corrupt(doing, f"the content has MD5 {checksum}, the service says {remote.md5}")
        return "md5"
    if remote.length >= 0:
        return "length"
    if part.size < listed:
        raise _corrupt(doing, f"{part.size:,} bytes came, the service lists {listed:,}")
    return "listing" if listed else "nothing"


def _gunzipped(path: Path, *, doing: str) -> Iterator[bytes]:
    try:
        with gzip.open(path) as handle:
            while chunk := handle.read(CHUNK):
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise _corrupt(doing, f"it cannot be unpacked ({error})") from error


def _only_member(path: Path, *, doing: str) -> Iterator[bytes] | None:
    """Return the content of the one file in a zip, or None when it is no zip of one file."""
    try:
        with archive.open_zip(path) as opened:
            members = list(itertools.islice(archive.members(opened), 2))
    except DataError:
        return None  # the service's name misleads: the content is kept as it is
    return _unzipped(path, members[0], doing=doing) if len(members) == 1 else None


def _unzipped(path: Path, member: archive.Member, *, doing: str) -> Iterator[bytes]:
    try:
        with archive.open_zip(path) as opened:
            yield from archive.content(opened, member)
    except DataError as error:
        raise _corrupt(doing, error.what) from error


def _unwrap(part: _Part, path: Path, chunks: Iterator[bytes], *, checked: str) -> Arrived:
    with files.replacing(path) as temporary:
        files.write_new(temporary, chunks)
    part.discard()
    return Arrived(path.stat().st_size, files.sha256(path), checked)


def _corrupt(doing: str, why: str) -> ServiceError:
    return ServiceError(
        f"{doing}: {why}",
        "the file as the service holds it",
        "run the same command; if it goes on, a proxy or a virus scanner changes what passes",
        kind="corrupt",
        transient=True,
    )
