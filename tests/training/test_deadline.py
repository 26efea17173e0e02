from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy
from clusters import QUIET, until
from safetensors.numpy import load_file
from small_runs import written

from kbench import files
from kbench.errors import ConfigError
from kbench.training import deadline
from kbench.training.deadline import Deadline, Stopped, seconds_of
from kbench.training.events import Epoch, Event
from kbench.training.fold import begin, train_fold
from kbench.training.fold_context import TIMES
from kbench.training.loop import Update
from kbench.workspace import FoldPaths, RunPaths


@pytest.mark.parametrize(
    ("text", "seconds"), [("11h", 39600), ("1h30m", 5400), ("90m", 5400), ("45s", 45), ("1.5m", 90), ("1d", 86400)]
)
def test_lengths_of_time_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "11", "h", "11 hours", "-3h", "0h", "1h 30m", "nan"])
def test_what_is_no_length_of_time_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="no length of time"):
        seconds_of(text)


def test_there_is_no_time_for_what_takes_longer_than_what_is_left() -> None:
    now = [0.0]
    ends = Deadline(at=100.0, clock=lambda: now[0])
    assert not ends.lacks("update")
    ends.took("update", 10.0)
    ends.took("saving", 5.0)
    now[0] = 81.0
    assert not ends.lacks("update", "saving")  # 81 + 1.2 * 15 = 99
    now[0] = 83.0
    assert ends.lacks("update", "saving")
    assert not ends.lacks("update")
    assert ends.lacks("update", more=5.0)
    assert ends.left == 17.0
    with pytest.raises(Stopped, match="time limit"):
        ends.stop()


def test_without_a_limit_only_a_signal_ends_the_time() -> None:
    with deadline.deadline(None) as ends:
        assert not ends.lacks("update", more=1e9)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert ends.lacks()
        with pytest.raises(Stopped, match="SIGUSR1"):
            ends.stop()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_does_not_look_is_stopped_at_the_limit() -> None:
    began = time.monotonic()
    with pytest.raises(Stopped, match="the time limit is over"), deadline.time_limit("0.2s"):
        time.sleep(30)
    assert time.monotonic() - began < 20


def test_what_a_command_starts_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with deadline.time_limit("100s"):
        with deadline.time_limit("50s") as sooner:
            assert 45 < (sooner.left or 0) <= 50
        with deadline.time_limit("11h") as later:
            assert 90 < (later.left or 0) <= 100
    assert deadline._UNTIL not in os.environ


# -- folds ---------------------------------------------------------------------------------------------------------


def left(folder: Path) -> dict[str, Any]:
    """What a fold leaves, but for times."""
    paths = FoldPaths(folder)
    tensors = {path.name: load_file(path) for path in sorted(paths.root.glob("*.safetensors"))}
    log = [json.loads(line) for line in files.read_lines(paths.log)]
    return {
        "tensors": {f"{name}/{key}": value.tobytes() for name, some in tensors.items() for key, value in some.items()},
        "log": [{key: value for key, value in record.items() if key not in TIMES} for record in log],
    }


def trained(folder: Path, ends: Deadline = deadline.NONE, *, stop_after: int = -1) -> None:
    stages = [toy.stage("first"), toy.stage("second", index=1, accumulate=2, optimizer=("adamw", {}), ema=0.9)]
    resumed = begin(FoldPaths(folder), training=toy.IDENTITY["training"])
    context = toy.context(folder, lines=resumed[0].log_lines if resumed else 0, deadline=ends)
    updates = 0
    for event in train_fold(context, stages, toy.build, resumed=resumed):
        updates += isinstance(event, Update)
        if updates == stop_after:
            ends.why = "told to stop"


def test_a_fold_stopped_after_any_update_ends_as_if_it_never_was(tmp_path: Path) -> None:
    trained(tmp_path / "whole")
    expected = left(tmp_path / "whole")
    assert len(expected["log"]) == 7  # two stages with two epochs each, and the end
    for updates in range(1, 13):  # 4 in each epoch of the first stage, 2 in each of the second
        folder = tmp_path / str(updates)
        with pytest.raises(Stopped, match="told to stop: stopped at a resume point"):
            trained(folder, Deadline(), stop_after=updates)
        assert FoldPaths(folder).last.is_file()
        trained(folder)
        assert left(folder) == expected


def test_a_fold_stops_while_there_is_time_to_judge_and_to_write(tmp_path: Path) -> None:
    """By a clock that counts a second an update and ten a judging: none is begun that would end too late."""
    for limit in (3.0, 10.0, 20.0, 31.0):
        now = [0.0]
        ends = Deadline(at=limit, clock=lambda now=now: now[0])  # type: ignore[misc]
        ends.took = lambda what, seconds: None  # type: ignore[method-assign]
        ends._took |= {"update": 1.0, "judging": 10.0, "saving": 0.5}
        resumed = begin(FoldPaths(tmp_path / str(limit)), training=toy.IDENTITY["training"])
        context = toy.context(tmp_path / str(limit), deadline=ends)
        running = train_fold(context, [toy.stage("only", schedule=("constant", {"epochs": 9}))], toy.build,
                             resumed=resumed)  # fmt: skip
        with pytest.raises(Stopped):
            count(running, now)
        assert now[0] + 0.5 <= limit
        assert now[0] + 1.2 * 11.5 > limit  # and no sooner than it has to


def count(running: Iterator[Event], now: list[float]) -> None:
    for event in running:
        now[0] += isinstance(event, Update)
        now[0] += 10 * isinstance(event, Epoch)


@pytest.mark.slow
def test_a_command_told_to_stop_says_so_and_the_same_command_goes_on(tmp_path: Path) -> None:
    root, undisturbed = written(tmp_path / "one"), written(tmp_path / "other")
    words = ["train", "-c", "labels", "--fold", "all", "--jobs", "2", "--device", "cpu", "--set",
             "stages.all.schedule.cycles=60", "--set", "stages.all.keep=[last]"]  # fmt: skip
    places = [RunPaths(root / "runs" / "labels" / "baseline-s0").fold(fold) for fold in range(2)]

    def started(folder: Path, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kbench", *words, *more], cwd=folder, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, **QUIET},
        )  # fmt: skip

    process = started(root, "--json")
    until(lambda: all(len(files.read_lines(place.log)) > 4 for place in places))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 5, err
    assert json.loads(out)["stopped"] == [0, 1]
    assert all("told to stop by SIGTERM: stopped at a resume point" in place.console.read_text() for place in places)
    out, err = started(root, "--time-limit", "1h", "--json").communicate(timeout=300)
    assert json.loads(out)["trained"] == [0, 1], err
    out, err = started(undisturbed, "--json").communicate(timeout=300)
    assert json.loads(out)["trained"] == [0, 1], err
    for place in places:
        same = undisturbed / place.root.relative_to(root)
        assert left(place.root) == left(same)
