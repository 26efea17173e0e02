"""Competitions on Kaggle, through its own client (`kaggle>=2.2.4`); the only module that imports it.

The client signs in, names the endpoint and makes the calls; the bytes of downloads (`service/download.py`) and uploads
(`competition.py`) are moved without it, since it neither resumes safely nor checks what arrived. Importing it signs in,
prints and may call the service, so that happens on first use, quietly and with time limits: `limit` gives them to a
session, `Transport` says how storage is asked. What the calls mean is in `competition.py`; to follow a new client, run
`tests/kaggle/test_client_canaries.py` against it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import io
import ipaddress
import os
import time
import urllib.parse
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from kbench import __version__
from kbench.errors import ConfigError, ServiceError
from kbench.registry import register
from kbench.sources.kaggle import signin
from kbench.sources.kaggle.competition import KaggleCompetition, slug_of
from kbench.sources.service import faults

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


PAGE = 200


@register("source")
def kaggle(
    *,
    slug: str,
    nested: bool = True,
    _sleep: Callable[[float], None] = time.sleep,
    _clock: Callable[[], float] = time.time,
    _timeouts: tuple[float, float] = TIMEOUTS,
    _mounted: Path = Path("/kaggle/input"),
) -> KaggleCompetition:
    """Take data from a Kaggle competition and send submissions to it.

    Args:
        slug: the last part of the competition's address; the address itself will do.
        nested: unpack zips inside the downloaded one too.
        _sleep: waits seconds.
        _clock: tells seconds since 1970.
        _timeouts: seconds to connect and between two packets.
        _mounted: where Kaggle's notebooks have the data.
    """
    client = KaggleClient(sleep=_sleep, clock=_clock, timeouts=_timeouts)
    return KaggleCompetition(slug_of(slug), client, nested, _mounted)


@dataclass(frozen=True)
class KaggleClient:
    """Calls to Kaggle through its client, each with time limits and errors that say what to do.

    Attributes:
        sleep: waits seconds.
        clock: tells seconds.
        timeouts: seconds to connect and between two packets.
    """

    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.time
    timeouts: tuple[float, float] = TIMEOUTS

    def call(
        self,
        method: str,
        request: str,
        *,
        doing: str,
        tries: int = faults.TRIES,
        longest: float = faults.LONGEST,
        **fields: Any,
    ) -> Any:
        """Make a call, repeated while it may succeed.

        Args:
            method: of the SDK's competition client.
            request: class of its argument.
            doing: what is being done, for messages.
            tries: at most so many; 1 for what must not be repeated.
            longest: seconds to wait for the next try, at most.
            fields: of the request.

        Raises:
            ServiceError: it failed.
        """
        with self._session() as once:
            return faults.persist(
                lambda: once(method, request, fields, doing), sleep=self.sleep, tries=tries, longest=longest
            )

    def ask(
        self, service: str, method: str, request: str, body: Mapping[str, Any], *, doing: str, tries: int = faults.TRIES
    ) -> Any:
        """Make a call to another of Kaggle's services than that of competitions, as `call` does.

        Args:
            service: `blobs`, `datasets` or `kernels`.
            method: of the SDK's client of that service.
            request: class of its argument.
            body: what is sent, as JSON has it.
            doing: what is being done, for messages.
            tries: at most so many; 1 for what must not be repeated.

        Raises:
            ServiceError: it failed.
        """
        with self._session(service=service) as once:
            return faults.persist(lambda: once(method, request, {"": body}, doing), sleep=self.sleep, tries=tries)

    def user(self) -> str:
        """Return the name of the account that is signed in."""
        return self._sign_in().get("username", "")

    def pages(self, method: str, request: str, *, doing: str, numbered: bool = False, **fields: Any) -> Iterator[Any]:
        """Yield every page of a listing, over one connection; an empty page is not the last one.

        Args:
            method: of the SDK's competition client.
            request: class of its argument.
            doing: what is being done, for messages.
            numbered: the first page is asked for by number too, as the client's own commands do.
            fields: of the request.

        Raises:
            ServiceError: a page cannot be had, or the pages go round in a circle.
        """
        token, seen = "", set[str]()
        with self._session() as once:
            while token not in seen:
                seen.add(token)
                first = {"page": 1} if numbered and not token else {}
                asked = {**fields, **first, "page_size": PAGE, "page_token": token}
                page = faults.persist(functools.partial(once, method, request, asked, doing), sleep=self.sleep)
                yield page
                token = page.next_page_token or ""
                if not token:
                    return
        raise ServiceError(
            f"{doing}: the pages go round in a circle after {len(seen)}",
            "a list with an end",
            "run the same command again in some minutes",
            kind="protocol",
        )

    @contextlib.contextmanager
    def stream(
        self, method: str, request: str, headers: Mapping[str, str], *, doing: str, **fields: Any
    ) -> Iterator[requests.Response]:
        """Ask once for a file and yield the answer of storage, its body unread.

        Args:
            method: of the SDK's competition client.
            request: class of its argument.
            headers: for storage, such as `Range`.
            doing: what is being done, for messages.
            fields: of the request.

        Raises:
            ServiceError: Kaggle or its storage refused.
        """
        with self._session(headers) as once:
            response = once(method, request, fields, doing)
            try:
                refuse_page(response, str(fields.get("file_name", "")), doing=doing)
                yield response
            finally:
                response.close()

    def probe(self) -> list[signin.Finding]:
        """Say, as `kbench doctor` does, whether Kaggle accepts this machine's sign-in."""
        try:
            self.call("list_competitions", "ApiListCompetitionsRequest", doing="check the sign-in", page_size=1)
        except ServiceError as error:
            return [signin.Finding("error", error.what, error.todo)]
        return [signin.Finding("ok", f"Kaggle accepts the sign-in of '{self._sign_in().get('username', '?')}'")]

    def _sign_in(self) -> dict[str, str]:
        """Return the client's configuration once it is signed in: `username`, `key` or `token`, `auth_method`."""
        environ = dict(os.environ)  # as the user set them, for what is said of them
        with _calm(self.timeouts):
            api = _client()
            if "auth_method" not in api.config_values:
                api.args = ["--local"] if _is_local() else []  # without --verbose, which prints tokens
                faults.persist(functools.partial(_authenticate, api, environ), sleep=self.sleep)
            return dict(api.config_values)

    @contextlib.contextmanager
    def _session(self, headers: Mapping[str, str] | None = None, service: str = "competitions") -> Iterator[Once]:
        """Yield a function that makes one call over a connection with time limits; close the connection after."""
        values = self._sign_in()
        with _calm(self.timeouts):
            from kagglesdk import KaggleClient as Sdk
            from kagglesdk import KaggleEnv

            single = service.removesuffix("s")
            types = importlib.import_module(f"kagglesdk.{service}.types.{_TYPES.get(service, single)}_api_service")
            sdk = Sdk(
                env=KaggleEnv.LOCAL if _is_local() else KaggleEnv.PROD,
                username=values.get("username"),
                password=values.get("key"),
                api_token=values.get("token"),
                user_agent=f"kbench/{__version__}",
            )
            sdk.http_client()._init_session()  # here, where the variables are as the sign-in saw them

        def once(method: str, request: str, fields: Mapping[str, Any], doing: str) -> Any:
            kind = getattr(types, request)
            message = kind.from_dict(dict(fields[""])) if "" in fields else kind()
            for name, value in fields.items():
                if name:
                    setattr(message, name, value)
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    answer = getattr(sdk, service)
                    return getattr(getattr(answer, f"{_TYPES.get(service, single)}_api_client"), method)(message)
            except Exception as error:  # the SDK lets everything through: KeyError, TypeError, ValueError
                fault = _explain(error, doing, str(fields.get("competition_name", "")), values, os.environ)
                raise fault from (error if fault.kind == "protocol" else None)  # other texts hold signed addresses

        with sdk:
            limit(sdk.http_client()._session, self.timeouts, headers or {})
            yield once


