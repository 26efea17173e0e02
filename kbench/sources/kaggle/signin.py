"""Which Kaggle sign-in this machine has, found without the client, without the network, without showing a secret.

`found` lists the sources in the order in which the client tries them (kaggle 2.2.4, `authenticate`); the first one
is used. `diagnose` says what is wrong with them. To follow a client that looks elsewhere, add a row to `_LOOKUPS`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

NEEDED = (2, 2, 4)
SETTINGS = "https://www.kaggle.com/settings"


@dataclass(frozen=True)
class Finding:
    """One line of `kbench doctor`.

    Attributes:
        level: `ok`, `warning` (works, should change) or `error` (does not work).
        what: what was found; never a secret.
        todo: what to type or do; empty when nothing.
    """

    level: Literal["ok", "warning", "error"]
    what: str
    todo: str = ""


@dataclass(frozen=True)
class SignIn:
    """One place a sign-in was found in.

    Attributes:
        kind: `token`, `key` or `oauth`.
        where: the variable or file, for people.
        path: the file, if it is one.
        user: the account, if the place says so.
        secret: the token or key; kept out of `repr`.
    """

    kind: Literal["token", "key", "oauth"]
    where: str
    path: Path | None = None
    user: str = ""
    secret: str = ""

    def __repr__(self) -> str:
        return f"SignIn({self.kind}, {self.where})"


Environ = Mapping[str, str]


def found(environ: Environ | None = None) -> list[SignIn]:
    """Return every sign-in on this machine, the one the client uses first."""
    environ = os.environ if environ is None else environ
    return [signin for lookup in _LOOKUPS if (signin := lookup(environ)) is not None]


def secrets(environ: Environ | None = None) -> list[str]:
    """Return the tokens and keys of this machine, to strike them out of texts that come from elsewhere."""
    return [signin.secret for signin in found(environ) if len(signin.secret) > 3]


def diagnose(environ: Environ | None = None, *, python: str = sys.executable) -> list[Finding]:
    """Say what sign-in is used and what is wrong with it, offline; `KaggleClient.probe` asks the service.

    Args:
        environ: variables to look at; the process's by default.
        python: the interpreter whose client is tried.
    """
    environ = os.environ if environ is None else environ
    return [*check_client(environ, python=python), *check_places(environ)]


def check_places(environ: Environ) -> list[Finding]:
    """Say which sign-in is used, and what is wrong with the files and variables it could come from."""
    signins = found(environ)
    return [*_used(signins), *_exposed(signins), *_broken(environ), *_odd(environ)]


def _home(environ: Environ) -> Path:
    return Path(environ.get("HOME") or Path.home())


def config_file(environ: Environ | None = None) -> Path:
    """Return where the client looks for `kaggle.json`."""
    environ = os.environ if environ is None else environ
    own = _home(environ) / ".kaggle"
    if environ.get("KAGGLE_CONFIG_DIR"):
        return Path(environ["KAGGLE_CONFIG_DIR"]) / "kaggle.json"
    if not own.exists() and sys.platform.startswith("linux"):
        return Path(environ.get("XDG_CONFIG_HOME") or _home(environ) / ".config") / "kaggle" / "kaggle.json"
    return own / "kaggle.json"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""  # `diagnose` reports files that cannot be read


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _notebook_token(environ: Environ) -> SignIn | None:
    if not environ.get("KAGGLE_KERNEL_RUN_TYPE") or not environ.get("KAGGLE_DATA_PROXY_URL"):
        return None
    path = Path(environ.get("KAGGLE_API_V1_TOKEN") or os.devnull)
    return SignIn("token", "KAGGLE_API_V1_TOKEN", path, secret=_text(path)) if _text(path) else None


def _token_variable(environ: Environ) -> SignIn | None:
    value = environ.get("KAGGLE_API_TOKEN", "")
    path = Path(value)
    if value and len(value) < 4096 and path.is_file():
        return SignIn("token", f"KAGGLE_API_TOKEN ({path})", path, secret=_text(path)) if _text(path) else None
    return SignIn("token", "KAGGLE_API_TOKEN", secret=value) if value else None


def _token_file(environ: Environ) -> SignIn | None:
    for name in ("access_token", "access_token.txt"):
        path = _home(environ) / ".kaggle" / name
        if _text(path):
            return SignIn("token", str(path), path, secret=_text(path))
    return None


def _key(environ: Environ) -> SignIn | None:
    path = config_file(environ)
    stored = _json(path)
    user = environ.get("KAGGLE_USERNAME", stored.get("username"))
    key = environ.get("KAGGLE_KEY", stored.get("key"))
    if not user or not key:
        return None
    if "KAGGLE_USERNAME" in environ and "KAGGLE_KEY" in environ:
        return SignIn("key", "KAGGLE_USERNAME and KAGGLE_KEY", user=str(user), secret=str(key))
    return SignIn("key", str(path), path, user=str(user), secret=str(key))


def _oauth(environ: Environ) -> SignIn | None:
    path = _home(environ) / ".kaggle" / "credentials.json"
    stored = _json(path)
    if not stored.get("refresh_token"):
        return None
    return SignIn("oauth", str(path), path, user=str(stored.get("username") or ""), secret=str(stored["refresh_token"]))


_LOOKUPS: tuple[Callable[[Environ], SignIn | None], ...] = (
    _notebook_token,
    _token_variable,
    _token_file,
    _key,
    _oauth,
)


def check_client(environ: Environ, *, python: str = sys.executable) -> list[Finding]:
    """Import the client in a fresh interpreter without any sign-in: what it says is about the installation alone."""
    update = "pip install --upgrade 'kaggle>=2.2.4,<3' six"
    try:
        version = importlib.metadata.version("kaggle")
    except importlib.metadata.PackageNotFoundError:
        return [Finding("error", "the client `kaggle` is not installed", update)]
    if version_tuple(version) < NEEDED:
        return [Finding("error", f"the client `kaggle` is {version}; older than 2.2.4 it loses data", update)]
    blank = {name: value for name, value in environ.items() if not name.startswith(("KAGGLE_", "VERBOSE"))}
    blank |= {"HOME": os.devnull, "KAGGLE_CONFIG_DIR": str(Path(__file__).parent)}  # exists, holds no sign-in
    try:
        run = subprocess.run(
            [python, "-c", "import kaggle"], env=blank, capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Finding("error", f"the client `kaggle` cannot be tried: {type(error).__name__}", update)]
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        return [Finding("error", f"the client `kaggle` {version} cannot be imported: {last}", update)]
    return [Finding("ok", f"the client `kaggle` {version} can be imported")]


def version_tuple(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: `2.2.4rc1` becomes (2, 2, 4)."""
    digits = ["".join(char for char in part if char.isdigit()) for part in version.split(".")[:3]]
    return tuple(int(part or 0) for part in digits)


