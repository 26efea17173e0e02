"""The only door through which kbench writes to disk.

Whole files are written under a temporary name in the same folder, synced, and renamed: a reader sees the old
file or the new one, never half of one. What consists of several files (weights and their description, an array
and its index) gets a JSON with checksums that is written last (`seal`); what has no valid JSON does not exist.

To add a way of writing, add a function here; a test keeps every other module from opening files for writing.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from kbench import processes
from kbench.errors import DataError, KbenchError

_TEMPORARY = ".tmp-"
_OF_SAFETENSORS = ".tmp" + 6 * "[A-Za-z0-9]"  # what safetensors itself writes before it gives a file its name


_fences: dict[Path, tuple[int, Callable[[], None]]] = {}  # folder -> whose process, what is asked before each change


@contextlib.contextmanager
def fenced(folder: Path, ask: Callable[[], None]) -> Iterator[None]:
    """Have this process call `ask` before it changes anything in a folder, for the block; an error stops the change."""
    _fences[folder] = os.getpid(), ask
    try:
        yield
    finally:
        del _fences[folder]


def _ask(path: Path) -> None:
    for folder, (process, ask) in _fences.items():
        if process == os.getpid() and Path(path).is_relative_to(folder):
            ask()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block succeeds, sync it and rename it to `path`.

    The block writes the temporary file by any means (`numpy.save`, `pandas.DataFrame.to_csv`, OpenCV).
    When the block fails nothing of `path` changes and the temporary file is removed. The temporary name keeps
    the suffixes of `path`, since libraries choose a format by them. Where `path` is a link the link is replaced;
    what it points to stays as it is.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}.{processes.host()}-{os.urandom(4).hex()}-{path.name}")
    try:
        make_folder(path.parent)
        _remove_leftovers(path.parent)
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        _ask(path)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporaries(path: Path) -> None:
    """Remove what killed processes left of files they were writing; only for who holds the lock on them.

    Args:
        path: the file, or its folder for all files in it.
    """
    folder, name = (path, "*") if path.is_dir() else (path.parent, glob.escape(path.name))
    for leftover in folder.glob(f"{_TEMPORARY}[0-9]*-{name}"):
        remove(leftover)
    for leftover in folder.glob(_OF_SAFETENSORS) if path.is_dir() else ():
        remove(leftover)


@functools.cache
def _remove_leftovers(folder: Path) -> None:
    """Remove what killed commands left half written in a folder: once for each folder a process writes to."""
    for path in processes.leftovers(folder, _TEMPORARY):
        with contextlib.suppress(OSError):
            path.unlink()


def _write_error(path: Path, error: OSError) -> KbenchError:
    free = free_bytes(path.parent)
    other = error.filename if error.filename and Path(str(error.filename)).name.find(path.name) < 0 else None
    return DataError(
        f"cannot write '{path}': {error.strerror or error}" + (f" ('{other}')" if other else ""),
        f"a writable folder with free space ({free / 1e9:.2f} GB are free there)",
        "free some space or move the folder (KBENCH_DATA, KBENCH_RUNS), then run the same command again",
    )


def _there(folder: Path) -> Path:
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def free_bytes(folder: Path) -> int:
    """Return the bytes free on the disk of `folder`, which need not exist yet."""
    return shutil.disk_usage(_there(folder)).free


def free_files(folder: Path) -> int | None:
    """Return how many more files the disk of `folder` can take; None where it does not say."""
    status = os.statvfs(_there(folder))
    return status.f_favail if status.f_files else None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; return it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(path, error) from error
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a whole file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a whole UTF-8 file atomically, with Unix line ends on every machine."""
    return write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> Path:
    """Write JSON atomically, indented, keys in the order given."""
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"cannot read '{path}': {error}",
            "a JSON file written by kbench",
            f"delete '{path}' and run the command that makes it again",
        ) from error


def append_line(path: Path, line: str) -> None:
    """Append one line and sync it; a line half written by a crash is cut by `keep_lines`."""
    _ask(path)
    try:
        with open(path, "a", encoding="utf-8") as handle:
            handle.write(line.rstrip("\n") + "\n")
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise _write_error(path, error) from error


def open_log(path: Path) -> IO[str]:
    """Open a text file for appending, such as the standard error of a child process."""
    make_folder(path.parent)
    try:
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        raise _write_error(path, error) from error


def read_lines(path: Path) -> list[str]:
    """Return the complete lines of a file, none when it is missing."""
    if not path.exists():
        return []
    text = path.read_bytes().decode("utf-8", "replace")
    return text.split("\n")[:-1]  # `splitlines` would cut at characters that JSON may hold, such as U+2028


def keep_lines(path: Path, count: int) -> None:
    """Keep only the first `count` complete lines of a file."""
    lines = read_lines(path)
    kept = lines[:count]
    if path.exists() and path.stat().st_size != sum(len(line.encode()) + 1 for line in kept):
        write_text(path, "".join(line + "\n" for line in kept))


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there."""
    _ask(path)
    try:
        if path.is_dir() and not path.is_symlink():
            doomed = path.with_name(f"{_TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}-{path.name}")
            os.replace(path, doomed)  # a half-removed folder is never seen under its own name
            shutil.rmtree(doomed)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise _write_error(path, error) from error


def move(source: Path, target: Path) -> None:
    """Rename a file or folder on one disk; an existing target file is replaced."""
    _ask(target)
    make_folder(target.parent)
    try:
        os.replace(source, target)
    except OSError as error:
        raise _write_error(target, error) from error


def copy(source: Path, target: Path) -> Path:
    """Copy a file atomically."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


