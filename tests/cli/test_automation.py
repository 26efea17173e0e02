"""What programs that drive kbench rely on: events, exit codes, and the form of every JSON object."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from typer.testing import CliRunner, Result

from kbench import cli, console
from kbench.cli.app import CODES, app

pytestmark = pytest.mark.slow
SCHEMAS = json.loads((ROOT / "docs" / "outputs.schema.json").read_text(encoding="utf-8"))
COMMANDS = {str(item.name or item.callback.__name__): item.callback for item in cli.app.registered_commands
            if item.callback}  # fmt: skip
PAGE = (ROOT / "docs" / "automation.md").read_text(encoding="utf-8")


def kbench(*words: str) -> Result:
    try:
        return CliRunner().invoke(app, list(words))
    finally:
        console.tell_in_lines(False)


def answer(*words: str, code: int = 0) -> dict[str, Any]:
    """Return what a command prints with `--json`, held against its schema."""
    module = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    done = kbench(*words, "--json")
    assert done.exit_code == code, f"{words}: {done.output} {done.exception!r}"
    content: dict[str, Any] = json.loads(done.stdout)
    schema = {"$ref": f"#/$defs/{words[0]}", "$defs": SCHEMAS["$defs"]}
    module.Draft202012Validator(schema).validate(content)
    return content


@pytest.fixture
def root(small_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the small trained workspace, and the current folder in it."""
    shutil.copytree(small_workspace, tmp_path / "workspace", symlinks=True)
    monkeypatch.chdir(tmp_path / "workspace")
    monkeypatch.setenv("KBENCH_COMPETITION", "classes")
    return tmp_path / "workspace"


def test_every_json_has_a_schema_and_every_schema_a_command() -> None:
    with_json = {name for name, function in COMMANDS.items() if "json" in function.__annotations__}
    assert with_json == set(SCHEMAS["$defs"])
    for name, schema in SCHEMAS["$defs"].items():
        assert set(schema["required"]) <= set(schema["properties"]), name


def test_answers_are_as_their_schemas_say(root: Path) -> None:
    assert answer("list")["rows"]
    assert answer("doctor", code=1)["ok"] is False  # there is no sign-in
    assert answer("cache")
    assert answer("folds")
    assert answer("check")
    assert answer("status")["trained"] == [0, 1]
    assert answer("score")["metric"] == "log_loss"
    assert answer("train", "--device", "cpu")["done"] == [0, 1]
    second = ("--run", "second", "--set", "stages.all.lr=0.005", "--fold", "0", "--device", "cpu")
    assert answer("train", *second)["trained"] == [0]
    assert answer("status", "--run", "second")["left"] == [1]
    compared = answer("compare", "baseline-s0", "second", "--device", "cpu")
    assert [row["run"] for row in compared["rows"]] == ["baseline-s0", "second"]
    assert compared["rows"][1]["folds"] == 1
    assert "stages.all.lr" in compared["differs"]
    assert answer("pack", "second", "-o", str(root / "second.zip"))["files"] > 5
    assert answer("unpack", str(root / "second.zip"), "--run", "third")["run"] == "third"
    assert answer("predict", "--device", "cpu")
    assert answer("ensemble", "--device", "cpu", "--name", "one")
    assert answer("submit")
    assert answer("leaderboard")["rows"]
    rows = answer("sweep", "stages.all.lr=0.02,0.01", "--device", "cpu")["rows"]
    assert {row["verdict"] for row in rows} <= {None, "better", "worse", "cannot tell"}


def test_a_long_command_tells_events_one_a_line(root: Path) -> None:
    words = ("train", "--run", "told", "--set", "stages.all.lr=0.005", "--device", "cpu", "--json")
    done = kbench(*words, "--progress", "jsonl")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["trained"] == [0, 1]
    events = [json.loads(line) for line in done.stderr.splitlines()]
    for event in events:
        if event["event"] in ("progress", "epoch"):
            assert {"stage", "step", "of", "seconds_left", "score"} <= set(event)
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [(event["fold"], event["stage"], event["step"], event["of"]) for event in epochs] == [
        (fold, stage, step, of)
        for fold in (0, 1)
        for stage, step, of in (("first", 1, 1), ("all", 1, 2), ("all", 2, 2))
    ]
    assert all(0 < event["score"] < 5 for event in epochs)
    assert epochs[-1]["seconds_left"] == 0
    assert any(event["event"] == "progress" for event in events)


def test_a_way_of_telling_that_is_none_is_refused(root: Path) -> None:
    done = kbench("train", "--progress", "loud")
    assert "no way of telling" in str(done.exception)


def test_every_long_command_can_tell_events() -> None:
    for name in (
        "train", "sweep", "run", "demo", "score", "predict", "ensemble", "submit", "report", "inspect", "check",
        "folds", "download", "lr-find", "pseudo-label", "compare", "pack", "unpack", "import", "new",
    ):  # fmt: skip
        help_text = kbench(name, "--help").stdout
        assert "--progress" in help_text, name


def test_exit_codes_are_in_the_help_and_on_the_page() -> None:
    shown = kbench("--help").stdout
    for code, what in CODES.items():
        assert re.search(rf"^ *{code}  {re.escape(what)}$", shown, re.M), code
        assert f"| {code} | {what} |" in PAGE


def test_the_calls_of_the_page_are_commands_with_such_options() -> None:
    calls = re.findall(r"^kbench (\S+)(.*)$", PAGE, re.M)
    assert len(calls) >= 10
    for name, words in calls:
        help_text = kbench(name, "--help").stdout
        assert help_text.startswith(("Usage:", "\nUsage:")), name
        for option in re.findall(r"--[a-z-]+", words):
            assert option in help_text, f"{name} {option}"
