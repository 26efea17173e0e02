"""Files to Kaggle's storage, in pieces where the connection breaks: what arrived is asked for, the rest is sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import requests

from kbench.errors import ServiceError
from kbench.sources.service import faults

_TRIES = 6
_CHUNK = 1 << 20


def put_resumable(
    file: Path, url: str, *, doing: str, timeouts: tuple[float, float], sleep: Callable[[float], None]
) -> None:
    """Send a file to a signed address without credentials; a broken connection goes on where storage was.

    Args:
        file: read while it is sent.
        url: where storage takes it.
        doing: what is being done, for messages.
        timeouts: seconds to connect and to wait for an answer.
        sleep: waits seconds.

    Raises:
        ServiceError: storage did not take it; `transient`, since a new address may work.
    """
    total, start, failures = file.stat().st_size, 0, 0
    with requests.Session() as session:
        session.trust_env = False  # keeps `requests` from adding what ~/.netrc says
        while True:
            try:
                response = _put(session, file, url, start, total, timeouts)
                if response.status_code in (200, 201):
                    return
                if response.status_code != 503:
                    raise _refused(doing, response)
                error: Exception = _refused(doing, response)
            except requests.RequestException as broken:
                error = broken
            failures += 1
            if failures >= _TRIES:
                raise error if isinstance(error, ServiceError) else faults.explain(error, doing=doing, slug="")
            sleep(min(2.0**failures, 30.0))
            start = _arrived(session, url, total, timeouts, start)
            if start == total:
                return


def _put(
    session: requests.Session, file: Path, url: str, start: int, total: int, timeouts: tuple[float, float]
) -> requests.Response:
    headers = {"Content-Length": str(total - start)}
    if start:
        headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
    with open(file, "rb") as handle:
        handle.seek(start)
        body = iter(lambda: handle.read(_CHUNK), b"")
        request = session.prepare_request(requests.Request("PUT", url, data=body, headers=headers))
        request.headers.pop("Transfer-Encoding", None)
        request.headers["Content-Length"] = str(total - start)
        return session.send(request, timeout=timeouts, allow_redirects=False)


def _arrived(session: requests.Session, url: str, total: int, timeouts: tuple[float, float], before: int) -> int:
    """Return how many bytes storage has; as many as before where it does not say."""
    try:
        response = session.put(url, headers={"Content-Range": f"bytes */{total}", "Content-Length": "0"},
                               timeout=timeouts, allow_redirects=False)  # fmt: skip
    except requests.RequestException:
        return before
    if response.status_code in (200, 201):
        return total
    known = response.headers.get("Range", "")
    if response.status_code == 308:
        return int(known.rpartition("-")[2]) + 1 if known else 0
    return 0


def _refused(doing: str, response: requests.Response) -> ServiceError:
    return ServiceError(
        f"{doing}: storage did not take the file ({response.status_code})", "a file that is taken",
        "run the same command again in some minutes", kind="upload", transient=True,
        retry_after=faults.retry_after(response.headers),
    )  # fmt: skip
