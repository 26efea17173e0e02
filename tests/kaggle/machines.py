"""Workspaces against the stand-in, and the processes that run in them, as a user's shell would start them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lookalikes
from places import ROOT
from processes import Running
from standin import KEY, SIGNATURE, TOKEN, environment

from kbench.submission.check import read_sample
from kbench.submission.ledger import Entry, Lineage, new_entry, read_ledger
from kbench.workspace import Workspace

SECRETS = (KEY, TOKEN, SIGNATURE, "wrong-token", "Basic ", "Bearer ")

YAML = """
title: Tiny Images
task: single_label
source: {name: kaggle, slug: tiny-images}
data:
  train: {csv: train.csv, images: train, suffix: .png}
  test: {images: test, suffix: .png}
  target: label
folds: {strategy: stratified, n: 5, seed: 1}
metric: log_loss
submission: {format: probabilities}
input: {size: 16, channels: 1}
model: {backbone: resnet10t}
train: {batch_size: 64, optimizer: adamw, lr: 3e-3, precision: fp32}
stages:
  cycle: {schedule: {name: sgdr, cycles: 1, cycle_len: 1}, keep: [cycles]}
"""

WATCH = """
import os, socket
connect = socket.socket.connect
def recorded(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        with open(os.environ["CONNECTIONS"], "a") as log:
            log.write(f"{address[0]}\\n")
    return connect(self, address)
socket.socket.connect = recorded
"""


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def written(workspace: Workspace, name: str, *, shift: float = 0.0, cv: float = 0.5) -> Entry:
    """Write a submission and its record as `kbench ensemble` does."""
    frame = read_sample(workspace.data("tiny") / "sample_submission.csv")
    frame["0"] += shift
    frame["1"] -= shift
    file = workspace.submissions("tiny") / f"{name}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(file, index=False)
    lineage = Lineage("tiny", runs=["baseline-s0"], metric="log_loss", maximise=False, score=cv, low=0.4, high=0.6)
    return new_entry(file, lineage)


def ledger(workspace: Workspace) -> dict[str, Entry]:
    """Return the entries of the ledger by their names."""
    return {entry.name: entry for entry in read_ledger(workspace.submissions("tiny"))}


def typed(text: str) -> str:
    """Return the last command that a message tells the user to type."""
    return re.findall(r"`([^`]+)`", text)[-1]


class Machine:
    """A workspace and the processes that run in it, as a user's shell would."""

    def __init__(self, root: Path, home: Path, url: str) -> None:
        self.root, self.home = root, home
        (root / "competitions").mkdir(parents=True)
        home.mkdir()
        (home / "watch").mkdir()
        (home / "watch" / "sitecustomize.py").write_text(WATCH)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KBENCH_", "KAGGLE_"))}
        self.variables = kept | environment(home) | {
            "KBENCH_KAGGLE_URL": url, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{home / 'watch'}:{ROOT}",
            "CONNECTIONS": str(home / "connections"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(home), "MPLCONFIGDIR": str(home),
        }  # fmt: skip
        del self.variables["KAGGLE_CONFIG_DIR"]

    def run(self, line: str, code: int = 0, **more: str) -> Done:
        """Run a line of the shell."""
        return self._ended(
            line, code, subprocess.run(
                ["sh", "-ec", line], cwd=self.root, env=self.variables | more, capture_output=True, text=True,
                check=False,
            ),
        )  # fmt: skip

    def kbench(self, line: str, code: int = 0, *, cwd: Path | None = None) -> Done:
        """Run the words of a command in a process that starts at once; connections are not recorded."""
        return self.ended(self.start(line, cwd=cwd), code)

    def start(self, line: str, *, cwd: Path | None = None) -> Running:
        """Start a command and leave it running."""
        return Running(tuple(shlex.split(line)), cwd or self.root, self.variables)

    def ended(self, running: Running, code: int = 0) -> Done:
        """Wait for a started command to end."""
        return self._ended(shlex.join(running.words), code, running.ended(300))

    def compete(self) -> Workspace:
        """Put a small competition of the stand-in here, its data already downloaded."""
        workspace = Workspace(self.root)
        workspace.competition("tiny").write_text(YAML)
        for name, content in lookalikes.digits(train=20, test=4)[0].items():
            path = workspace.data("tiny") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return workspace

    def _ended(self, line: str, code: int, ended: subprocess.CompletedProcess[str]) -> Done:
        done = Done(ended.returncode, ended.stdout, ended.stderr)
        assert done.code == code, f"{line} -> {done.code}\n{done.out}\n{done.err}"
        assert "Traceback" not in done.err
        for secret in SECRETS:
            assert secret not in done.out + done.err
        return done

    def hosts(self) -> set[str]:
        """Return the hosts its processes connected to."""
        log = self.home / "connections"
        return set(log.read_text().split()) if log.exists() else set()

    def leaks(self) -> list[str]:
        """Return the files of the workspace that hold a credential."""
        files = [path for path in self.root.rglob("*") if path.is_file()]
        return [str(path) for path in files if any(secret.encode() in path.read_bytes() for secret in SECRETS[:4])]
