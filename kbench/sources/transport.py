"""How requests leave this machine: where to, and how long they may take.

`limit` gives a `requests` session time limits, which the Kaggle client does not set, and what a resumed download
needs. To change how storage is asked, change `Transport.send`.
"""

from __future__ import annotations

import ipaddress
import os
import urllib.parse
from collections.abc import Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from kbench.errors import ConfigError, ServiceError

TIMEOUTS = (10.0, 60.0)
"""Seconds to connect, and between two arriving packets."""

_TYPE = "X-Kbench-Content-Type"


def endpoint() -> str | None:
    """Return the address of a stand-in for Kaggle on this machine (`KBENCH_KAGGLE_URL`), or None for Kaggle.

    Raises:
        ConfigError: the address is not of this machine: it would receive the account's token.
    """
    url = os.environ.get("KBENCH_KAGGLE_URL", "")
    if not url:
        return None
    try:
        parts = urllib.parse.urlsplit(url)
        loopback = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "").is_loopback
        valid = loopback and parts.scheme == "http" and "@" not in parts.netloc and bool(parts.port)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(
            f"KBENCH_KAGGLE_URL is '{url}'",
            "http://127.0.0.1:PORT or http://localhost:PORT: it receives the sign-in, so it must be this machine",
            "unset KBENCH_KAGGLE_URL to use Kaggle",
        )
    return url.rstrip("/")


class Transport(HTTPAdapter):
    """Time limits for every request; for GET, which only storage is asked with, what a resumed download needs.

    Storage is asked for the bytes as they are. Its answer loses its content type, since the SDK would read a data
    file that is JSON as an answer of Kaggle's.
    """

    def __init__(self, timeouts: tuple[float, float], headers: Mapping[str, str]) -> None:
        super().__init__()
        self._timeouts, self._headers = timeouts, headers

    def send(self, request: requests.PreparedRequest, *args: Any, **settings: Any) -> requests.Response:
        """Send one request; `requests` calls this."""
        settings["timeout"] = settings.get("timeout") or self._timeouts
        if request.method == "GET":
            request.headers.update({"Accept-Encoding": "identity", **self._headers})
        response = super().send(request, *args, **settings)
        if request.method == "GET":
            response.headers[_TYPE] = response.headers.get("Content-Type", "")
            response.headers["Content-Type"] = "application/octet-stream"
        return response


def limit(session: requests.Session, timeouts: tuple[float, float], headers: Mapping[str, str]) -> None:
    """Give a session time limits and its requests for files these headers."""
    for scheme in ("http://", "https://"):
        session.mount(scheme, Transport(timeouts, headers))


def refuse_page(response: requests.Response, name: str, *, doing: str) -> None:
    """Raise when what came in place of a file is a web page, such as a log-in page of the network.

    Args:
        response: the answer to a request for a file.
        name: the file asked for; one that is a page may come as one.
        doing: what is being done, for messages.

    Raises:
        ServiceError: it is a page.
    """
    kind = response.headers.get(_TYPE) or response.headers.get("Content-Type", "")
    if "text/html" in kind and not name.lower().endswith((".html", ".htm")):
        raise ServiceError(
            f"{doing}: a web page came in place of the file",
            "the file itself",
            "check that no log-in page or proxy of the network answers in Kaggle's place",
            kind="protocol",
            transient=True,
        )