_TYPES = {"kernels": "kernels"}  # services whose modules are not named after one thing

Once = Callable[[str, str, Mapping[str, Any], str], Any]
"""Called as `once(method, request, fields, doing)`."""


def _is_local() -> bool:
    return endpoint() is not None or os.environ.get("KAGGLE_API_ENVIRONMENT") == "LOCALHOST"


def _authenticate(api: Any, environ: Mapping[str, str]) -> None:
    try:
        api.authenticate()
    except SystemExit:
        raise _no_sign_in(environ) from None
    except Exception as error:  # a damaged file of credentials can fail in any way
        fault = _explain(error, "sign in to Kaggle", "", {}, environ)
        raise fault from (error if fault.kind == "protocol" else None)


def _no_sign_in(environ: Mapping[str, str]) -> ServiceError:
    reason, signins = signin.why(environ), signin.all_signins(environ)
    if reason is not None:
        return ServiceError(reason.what, "a token, a key, or `kaggle auth login`", reason.todo, kind="auth")
    return ServiceError(
        f"Kaggle refused the {signins[0].kind} of {signins[0].where}",
        "a token or key that is valid now",
        f"make a new one at {signin.SETTINGS}; `kbench doctor` says what else this machine has",
        kind="auth",
    )


def _explain(
    error: Exception, doing: str, slug: str, values: Mapping[str, str], environ: Mapping[str, str]
) -> ServiceError:
    """Return what was raised as an error with a remedy; what `kbench doctor` says of the sign-in, where that is it.

    Args:
        error: raised by the client or `requests`.
        doing: what was being done, for messages.
        slug: the competition.
        values: of the sign-in; none while it is being made.
        environ: the variables as the user set them.
    """
    if isinstance(error, requests.HTTPError) and error.response is not None and error.response.request.method == "GET":
        return faults.from_storage(error.response, doing=doing)
    fault = faults.explain(error, doing=doing, slug=slug, secrets=signin.secrets(environ))
    if fault.kind not in (("auth", "config") if values else ("auth", "config", "protocol")):
        return fault
    reason, signins = signin.why(environ), signin.all_signins(environ)
    if reason is not None:
        what, expected = f"{doing}: {reason.what}", "a token or key as Kaggle gave it"
        return ServiceError(what, expected, reason.todo, kind=fault.kind)
    if fault.kind == "auth" and "LEGACY" in values.get("auth_method", "") and signins and signins[0].kind == "token":
        return ServiceError(
            f"{doing}: Kaggle refused the token of {signins[0].where}, which hides the key of this machine",
            "a valid token, or none, so that the key is used",
            f"remove {signins[0].where}, or put a new token there ({signin.SETTINGS})",
            kind="auth",
        )
    return fault