def _used(signins: list[SignIn]) -> list[Finding]:
    if not signins:
        return [Finding("error", "no Kaggle sign-in on this machine", f"make a token at {SETTINGS}; {HOW}")]
    first, *rest = signins
    who = f" as '{first.user}'" if first.user else ""
    findings = [Finding("ok", f"Kaggle sign-in: the {first.kind} of {first.where}{who}")]
    if rest:
        others = ", ".join(f"the {signin.kind} of {signin.where}" for signin in rest)
        findings.append(Finding("ok", f"not used, since the first one found is: {others}"))
    return findings


HOW = "put it into KAGGLE_API_TOKEN or ~/.kaggle/access_token, or put kaggle.json into ~/.kaggle"


def _exposed(signins: list[SignIn]) -> list[Finding]:
    return [
        Finding("warning", f"other users of this machine can read '{signin.path}'", f"chmod 600 '{signin.path}'")
        for signin in signins
        if signin.path is not None and signin.path.is_file() and signin.path.stat().st_mode & 0o077
    ]


def _broken(environ: Environ) -> list[Finding]:
    """Report files the client passes over without a word."""
    findings = []
    folder = _home(environ) / ".kaggle"
    for path, keys in ((config_file(environ), ("username", "key")), (folder / "credentials.json", ("refresh_token",))):
        if path.is_file():
            missing = [key for key in keys if not _json(path).get(key)]
            if missing:
                words = " and ".join(f"'{key}'" for key in missing)
                findings.append(
                    Finding(
                        "error",
                        f"'{path}' is no JSON object with {words}: it is ignored",
                        f"make it anew at {SETTINGS}",
                    )
                )
    for path in (folder / "access_token", folder / "access_token.txt"):
        if path.is_file() and not _text(path):
            findings.append(Finding("warning", f"'{path}' is empty or cannot be read", "write the token into it"))
    return findings


def _odd(environ: Environ) -> list[Finding]:
    """Report variables that make the client do something else than people expect."""
    findings = []
    token = environ.get("KAGGLE_API_TOKEN", "")
    if (
        token
        and not Path(token[:4096]).is_file()
        and (token != token.strip() or any(char in token for char in " \n/\\"))
    ):
        findings.append(
            Finding("error", "KAGGLE_API_TOKEN is neither a token nor an existing file", "set it to one of the two")
        )
    if ("KAGGLE_USERNAME" in environ) != ("KAGGLE_KEY" in environ):
        findings.append(
            Finding("warning", "only one of KAGGLE_USERNAME and KAGGLE_KEY is set", "set both, or unset both")
        )
    if environ.get("KAGGLE_TOKEN"):
        findings.append(
            Finding(
                "warning",
                "KAGGLE_TOKEN is set: the client sends it in place of every other sign-in",
                "unset KAGGLE_TOKEN",
            )
        )
    if environ.get("KAGGLE_API_ENVIRONMENT", "PROD") != "PROD":
        findings.append(
            Finding(
                "warning", "KAGGLE_API_ENVIRONMENT points the client away from Kaggle", "unset KAGGLE_API_ENVIRONMENT"
            )
        )
    return findings
