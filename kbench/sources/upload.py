"""A file's bytes to a service's storage, at an address that was signed for it.

One call is one try: a repeat needs a new address, so the caller repeats both. To support storage that takes a
file in pieces, add a function beside `put`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import requests

from kbench.errors import ServiceError
from kbench.sources import faults

CHUNK = 1 << 16


def put(
    file: Path, url: str, *, doing: str, timeouts: tuple[float, float], progress: Callable[[int, int], None]
) -> None:
    """Send a file's bytes to a signed address, once, without any credentials.

    Args:
        file: not empty; read while it is sent.
        url: where storage takes it.
        doing: what is being done, for messages.
        timeouts: seconds to connect and to wait for an answer.
        progress: told after every block read.

    Raises:
        ServiceError: storage did not take it; `transient`, since a new address may work.
    """
    try:
        with open(file, "rb") as handle, requests.Session() as session:
            body = _Body(handle, file.stat().st_size, progress)
            response = session.put(url, data=body, auth=_nobody, timeout=timeouts, allow_redirects=False)
    except requests.RequestException as error:
        raise faults.explain(error, doing=doing, slug="") from None
    if response.status_code not in (200, 201):
        raise ServiceError(
            f"{doing}: storage did not take the file ({response.status_code})",
            "a file that is taken; nothing was submitted",
            "run the same command again in some minutes",
            kind="upload",
            transient=True,
            retry_after=faults.retry_after(response.headers),
        )


def _nobody(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request  # keeps `requests` from adding what ~/.netrc says


class _Body:
    """A file as `requests` streams it, telling how far it is."""

    def __init__(self, handle: IO[bytes], size: int, progress: Callable[[int, int], None]) -> None:
        self._handle, self._size, self._progress = handle, size, progress

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(CHUNK), b"")

    def read(self, size: int = -1) -> bytes:
        """Read a block; `requests` asks for them."""
        chunk = self._handle.read(max(size, CHUNK))
        self._progress(min(self._handle.tell(), self._size), self._size)
        return chunk
