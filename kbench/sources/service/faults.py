"""What goes wrong between this machine and a competition service, each with its own message and remedy.

`explain` turns whatever the client or the network raised into a `ServiceError` of a stable kind; no message holds
an address that was signed, a token or a key. `persist` repeats what may succeed later. To tell a new answer of
the service apart, add a row to `_STATUS` or `_FORBIDDEN`.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import requests
import urllib3.exceptions

from kbench.errors import ServiceError

SITE = "https://www.kaggle.com"
TRIES = 4
LONGEST = 900.0
"""Seconds; a service that asks to wait longer ends the command instead."""

_T = TypeVar("_T")

# status -> kind, what the service means by it, what would have been right, what to do; `{slug}` is filled in
_STATUS: dict[int, tuple[str, str, str, str]] = {
    400: (
        "rejected",
        "Kaggle rejected the request",
        "a request the competition takes now (open, joined, within its limits)",
        f"read the reason above and {SITE}/competitions/{{slug}}",
    ),
    401: (
        "auth",
        "Kaggle refused the sign-in",
        "a token or key that is valid now",
        f"`kbench doctor` says which one is used; make a new token at {SITE}/settings",
    ),
    404: (
        "not_found",
        "Kaggle knows nothing of this name",
        f"the last part of a competition's address, {SITE}/competitions/<this>",
        f"look the name up at {SITE}/competitions",
    ),
    429: (
        "rate_limited",
        "Kaggle limits the rate of requests",
        "fewer requests for a while",
        "wait some minutes, then run the same command; what has arrived is kept",
    ),
}
_REJECTED = _STATUS[400]
_SERVER = (
    "server",
    "Kaggle has a problem of its own",
    "a service that answers",
    "run the same command again in some minutes; what has arrived is kept",
)

# word in the answer -> what a 403 means, what would have been right, what to do; the last row is for all others
_FORBIDDEN: list[tuple[str, str, str, str]] = [
    (
        r"\brules?\b",
        "the competition's rules are not accepted",
        "rules accepted by this account, once, on the web site",
        f"open {SITE}/competitions/{{slug}}/rules, accept them, then run the same command",
    ),
    (
        r"\bphone\b|\bverif",
        "the account is not verified",
        "an account with a verified phone number",
        f"verify it at {SITE}/settings, then run the same command",
    ),
    (
        "",
        "access is refused: either the name is misspelt, or the competition is not joined",
        "the name as in the competition's address, and its rules accepted by this account",
        f"compare the name with {SITE}/competitions, accept the rules at {SITE}/competitions/{{slug}}/rules "
        f"(a new account also needs a verified phone, {SITE}/settings), then run the same command",
    ),
]


def explain(error: Exception, *, doing: str, slug: str, secrets: Collection[str] = ()) -> ServiceError:
    """Return what was raised as a `ServiceError` and close the answer it came with.

    Args:
        error: raised by the client, `requests` or `urllib3`.
        doing: what was being done, for the message.
        slug: the competition.
        secrets: texts that must not show in the message.
    """
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return _answered(error.response, doing=doing, slug=slug, secrets=secrets)
    if isinstance(error, requests.exceptions.SSLError):
        return ServiceError(
            f"{doing}: the secure connection failed ({_reason(error)})",
            "a certificate this machine trusts",
            "behind a company's proxy, set REQUESTS_CA_BUNDLE to its certificate file",
            kind="network",
        )
    if isinstance(error, requests.exceptions.InvalidHeader | UnicodeEncodeError):
        return ServiceError(  # the error's own text would show the token
            f"{doing}: the token or key holds characters that cannot be sent",
            "one line of plain letters and digits",
            "`kbench doctor` says which one is used; copy it again",
            kind="config",
        )
    if _is_timeout(error):
        return ServiceError(
            f"{doing}: no answer for too long",
            "a connection that delivers",
            "check the connection, then run the same command; what has arrived is kept",
            kind="timeout",
            transient=True,
            sent=not _never_sent(error),
        )
    if isinstance(error, (requests.JSONDecodeError, json.JSONDecodeError)):
        return _garbled(doing, "the answer is no JSON", transient=True)
    if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError) or _is_urllib3(error):
        return ServiceError(
            f"{doing}: the connection failed ({_reason(error)})",
            "a connection to Kaggle",
            "check the connection and HTTPS_PROXY, then run the same command; what has arrived is kept",
            kind="network",
            transient=True,
            sent=not _never_sent(error),
        )
    return _garbled(doing, f"the client failed on it ({type(error).__name__})", transient=False)


def _answered(response: requests.Response, *, doing: str, slug: str, secrets: Collection[str]) -> ServiceError:
    status, said = _read(response)
    response.close()
    for secret in secrets:
        said = said.replace(secret, "***")
    if status == 403:
        meaning, expected, todo = next(row[1:] for row in _FORBIDDEN if re.search(row[0], said, re.IGNORECASE))
        kind = "forbidden"
    elif status in _STATUS or status >= 400:
        kind, meaning, expected, todo = _STATUS.get(status, _SERVER if status >= 500 else _REJECTED)
    else:
        return _garbled(doing, f"status {status}", transient=False)
    wait = retry_after(response.headers)
    if kind == "rate_limited" and wait is not None:
        meaning += f" and asks to wait {wait:.0f} s"
    quoted = f", saying '{said}'" if said else ""
    return ServiceError(
        f"{doing}: {meaning} ({status}{quoted})",
        expected,
        todo.format(slug=slug),
        kind=kind,
        transient=kind in ("rate_limited", "server"),
        retry_after=wait,
    )


def from_storage(response: requests.Response, *, doing: str) -> ServiceError:
    """Return a refusal by storage, after Kaggle itself said yes: an expired address, mostly; a new one may work."""
    status = response.status_code
    wait = retry_after(response.headers)
    response.close()
    return ServiceError(
        f"{doing}: storage refused the address Kaggle gave ({status})",
        "an address that works for as long as the file takes",
        "run the same command; what has arrived is kept",
        kind={416: "corrupt", 429: "rate_limited"}.get(status, "server"),  # 416: more has arrived than there is
        transient=True,
        retry_after=wait,
    )


def _read(response: requests.Response) -> tuple[int, str]:
    """Return the status and the message of an error answer; a body's own `code` counts when the status is 200."""
    status = response.status_code
    try:
        body: Any = json.loads(next(response.iter_content(65536), b""))
    except (ValueError, OSError):
        return status, ""  # an HTML page, or nothing: the status says enough
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]  # some answers wrap it
    if not isinstance(body, dict):
        return status, ""
    code = body.get("code")
    if status < 400 and isinstance(code, int) and code >= 400:
        status = code
    said = " ".join(str(body.get("message") or "").split())
    return status, said if len(said) <= 300 else said[:300] + "..."


