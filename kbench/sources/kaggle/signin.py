"""Which Kaggle sign-in this machine has, found without the client, without the network, without showing a secret.

`found` lists the sources in the order in which the client tries them (kaggle 2.2.4 to 2.2.5, `authenticate`); the
first one is used. Variables that are set to nothing count as not set, here and for the client. `check_places` says
what is wrong; every command that needs Kaggle says the same when it is refused (`why`). To follow a client that looks
elsewhere, add a row to `_LOOKUPS`; to tell one more mistake apart, a function to `_TROUBLES`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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


def blanks(environ: Environ) -> list[str]:
    """Return the variables of the client that are set to nothing, as an unset secret of a CI system is."""
    return sorted(name for name, value in environ.items() if name.startswith("KAGGLE_") and not value.strip())


def _given(environ: Environ | None) -> Environ:
    """Return the variables without those that are set to nothing; the process's by default."""
    environ = os.environ if environ is None else environ
    empty = set(blanks(environ))
    return {name: value for name, value in environ.items() if name not in empty}


def all_signins(environ: Environ | None = None) -> list[SignIn]:
    """Return every sign-in on this machine, the one the client uses first."""
    environ = _given(environ)
    return [signin for lookup in _LOOKUPS if (signin := lookup(environ)) is not None]


def secrets(environ: Environ | None = None) -> list[str]:
    """Return the tokens and keys of this machine, to strike them out of texts that come from elsewhere."""
    return [signin.secret for signin in all_signins(environ) if len(signin.secret) > 3]


def diagnose(environ: Environ | None = None, *, python: str = sys.executable) -> list[Finding]:
    """Say what sign-in is used and what is wrong with it, offline; `KaggleClient.probe` asks the service.

    Args:
        environ: variables to look at; the process's by default.
        python: the interpreter whose client is tried.
    """
    environ = os.environ if environ is None else environ
    return [*check_client(environ, python=python), *check_places(environ)]


def check_places(environ: Environ | None = None) -> list[Finding]:
    """Say which sign-in is used, and what is wrong with the files and variables it could come from."""
    environ = os.environ if environ is None else environ
    signins = all_signins(environ)
    troubles = [trouble for look in _TROUBLES for trouble in look(_given(environ), signins)]
    unset = blanks(environ)
    if unset:
        words = f"{' and '.join(unset)} {'is' if len(unset) == 1 else 'are'} set to nothing: taken as not set"
        troubles.append(Finding(_level(signins), words, f"`unset {' '.join(unset)}`, or set a value"))
    if signins:
        return [*_used(signins), *_exposed(signins), *troubles]
    without = "no Kaggle sign-in on this machine"
    reasons = [trouble for trouble in troubles if trouble.level == "error"]
    others = [replace(trouble, level="warning") for trouble in troubles if trouble not in reasons[:1]]
    if not reasons:
        return [Finding("error", without, f"make a token at {SETTINGS}; {HOW}"), *others]
    return [Finding("error", f"{without}: {reasons[0].what}", reasons[0].todo), *others]


def why(environ: Environ | None = None) -> Finding | None:
    """Return the first thing that keeps this machine from signing in, as far as this machine knows."""
    return next((finding for finding in check_places(environ) if finding.level == "error"), None)


def _home(environ: Environ) -> Path:
    return Path(environ.get("HOME") or Path.home())


def config_file(environ: Environ | None = None) -> Path:
    """Return where the client looks for `kaggle.json`."""
    environ = _given(environ)
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
    if os.path.isfile(value):  # where `Path` would fail on a token longer than a name may be
        path = Path(value)
        return SignIn("token", f"KAGGLE_API_TOKEN ({path})", path, secret=_text(path)) if _text(path) else None
    return SignIn("token", "KAGGLE_API_TOKEN", secret=value) if value else None


def _token_file(environ: Environ) -> SignIn | None:
    if environ.get("KAGGLE_API_TOKEN"):  # though it names an empty file, the client looks no further
        return None
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


def _unsendable(environ: Environ, signins: list[SignIn]) -> list[Finding]:
    """Report a sign-in that is used and cannot be right: quotes, spaces, a path that is no file."""
    if not signins or signins[0].kind == "oauth":
        return []
    first = signins[0]
    if first.where == "KAGGLE_API_TOKEN" and any(char in first.secret for char in "/\\"):
        what = "KAGGLE_API_TOKEN is neither a token nor an existing file"
        return [Finding("error", what, "set it to one of the two")]
    variable = {"token": "KAGGLE_API_TOKEN", "key": "KAGGLE_KEY", "user name": "KAGGLE_USERNAME"}
    for name, text in ((first.kind, first.secret), ("user name", first.user)):
        wrong = _wrong(text)
        if wrong and first.path:
            todo = f"write the {name} {'alone into' if first.kind == 'token' else 'into'} '{first.path}', without them"
            return [Finding("error", f"the {name} in '{first.path}' has {wrong}", todo)]
        if wrong:
            return [
                Finding("error", f"{variable[name]} has {wrong}", "set it without them (docker's env files keep them)")
            ]
    return []


def _wrong(text: str) -> str:
    """Return what a token, key or name has that none ever has; empty when nothing."""
    if text[:1] in _QUOTES or text[-1:] in _QUOTES:
        return "quotes around it" if text else ""
    if any(char.isspace() for char in text):
        return "spaces or line breaks in it"
    return "" if text.isascii() and text.isprintable() else "characters in it that are no plain letters"


_QUOTES = "\"'`\u2018\u2019\u201c\u201d"


