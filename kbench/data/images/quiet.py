"""Keep off the terminal what image libraries write there by themselves.

libjpeg, libpng, libtiff and OpenCV write lines such as `Corrupt JPEG data` straight to file descriptor 2, past
Python. While an image is decoded that descriptor leads nowhere; what Python itself writes to the standard error of the
process goes on to where it went, from this thread and all others.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator

_STDERR = 2
_lock = threading.Lock()
_muting = 0  # threads that decode now
_terminal: int | None = None  # a copy of the descriptor, made once
_nowhere: int | None = None


@contextlib.contextmanager
def native_lines_muted() -> Iterator[None]:
    """Send descriptor 2 nowhere for the block, in however many threads at once."""
    global _muting
    with _lock:
        _muting += 1
        if _muting == 1 and _prepared():
            assert _nowhere is not None, "prepared above"
            os.dup2(_nowhere, _STDERR)
    try:
        yield
    finally:
        with _lock:
            _muting -= 1
            if _muting == 0 and _terminal is not None:
                os.dup2(_terminal, _STDERR)


def _prepared() -> bool:
    """Copy where descriptor 2 leads now, and let Python's own standard error write to the copy."""
    global _terminal, _nowhere
    try:
        if _terminal is None:
            _terminal = os.dup(_STDERR)
            with io.FileIO(os.devnull, "a") as nowhere:
                _nowhere = os.dup(nowhere.fileno())
        else:
            os.dup2(_STDERR, _terminal)  # it may lead elsewhere by now
    except OSError:
        return False  # a process without standard error has nothing to keep quiet
    stream = sys.stderr
    try:
        own = isinstance(stream, io.TextIOWrapper) and stream.fileno() == _STDERR
    except (OSError, ValueError):
        own = False
    if own:
        stream.flush()
        copy = io.BufferedWriter(io.FileIO(_terminal, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(copy, encoding=stream.encoding, errors=stream.errors, line_buffering=True)
    return True


def _restored() -> None:
    """Begin anew in a forked process, whose other threads are gone."""
    global _lock, _muting
    _lock = threading.Lock()
    if _muting and _terminal is not None:
        os.dup2(_terminal, _STDERR)
    _muting = 0


os.register_at_fork(after_in_child=_restored)
_prepared()  # before a progress bar puts itself in the place of the standard error
