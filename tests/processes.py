"""Processes of `kbench` that start at once: a server that has loaded PyTorch and the like forks them.

Each is a process of its own, with a folder and an environment of its own, and loads kbench itself. `python -m kbench`,
which tests of processes start, spends some seconds on loading PyTorch alone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "timm", "segmentation_models_pytorch", "pandas", "pydantic", "typer"])


class Running:
    """A command that was started; `code` is its exit code, None while it runs, below 0 if a signal ended it.

    `open` until `ended` was asked for once.
    """

    def __init__(self, words: tuple[str, ...], cwd: Path, env: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()  # until `ended`
        self._out, self._err = Path(self._folder.name, "out"), Path(self._folder.name, "err")
        given = (words, str(cwd), dict(env), str(self._out), str(self._err))
        self.words, self.process = words, _SERVER.Process(target=_command, args=given)
        self.process.start()
        assert self.process.pid is not None
        self.pid, self.open = self.process.pid, True

    @property
    def code(self) -> int | None:
        return self.process.exitcode

    def ended(self, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
        """Wait for its end and return what it left."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it has ended"
        self.open = False
        with self._folder:
            out, err = self._out.read_text(), self._err.read_text()
        return subprocess.CompletedProcess(self.words, self.process.exitcode, out, err)


def kbench(*words: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return Running(words, cwd, env).ended()


def _command(words: tuple[str, ...], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may have lost it
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if "OMP_NUM_THREADS" in env:  # which PyTorch reads when it is loaded
        sys.modules["torch"].set_num_threads(int(env["OMP_NUM_THREADS"]))
    sys.argv = ["kbench", *words]
    from kbench.cli.app import script

    script()
