"""Mistakes in the sign-in, told apart: `kbench doctor` and `kbench download` agree, and what they say to type works."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

import lookalikes
import pytest
from machines import YAML, Machine
from standin import KEY, TOKEN, StandIn

pytestmark = pytest.mark.slow  # a process of kbench for each command


@dataclass(frozen=True)
class Mistake:
    """What a user did, what both commands say, and what puts it right.

    Attributes:
        says: part of the message.
        files: of the home folder.
        variables: of the environment; `HOME` in a value stands for the home folder.
        remedy: a line of the shell, where the message tells none; `HOME` stands for the home folder.
        works: it is a warning alone.
    """

    says: str
    files: dict[str, str | bytes] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    remedy: str = ""
    works: bool = False


JSON = json.dumps({"username": "tester", "key": KEY})
MISTAKES = {
    "empty variables": Mistake(
        "KAGGLE_KEY and KAGGLE_USERNAME are set to nothing",
        variables={"KAGGLE_USERNAME": "", "KAGGLE_KEY": " "},
        remedy=f"export KAGGLE_USERNAME=tester KAGGLE_KEY={KEY}",
    ),
    "empty variables beside a file": Mistake(
        "KAGGLE_KEY and KAGGLE_TOKEN and KAGGLE_USERNAME are set to nothing: taken as not set",
        files={".kaggle/kaggle.json": JSON},
        variables={"KAGGLE_USERNAME": "", "KAGGLE_KEY": "", "KAGGLE_TOKEN": ""},
        works=True,
    ),
    "an empty token beside a key": Mistake(
        "KAGGLE_API_TOKEN is set to nothing",
        variables={"KAGGLE_API_TOKEN": "  ", "KAGGLE_USERNAME": "tester", "KAGGLE_KEY": KEY},
        works=True,
    ),
    "an empty folder": Mistake(
        "KAGGLE_CONFIG_DIR is set to nothing",
        files={".kaggle/kaggle.json": JSON},
        variables={"KAGGLE_CONFIG_DIR": ""},
        works=True,
    ),
    "one of two variables": Mistake(
        "only one of KAGGLE_USERNAME and KAGGLE_KEY is set",
        variables={"KAGGLE_KEY": KEY},
        remedy="export KAGGLE_USERNAME=tester",
    ),
    "a token as the key of kaggle.json": Mistake(
        "is a token (KGAT_...), and Kaggle takes it as no key",
        files={".kaggle/kaggle.json": json.dumps({"username": "tester", "key": TOKEN})},
    ),
    "a token under its own name in kaggle.json": Mistake(
        "'token' in",
        files={"mine/kaggle.json": json.dumps({"token": TOKEN})},
        variables={"KAGGLE_CONFIG_DIR": "HOME/mine"},
    ),
    "a token in place of kaggle.json": Mistake(
        "kaggle.json' holds a token, which belongs into", files={".kaggle/kaggle.json": TOKEN + "\n"}
    ),
    "a token in KAGGLE_KEY": Mistake(
        "KAGGLE_KEY holds a token", variables={"KAGGLE_USERNAME": "tester", "KAGGLE_KEY": TOKEN}
    ),
    "quotes in access_token": Mistake(
        "access_token' has quotes around it",
        files={".kaggle/access_token": f'"{TOKEN}"\n'},
        remedy=f"echo {TOKEN} > HOME/.kaggle/access_token",
    ),
    "quotes in KAGGLE_API_TOKEN": Mistake(
        "KAGGLE_API_TOKEN has quotes around it",
        variables={"KAGGLE_API_TOKEN": f"'{TOKEN}'"},
        remedy=f"export KAGGLE_API_TOKEN={TOKEN}",
    ),
    "quotes in KAGGLE_KEY": Mistake(
        "KAGGLE_KEY has quotes around it",
        variables={"KAGGLE_USERNAME": "tester", "KAGGLE_KEY": f'"{KEY}"'},
        remedy=f"export KAGGLE_KEY={KEY}",
    ),
    "quotes in KAGGLE_USERNAME": Mistake(
        "KAGGLE_USERNAME has quotes around it",
        variables={"KAGGLE_USERNAME": '"tester"', "KAGGLE_KEY": KEY},
        remedy="export KAGGLE_USERNAME=tester",
    ),
    "a line break in KAGGLE_API_TOKEN": Mistake(
        "KAGGLE_API_TOKEN has spaces or line breaks in it",
        variables={"KAGGLE_API_TOKEN": f"{TOKEN}\n"},
        remedy=f"export KAGGLE_API_TOKEN={TOKEN}",
    ),
    "a path that is no file": Mistake(
        "KAGGLE_API_TOKEN is neither a token nor an existing file",
        variables={"KAGGLE_API_TOKEN": "HOME/token.txt"},
        remedy=f"echo {TOKEN} > HOME/token.txt",
    ),
    "a folder for a token": Mistake(
        "KAGGLE_API_TOKEN is neither a token nor an existing file",
        variables={"KAGGLE_API_TOKEN": "HOME"},
        remedy=f"export KAGGLE_API_TOKEN={TOKEN}",
    ),
    "an access_token as PowerShell writes it": Mistake(
        "access_token' cannot be read as plain text (UTF-8)",
        files={".kaggle/access_token": TOKEN.encode("utf-16")},
        remedy=f"echo {TOKEN} > HOME/.kaggle/access_token",
    ),
    "an access_token with a mark in front": Mistake(
        "characters in it that are no plain letters",
        files={".kaggle/access_token": TOKEN.encode("utf-8-sig")},
        remedy=f"echo {TOKEN} > HOME/.kaggle/access_token",
    ),
    "an empty access_token": Mistake(
        "access_token' is empty",
        files={".kaggle/access_token": ""},
        remedy=f"echo {TOKEN} > HOME/.kaggle/access_token",
    ),
    "a folder without kaggle.json": Mistake(
        "is one",
        files={".kaggle/kaggle.json": JSON},
        variables={"KAGGLE_CONFIG_DIR": "HOME/elsewhere"},
    ),
    "the file in place of its folder": Mistake(
        "KAGGLE_CONFIG_DIR is the file",
        files={"mine/kaggle.json": JSON},
        variables={"KAGGLE_CONFIG_DIR": "HOME/mine/kaggle.json"},
    ),
    "a folder with a tilde": Mistake(
        "in which no shell has replaced the ~",
        files={"mine/kaggle.json": JSON},
        variables={"KAGGLE_CONFIG_DIR": "~/mine"},
    ),
    "a folder with nothing anywhere": Mistake(
        "where no kaggle.json is",
        variables={"KAGGLE_CONFIG_DIR": "HOME/elsewhere"},
        remedy=f"mkdir -p HOME/elsewhere && echo '{JSON}' > HOME/elsewhere/kaggle.json",
    ),
    "a broken kaggle.json": Mistake(
        "is no JSON object with 'username' and 'key'",
        files={".kaggle/kaggle.json": JSON[:-1]},
        remedy=f"echo '{JSON}' > HOME/.kaggle/kaggle.json",
    ),
    "a broken kaggle.json beside a token": Mistake(
        "is no JSON object with 'username' and 'key'",
        files={".kaggle/kaggle.json": JSON[:-1]},
        variables={"KAGGLE_API_TOKEN": TOKEN},
        works=True,
    ),
    "a wrong folder beside a token": Mistake(
        "where no kaggle.json is",
        variables={"KAGGLE_CONFIG_DIR": "HOME/elsewhere", "KAGGLE_API_TOKEN": TOKEN},
        works=True,
    ),
}


@pytest.fixture
def bare(machine_of_mine: Machine, standin: StandIn) -> Machine:
    """A machine without any sign-in."""
    standin.files = {
        "train.csv": b"id,label\na,0\n",
        "sample_submission.csv": lookalikes.table(["id", "0"], [("b", 1)]),
    }
    standin.zip()
    (machine_of_mine.root / "competitions" / "tiny.yaml").write_text(YAML)
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        del machine_of_mine.variables[name]
    return machine_of_mine


@pytest.fixture
def after(bare: Machine) -> Callable[[str], dict[str, str]]:
    """Run a line of the shell and return the variables it leaves."""

    def run(line: str) -> dict[str, str]:
        words = ["sh", "-ec", f"{line}\nenv -0"]
        done = subprocess.run(words, env=bare.variables, cwd=bare.root, capture_output=True, text=True, check=True)
        return dict(item.split("=", 1) for item in done.stdout.split("\0") if item)

    return run


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_apart_and_the_remedy_works(
    mistake: Mistake, bare: Machine, after: Callable[[str], dict[str, str]]
) -> None:
    for name, content in mistake.files.items():
        path = bare.home / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o600)
    bare.variables |= {name: value.replace("HOME", str(bare.home)) for name, value in mistake.variables.items()}
    found = bare.kbench("doctor --json", code=0 if mistake.works else 1).json()["rows"]
    (row,) = [row for row in found if mistake.says in row["what"]]
    assert row["level"] == ("warning" if mistake.works else "error")
    done = bare.kbench("download", code=0 if mistake.works else 1)
    if mistake.works:
        return
    assert row["what"] in done.err
    assert f"next: {row['todo']}" in done.err
    remedy = mistake.remedy.replace("HOME", str(bare.home)) or row["todo"].split("`")[1]
    bare.variables = after(remedy)
    bare.kbench("download")
    assert bare.kbench("doctor --json").json()["ok"]


def test_a_wrong_folder_is_not_made_into_a_sign_in_of_another(bare: Machine) -> None:
    """What the client makes of a folder's name is nothing that the next command takes for a sign-in."""
    bare.variables["KAGGLE_CONFIG_DIR"] = str(bare.home / "elsewhere")
    for _ in range(2):
        assert "where no kaggle.json is" in bare.kbench("download", code=1).err
    assert [path.name for path in (bare.home / "elsewhere").rglob("*")] == []


def test_the_doctor_says_the_same_without_asking(bare: Machine) -> None:
    bare.variables["KAGGLE_API_TOKEN"] = f'"{TOKEN}"'
    online, offline = (bare.kbench(f"doctor --json {option}", code=1).json()["rows"] for option in ("", "--offline"))
    assert [row for row in online if row["level"] == "error"] == [row for row in offline if row["level"] == "error"]


def test_what_kaggle_accepts_is_no_error(bare: Machine, standin: StandIn) -> None:
    """A service that takes a token as a key, as none is known to: the doctor believes the service."""
    from base64 import b64encode

    standin.accepts.add("Basic " + b64encode(f"tester:{TOKEN}".encode()).decode())
    bare.variables |= {"KAGGLE_USERNAME": "tester", "KAGGLE_KEY": TOKEN}
    bare.kbench("download")
    rows = bare.kbench("doctor --json").json()["rows"]
    assert [row["level"] for row in rows if "KAGGLE_KEY holds a token" in row["what"]] == ["warning"]