def _client() -> Any:
    """Import the client, which signs in while it is imported, and return its one `KaggleApi`."""
    update = "pip install --upgrade 'kaggle>=2.2.4,<3' six"
    try:
        version = importlib.metadata.version("kaggle")
        if signin.version_tuple(version) < signin.NEEDED:
            raise ServiceError(
                f"the client `kaggle` is {version}", "2.2.4 or newer: older ones lose data", update, kind="install"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what others deprecate is no business of the user
            import kaggle as client
    except ImportError as error:
        raise ServiceError(
            f"the client `kaggle` cannot be imported: {error}", "kaggle 2.2.4 or newer", update, kind="install"
        ) from error
    except OSError as error:
        raise ServiceError(
            f"the client `kaggle` cannot make its folder: {error}",
            "a home folder that can be written",
            "set KAGGLE_CONFIG_DIR to a folder of yours",
            kind="config",
        ) from error
    return client.api


@contextlib.contextmanager
def _calm(timeouts: tuple[float, float]) -> Iterator[None]:
    """Keep the client from printing, from waiting for ever, and on the chosen endpoint, for the block."""
    try:
        from kagglesdk import KaggleEnv, kaggle_env
        from kagglesdk.kaggle_http_client import KaggleHttpClient
    except ImportError:
        _client()  # says what is missing
        raise
    before, table, begin = dict(os.environ), kaggle_env._env_to_endpoint, KaggleHttpClient._init_session
    local, url = table[KaggleEnv.LOCAL], endpoint()

    def limited(self: Any) -> None:
        fresh = self._session is None
        begin(self)
        if fresh:
            limit(self._session, timeouts, {})

    changes: dict[str, str | None] = dict.fromkeys(["VERBOSE", "VERBOSE_OUTPUT", *signin.blanks(os.environ)])
    changes |= {"KAGGLE_API_ENVIRONMENT": "LOCALHOST"} if url else {}
    try:
        for name, value in changes.items():
            _set_variable(name, value)
        table[KaggleEnv.LOCAL] = url or local
        KaggleHttpClient._init_session = limited
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        KaggleHttpClient._init_session = begin
        table[KaggleEnv.LOCAL] = local
        for name in changes:
            _set_variable(name, before.get(name))


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
