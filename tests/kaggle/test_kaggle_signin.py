from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from standin import KEY, TOKEN, Fault, environment

from kbench.sources.kaggle import signin

pytestmark = pytest.mark.slow  # the real client against the stand-in, a second and more for a few of them

PROBE = """
import sys
from kbench.errors import KbenchError
from kbench.sources.kaggle.client import kaggle
source = kaggle(slug="tiny-images", _sleep=lambda s: None, _timeouts=(10.0, float(sys.argv[1])))
try:
    print(source.about().title, file=sys.stderr)
    with source.open_file("train.csv")({}) as response:
        response.raw.read()
except KbenchError as error:
    print(getattr(error, "kind", ""), error, file=sys.stderr)
for finding in source.client.probe():
    print(finding.level, finding.what, file=sys.stderr)
"""


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home/.kaggle").mkdir(parents=True)
    return tmp_path / "home"


@pytest.fixture
def variables(home, standin):
    """The variables of a machine with no sign-in at all."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KAGGLE_", "VERBOSE"))}
    kept |= environment(home) | {"KBENCH_KAGGLE_URL": standin.url}
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        del kept[name]
    return kept


@pytest.fixture
def run(variables):
    """Ask for the competition in a process of its own, since signing in happens once per process."""

    def ask(patience: float = 30.0, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", PROBE, str(patience)],
            env={**variables, **more},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == ""
        for secret in (KEY, TOKEN, "wrong-token", "refresh-secret"):
            assert secret not in done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    return ask


def store(home: Path, name: str, content: object, mode: int = 0o600) -> Path:
    path = home / ".kaggle" / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


def find(variables: dict[str, str]) -> list[str]:
    return [f"{signin.kind} {Path(signin.where).name}" for signin in signin.all_signins(variables)]


def said(variables: dict[str, str]) -> str:
    return text(signin.check_places(variables))


def text(findings: list[signin.Finding]) -> str:
    return "\n".join(f"{finding.level} {finding.what} {finding.todo}" for finding in findings)


SOURCES = {
    "token variable": (lambda home: {"KAGGLE_API_TOKEN": TOKEN}, "token KAGGLE_API_TOKEN"),
    "token variable with a path": (
        lambda home: {"KAGGLE_API_TOKEN": str(store(home, "mine", TOKEN))},
        "token mine)",
    ),
    "token file": (lambda home: {"_": str(store(home, "access_token", TOKEN + "\n"))}, "token access_token"),
    "token text file": (lambda home: {"_": str(store(home, "access_token.txt", TOKEN))}, "token access_token.txt"),
    "kaggle.json": (
        lambda home: {"_": str(store(home, "kaggle.json", {"username": "tester", "key": KEY}))},
        "key kaggle.json",
    ),
    "username and key": (
        lambda home: {"KAGGLE_USERNAME": "tester", "KAGGLE_KEY": KEY},
        "key KAGGLE_USERNAME and KAGGLE_KEY",
    ),
    "oauth": (
        lambda home: {
            "_": str(
                store(
                    home,
                    "credentials.json",
                    {
                        "refresh_token": "refresh-secret",
                        "access_token": TOKEN,
                        "access_token_expiration": "2999-01-01T00:00:00+00:00",
                        "username": "tester",
                    },
                )
            )
        },
        "oauth credentials.json",
    ),
}


@pytest.mark.parametrize("row", SOURCES.values(), ids=SOURCES)
def test_every_sign_in_the_client_knows_is_found_and_works(row, home, variables, run, standin):
    prepare, name = row
    more = prepare(home)
    assert find(variables | more) == [name]
    answer = run(**more)
    assert "Tiny Images" in answer
    assert "ok Kaggle accepts the sign-in of 'tester'" in answer
    assert f"ok Kaggle sign-in: the {name.split()[0]} of" in said(variables | more)
    assert "error" not in said(variables | more)


def test_without_a_sign_in_it_is_said_where_to_get_one(run, variables):
    assert "auth no Kaggle sign-in on this machine" in run()
    assert "error no Kaggle sign-in on this machine" in said(variables)


def test_a_rejected_token_is_told_apart_from_none(run):
    assert "auth Kaggle refused the token of KAGGLE_API_TOKEN" in run(KAGGLE_API_TOKEN="wrong-token")


def test_a_rejected_token_that_hides_a_good_key_is_named(run, variables):
    more = {"KAGGLE_API_TOKEN": "wrong-token", "KAGGLE_USERNAME": "tester", "KAGGLE_KEY": KEY}
    answer = run(**more)
    assert "refused the token of KAGGLE_API_TOKEN, which hides the key of this machine" in answer
    assert "next: remove KAGGLE_API_TOKEN" in answer
    assert "not used, since the first one found is: the key of KAGGLE_USERNAME" in said(variables | more)


def test_a_rejected_key_points_to_the_doctor(run):
    assert "kbench doctor" in run(KAGGLE_USERNAME="tester", KAGGLE_KEY="wrong")


def test_a_passing_fault_while_signing_in_is_waited_out(run, standin):
    standin.plan("IntrospectToken", Fault(500, {"code": 500}), Fault(reset=True))
    assert "Tiny Images" in run(KAGGLE_API_TOKEN=TOKEN)


def test_signing_in_does_not_wait_for_ever(run, standin):
    standin.plan("IntrospectToken", *[Fault(stall=0) for _ in range(9)])
    assert "timeout sign in to Kaggle" in run(patience=0.1, KAGGLE_API_TOKEN=TOKEN)


@pytest.mark.parametrize("name", ["VERBOSE", "VERBOSE_OUTPUT"])
def test_no_secret_is_printed_when_the_client_is_told_to_be_verbose(name, run):
    answer = run(KAGGLE_API_TOKEN=TOKEN, **{name: "1"})
    assert "Tiny Images" in answer
    assert "Authorization" not in answer
    assert "signed-" not in answer


def test_a_token_with_a_line_break_is_not_shown(run):
    answer = run(KAGGLE_USERNAME="tester", KAGGLE_KEY="wröng-\u20ac")
    assert "config" in answer
    assert "wröng" not in answer


def test_a_home_that_cannot_be_written_is_said(run):
    assert "config the client `kaggle` cannot make its folder" in run(HOME=os.devnull, XDG_CONFIG_HOME=os.devnull)


@pytest.mark.parametrize("name", ["kaggle.json", "access_token"])
def test_a_file_others_can_read_is_a_warning(name, home, variables):
    path = store(home, name, json.dumps({"username": "tester", "key": KEY}), mode=0o644)
    assert f"warning other users of this machine can read '{path}' chmod 600" in said(variables)
    assert KEY not in said(variables)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"username": "tester"}'])
def test_a_broken_kaggle_json_is_an_error_though_the_client_says_nothing(content, home, variables):
    store(home, "kaggle.json", content)
    assert "is ignored" in said(variables)
    assert find(variables) == []


def test_variables_that_do_something_else_than_expected_are_named(variables):
    words = said(variables | {"KAGGLE_TOKEN": "x", "KAGGLE_USERNAME": "tester", "KAGGLE_API_TOKEN": "/no/such/file"})
    assert "KAGGLE_TOKEN is set" in words
    assert "only one of KAGGLE_USERNAME and KAGGLE_KEY" in words
    assert "KAGGLE_API_TOKEN is neither" in words
    assert "KAGGLE_API_ENVIRONMENT points the client away" in words


def test_a_token_longer_than_a_files_name_is_a_token(variables):
    long = TOKEN + "0" * 5000
    (found,) = signin.all_signins(variables | {"KAGGLE_API_TOKEN": long})
    assert found.secret == long
    assert "error" not in said(variables | {"KAGGLE_API_TOKEN": long})


def test_a_damaged_file_that_is_not_looked_at_is_no_error(home, variables):
    (home / ".kaggle/access_token").write_bytes(TOKEN.encode("utf-16"))
    assert "error" in said(variables)
    assert "error" not in said(variables | {"KAGGLE_API_TOKEN": TOKEN})


def test_an_empty_file_named_by_the_variable_hides_the_token_file(home, variables):
    """The client looks no further, and takes the key."""
    store(home, "access_token", TOKEN)
    more = {"KAGGLE_API_TOKEN": str(store(home, "mine", "\n")), "KAGGLE_USERNAME": "tester", "KAGGLE_KEY": KEY}
    assert find(variables | more) == ["key KAGGLE_USERNAME and KAGGLE_KEY"]
    assert f"warning '{home}/.kaggle/mine' is empty" in said(variables | more)


def test_the_config_folder_is_the_one_the_client_uses(home, variables, tmp_path):
    store(home, "kaggle.json", {"username": "tester", "key": KEY})
    assert signin.config_file(variables) == home / ".kaggle/kaggle.json"
    assert signin.config_file(variables | {"KAGGLE_CONFIG_DIR": str(tmp_path)}) == tmp_path / "kaggle.json"
    assert find(variables | {"KAGGLE_CONFIG_DIR": str(tmp_path)}) == []


def test_a_client_that_cannot_be_imported_is_an_error_with_its_reason(tmp_path, variables):
    (tmp_path / "six.py").write_text("raise ModuleNotFoundError(\"No module named 'six'\")\n")
    words = text(signin.diagnose(variables | {"PYTHONPATH": str(tmp_path)}))
    assert "cannot be imported: ModuleNotFoundError: No module named 'six'" in words
    assert "pip install" in words


def test_trying_the_client_leaves_nothing_behind_and_asks_nobody(variables, standin, home):
    words = text(signin.diagnose(variables | {"KAGGLE_API_TOKEN": TOKEN}))
    assert "ok the client `kaggle`" in words
    assert "ok Kaggle sign-in: the token of KAGGLE_API_TOKEN" in words
    assert not standin.seen
    assert list(home.rglob("*")) == [home / ".kaggle"]


def test_a_sign_in_does_not_show_its_secret(variables):
    (found,) = signin.all_signins(variables | {"KAGGLE_API_TOKEN": TOKEN})
    assert TOKEN not in repr(found)
