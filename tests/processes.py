"""Processes of `kbench` that start at once: a server that has loaded PyTorch and the like forks them.

Each is a process of its own, with a folder and an environment of its own, and loads kbench itself. `python -m kbench`,
which tests of processes start, spends some seconds on loading PyTorch alone.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "timm", "segmentation_models_pytorch", "pandas", "pydantic", "typer"])


def kbench(*words: str, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _SERVER.Process(target=_command, args=(words, str(cwd), dict(env), str(out), str(err)))
        process.start()
        process.join()
        assert process.exitcode is not None, "it has ended"
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def _command(words: tuple[str, ...], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    for path, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if "OMP_NUM_THREADS" in env:  # which PyTorch reads when it is loaded
        sys.modules["torch"].set_num_threads(int(env["OMP_NUM_THREADS"]))
    sys.argv = ["kbench", *words]
    from kbench.cli.app import script

    script()
