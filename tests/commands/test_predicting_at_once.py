"""Two commands that predict the same rows at once: the second waits, and uses what the first made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import small_runs

from kbench.commands.train import train
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.opening import open_run
from kbench.runs.results import whole
from kbench.workspace import Choice

# The first batch that a process predicts takes long where its environment asks for that.
SLOW = small_runs.MODEL.replace(
    "        return self.fc(",
    '        if not self.training:\n            time.sleep(float(os.environ.pop("SLOW", "0")))\n'
    "        return self.fc(",
).replace("import torch\n", "import os\nimport time\n\nimport torch\n", 1)


def test_the_second_of_two_ensembles_waits_and_sends_the_same(tmp_path: Path) -> None:
    small_runs.written(tmp_path)
    (tmp_path / "competitions" / "classes" / "small.py").write_text(SLOW)
    choice = Choice("classes", workspace=tmp_path)
    train(open_experiment(choice), "all", TrainOptions(device="cpu"))
    folder = open_run(choice).paths.fold(0).predictions("test", "all-1").parent

    first = _ensemble(tmp_path, "first", slow=5)
    _until(lambda: _holder(folder / ".lock") == first.pid, first)
    first.send_signal(signal.SIGSTOP)
    second = _ensemble(tmp_path, "second")
    _until(lambda: "waiting for it" in (tmp_path / "second.err").read_text(), second)
    first.send_signal(signal.SIGCONT)
    assert [first.wait(120), second.wait(120)] == [0, 0]
    assert "predicting" not in (tmp_path / "second.err").read_text().partition("waiting for it")[2]

    for path in folder.parent.parent.glob("*/test/*"):
        path.unlink()
    assert _ensemble(tmp_path, "alone").wait(120) == 0
    texts = {name: _submission(tmp_path, name).read_bytes() for name in ("first", "second", "alone")}
    assert texts["first"] == texts["second"] == texts["alone"]


def test_damaged_predictions_are_named_and_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_runs.written(tmp_path)
    choice = Choice("classes", workspace=tmp_path)
    train(open_experiment(choice), "all", TrainOptions(device="cpu"))
    run = open_run(choice)
    score = run.out_of_fold(device="cpu").score
    out = run.paths.fold(0).predictions("oof", "all-1")
    array = out.with_suffix(".npy")
    content = bytearray(array.read_bytes())
    content[-3] ^= 0xFF
    array.write_bytes(content)
    killed = out.with_name(".tmp-1-0a1b2c3d-all-1.ids")  # what a command leaves that is killed while it writes
    killed.write_bytes(b"half")
    capsys.readouterr()
    assert open_run(choice).out_of_fold(device="cpu").score == score
    assert f"'{out}' is damaged: its rows are predicted anew" in capsys.readouterr().err
    assert whole(out) is not None
    assert not killed.exists()


def _ensemble(workspace: Path, name: str, slow: float = 0) -> subprocess.Popen[bytes]:
    words = ["ensemble", "-c", "classes", "--name", name, "--device", "cpu"]
    with open(workspace / f"{name}.err", "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "kbench", *words], cwd=workspace, stdout=log, stderr=log,
            env={**os.environ, "SLOW": str(slow), "NO_COLOR": "1", "COLUMNS": "400"},
        )  # fmt: skip


def _until(holds: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < end
        time.sleep(0.01)


def _holder(lock: Path) -> int | None:
    text = lock.read_text().strip() if lock.is_file() else ""
    return int(text) if text else None


def _submission(workspace: Path, name: str) -> Path:
    (path,) = (workspace / "submissions").rglob(f"{name}.csv")
    return path