def _garbled(doing: str, why: str, *, transient: bool) -> ServiceError:
    return ServiceError(
        f"{doing}: the answer was not understood: {why}",
        "an answer from Kaggle as its client (2.2.4 or newer) reads it",
        "check that no log-in page or proxy answers in Kaggle's place, then update with "
        "`pip install --upgrade kaggle kagglesdk`",
        kind="protocol",
        transient=transient,
    )


def _is_urllib3(error: Exception) -> bool:
    return isinstance(error, urllib3.exceptions.HTTPError | ConnectionError)


def _is_timeout(error: Exception) -> bool:
    if isinstance(error, requests.Timeout | urllib3.exceptions.ReadTimeoutError | TimeoutError):
        return True
    return bool(error.args) and isinstance(error.args[0], urllib3.exceptions.ReadTimeoutError)  # as `requests` wraps it


def _reason(error: BaseException) -> str:
    """Return the innermost cause in words, never an address: the texts of outer errors hold signed ones."""
    seen: list[BaseException] = []
    inner: object = error
    while isinstance(inner, BaseException) and inner not in seen:
        seen.append(inner)
        nested = [getattr(inner, "reason", None), *reversed(inner.args), inner.__cause__, inner.__context__]
        inner = next((item for item in nested if isinstance(item, BaseException)), None)
    last = seen[-1]
    if isinstance(last, OSError) and last.strerror:
        return last.strerror
    if isinstance(last, urllib3.exceptions.IncompleteRead):
        return "it ended early"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(last).__name__).lower()


def _never_sent(error: BaseException) -> bool:
    """Return whether no connection was made at all, so that nothing can have reached the service."""
    inner = error.args[0] if error.args else None
    reason = getattr(inner, "reason", inner)
    return isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a `Retry-After` header asks to wait, or None.

    A date is held against the answer's own `Date`: this machine's clock may be wrong.
    """
    text = str(headers.get("Retry-After") or "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            then, now = (email.utils.parsedate_to_datetime(item) for item in (text, headers.get("Date") or ""))
            seconds = (then - now).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def pause(failures: int, error: ServiceError) -> float:
    """Return the seconds to wait after so many failures in a row; what the service asked for comes first."""
    if error.retry_after is not None:
        return error.retry_after
    first, most = (30.0, 300.0) if error.kind == "rate_limited" else (1.0, 60.0)
    return min(first * 2.0 ** (failures - 1), most)


def persist(
    action: Callable[[], _T], *, sleep: Callable[[float], None], tries: int = TRIES, longest: float = LONGEST
) -> _T:
    """Call `action` until it succeeds; repeat only what may succeed later, at most `tries` times in all.

    Raises:
        ServiceError: it failed for good, too often, or is to be waited for longer than `longest` seconds.
    """
    failures = 0
    while True:
        try:
            return action()
        except ServiceError as error:
            failures += 1
            wait = pause(failures, error)
            if not error.transient or failures >= tries or wait > longest:
                raise
        sleep(wait)