def _token_for_key(environ: Environ, signins: list[SignIn]) -> list[Finding]:
    """Report a token where a key belongs: Kaggle takes it as a token alone."""
    path, text = config_file(environ), _text(config_file(environ))
    token = str(_home(environ) / ".kaggle" / "access_token")
    if text.startswith(_TOKEN):
        move = f"`mkdir -p {shlex.quote(str(Path(token).parent))} && mv {shlex.quote(str(path))} {shlex.quote(token)}`"
        return [Finding(_level(signins), f"'{path}' holds a token, which belongs into '{token}'", move)]
    names = [name for name, value in _json(path).items() if str(value).startswith(_TOKEN)]
    used = bool(signins) and signins[0].kind == "key" and signins[0].secret.startswith(_TOKEN)
    if used and signins[0].path is None:
        todo = 'export KAGGLE_API_TOKEN="$KAGGLE_KEY"'
        return [Finding("error", "KAGGLE_KEY holds a token (KGAT_...), and Kaggle takes it as no key", f"`{todo}`")]
    if not names:
        return []
    read = f"import json; print(json.load(open({str(path)!r}))[{names[0]!r}])"
    todo = (
        f"`mkdir -p {shlex.quote(str(Path(token).parent))} && (umask 077; python3 -c {shlex.quote(read)} > "
        f"{shlex.quote(token)})`"
    )
    what = f"'{names[0]}' in '{path}' is a token (KGAT_...), and Kaggle takes it as no key: it belongs into '{token}'"
    return [Finding("error" if used else _level(signins), what, todo)]


_TOKEN = "KGAT_"


def _level(signins: list[SignIn]) -> Literal["warning", "error"]:
    """Return how much a place that is passed over matters: nothing, while another one is used."""
    return "warning" if signins else "error"


def _broken(environ: Environ, signins: list[SignIn]) -> list[Finding]:
    """Report files the client passes over without a word, or fails on."""
    findings = []
    folder = _home(environ) / ".kaggle"
    for path, keys in ((config_file(environ), ("username", "key")), (folder / "credentials.json", ("refresh_token",))):
        missing = [key for key in keys if path.is_file() and not _json(path).get(key)]
        if missing:
            words = " and ".join(f"'{key}'" for key in missing)
            what = f"'{path}' is no JSON object with {words}: it is ignored"
            findings.append(Finding(_level(signins), what, f"make it anew at {SETTINGS}"))
    named = environ.get("KAGGLE_API_TOKEN", "")  # the client looks into no other file then
    for path in [Path(named)] if named else [folder / "access_token", folder / "access_token.txt"]:
        if os.path.exists(path) and not _text(path):
            empty = _is_empty(path)
            words = "is empty" if empty else "cannot be read as plain text (UTF-8)"
            level = _level(signins) if empty else "error"
            findings.append(Finding(level, f"'{path}' {words}", "write the token alone into it, or remove it"))
    return findings


def _is_empty(path: Path) -> bool:
    try:
        return not path.read_bytes().strip()
    except OSError:
        return False  # a folder, or a file of somebody else's


def _misplaced(environ: Environ, signins: list[SignIn]) -> list[Finding]:
    """Report a KAGGLE_CONFIG_DIR that has no `kaggle.json` in it."""
    text = environ.get("KAGGLE_CONFIG_DIR", "")
    folder, usual = Path(text), config_file({**environ, "KAGGLE_CONFIG_DIR": ""})
    if not text or (folder / "kaggle.json").is_file():
        return []
    what = f"KAGGLE_CONFIG_DIR is '{text}', where no kaggle.json is"
    if folder.is_file():
        what = f"KAGGLE_CONFIG_DIR is the file '{text}', and has to be its folder"
        return [
            Finding(_level(signins), what, f"`export KAGGLE_CONFIG_DIR={shlex.quote(str(folder.absolute().parent))}`")
        ]
    whole = Path(text.replace("~", str(_home(environ)), 1)) if text.startswith("~") else folder
    if (whole / "kaggle.json").is_file():
        what = f"KAGGLE_CONFIG_DIR is '{text}', in which no shell has replaced the ~"
        return [Finding(_level(signins), what, f"`export KAGGLE_CONFIG_DIR={shlex.quote(str(whole))}`")]
    if usual.is_file():
        return [Finding(_level(signins), f"{what}; '{usual}' is one", "`unset KAGGLE_CONFIG_DIR`")]
    return [Finding(_level(signins), what, f"put kaggle.json there, or make a token at {SETTINGS} and {HOW}")]


def _odd(environ: Environ, signins: list[SignIn]) -> list[Finding]:
    """Report variables that make the client do something else than people expect."""
    findings = []
    if ("KAGGLE_USERNAME" in environ) != ("KAGGLE_KEY" in environ):
        what = "only one of KAGGLE_USERNAME and KAGGLE_KEY is set"
        findings.append(Finding(_level(signins), what, "set both, or unset both"))
    if environ.get("KAGGLE_TOKEN"):
        what = "KAGGLE_TOKEN is set: the client sends it in place of every other sign-in"
        findings.append(Finding("warning", what, "unset KAGGLE_TOKEN"))
    if environ.get("KAGGLE_API_ENVIRONMENT", "PROD") != "PROD":
        what = "KAGGLE_API_ENVIRONMENT points the client away from Kaggle"
        findings.append(Finding("warning", what, "unset KAGGLE_API_ENVIRONMENT"))
    return findings


_TROUBLES: tuple[Callable[[Environ, list[SignIn]], list[Finding]], ...] = (
    _unsendable,
    _token_for_key,
    _misplaced,
    _broken,
    _odd,
)