def write_exclusively(path: Path, content: Any) -> bool:
    """Write JSON that nobody has written yet, even at this moment; return whether it was this process that wrote it."""
    make_folder(path.parent)
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}-{path.name}")
    try:
        temporary.write_text(compact_json(content), encoding="utf-8")
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def appending(path: Path, *, keep: int) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that appends bytes to a file cut to its first `keep` bytes, such as a `.part` file.

    What was written is synced when the block ends, by an error too: the next attempt goes on from there.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    make_folder(path.parent)
    try:
        handle = open(path, "ab", buffering=0)  # noqa: SIM115 (closed below; a buffer would fail on closing)
        handle.truncate(keep)
    except OSError as error:
        raise _write_error(path, error) from error

    def write(chunk: bytes) -> None:
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[handle.write(rest) :]
        except OSError as error:
            raise _write_error(path, error) from error

    try:
        yield write
    finally:
        try:
            os.fsync(handle.fileno())
        except OSError as error:
            raise _write_error(path, error) from error
        finally:
            handle.close()


def link_folder(path: Path, to: Path) -> Path:
    """Make `path` a symbolic link to a folder or a file, replacing a link or an empty folder; return it.

    Raises:
        DataError: something else is there, or the folder cannot be written.
    """
    make_folder(path.parent)
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{os.urandom(4).hex()}-{path.name}")
    try:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        temporary.symlink_to(to, target_is_directory=True)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _write_error(path, error) from error
    return path


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which must not exist; rename it when the block succeeds, or remove it."""
    make_folder(path.parent)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder of the system's, removed when the block ends."""
    with tempfile.TemporaryDirectory(prefix="kbench-") as folder:
        yield Path(folder)


class Spool:
    """Bytes put aside on the system's disk for scratch files, gone with the last reference to this or to a reader."""

    def __init__(self) -> None:
        self._handle = tempfile.TemporaryFile(prefix="kbench-", buffering=0)  # noqa: SIM115 (closed below)
        self._end = 0
        weakref.finalize(self, self._handle.close)

    def put(self, content: bytes) -> Callable[[], bytes]:
        """Write bytes; return the function that reads them again.

        Raises:
            DataError: the disk is full.
        """
        start, rest = self._end, memoryview(content)
        try:
            while rest:
                rest = rest[self._handle.write(rest) :]
        except OSError as error:
            raise DataError(
                f"cannot put aside {len(content):,} bytes in '{tempfile.gettempdir()}': {error.strerror or error}",
                "free space for what is being written",
                "free some space, or name another folder with `TMPDIR=FOLDER kbench ...`",
            ) from error
        self._end += len(content)
        return lambda: os.pread(self._handle.fileno(), len(content), start)


@contextlib.contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, held by one process at a time and removed afterwards.

    What is finished in it is moved to `path` with `move`. What a killed process left in it is removed first. Raises
    `DataError` where the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    with lock(path.with_name(f"{_TEMPORARY}{path.name}.lock")):
        remove(temporary)
        make_folder(temporary)
        try:
            yield temporary
        except OSError as error:
            raise _write_error(path, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_new(path: Path, chunks: Iterable[bytes]) -> int:
    """Write a new file inside a folder that is not yet in its place; return its size.

    Nothing is synced: `sync_disk` does that once for the whole folder.

    Raises:
        FileExistsError: there is a file of this name.
        OSError: it cannot be written; `staging_folder` turns that into a message.
    """
    size = 0
    with open(path, "xb") as handle:
        for chunk in chunks:
            size += handle.write(chunk)
    return size


def sync_disk() -> None:
    """Write everything that is still in memory to the disks: once, instead of once per small file."""
    os.sync()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def compact_json(content: Any) -> str:
    """Return JSON on one line, keys sorted."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest(content: Any) -> str:
    """Return 16 hexadecimal digits that identify JSON-like content, whatever the order of its keys."""
    return hashlib.sha256(compact_json(content).encode()).hexdigest()[:16]


def create_npy(path: Path, shape: tuple[int, ...], dtype: str) -> Any:
    """Return a new zeroed memory map in an `.npy` file, written in place; it counts only once it is sealed.

    Raises:
        DataError: the disk has not the space for it.
    """
    import numpy

    _ask(path)
    path.unlink(missing_ok=True)
    array = None
    try:
        array = numpy.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        with open(path, "r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)  # a full disk fails here, not in the map
    except OSError as error:
        del array
        path.unlink(missing_ok=True)
        raise _write_error(path, error) from error
    return array


def sync(array: Any) -> None:
    """Write a memory map's pages to disk."""
    array.flush()


@contextlib.contextmanager
def lock(path: Path, *, waiting: str | None = None, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock between processes for the block; the system frees it when a process dies.

    Args:
        path: the lock file; it stays behind and holds the number of the process that held it last.
        waiting: when given, do not wait: raise an error with this as its remedy.
        on_wait: called once where another process holds it, before waiting for it.

    Raises:
        Busy: another process holds it, and `waiting` is given.
        NoLocks: the file system has none.
        DataError: the folder cannot be written.
    """
    make_folder(path.parent)
    try:
        handle = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise _write_error(path, error) from error
    with handle:
        try:
            processes.take(handle, on_wait, wait=not waiting)
        except BlockingIOError as error:
            raise processes.busy(path, handle, waiting or "") from error
        except OSError as error:
            if error.errno in processes.NO_FLOCK:
                raise processes.no_locks(path, error) from error
            raise _write_error(path, error) from error
        with contextlib.suppress(OSError):  # a full disk keeps nobody from holding it
            handle.truncate(0)
            handle.write(str(os.getpid()).encode())
        yield
