"""Real clusters on the loopback, as processes: a scheduler and workers of Dask, a node of Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from places import ROOT

QUIET = {
    "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}  # fmt: skip


def until(holds: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something holds."""
    ended = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ended, "it never came"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Dask:
    """A scheduler and workers of one thread each; `stop` ends what is left of them."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.port, self.processes = folder, free_port(), {}  # type: ignore[var-annotated]
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
        self.workers = [self.add(number) for number in range(workers)]

    @property
    def address(self) -> str:
        return f"dask://127.0.0.1:{self.port}"

    def add(self, number: int) -> subprocess.Popen[bytes]:
        return self._start(
            "worker", f"tcp://127.0.0.1:{self.port}", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--name",
            str(number), "--local-directory", str(self.folder / f"worker-{number}"),
        )  # fmt: skip

    def _start(self, what: str, *words: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{what}.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{what}", *words], stdout=log, stderr=log,
                env={**os.environ, **QUIET}, cwd=self.folder,
            )  # fmt: skip
        self.processes[process.pid] = process
        return process

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


class Ray:
    """A head with some cores, of which a fold takes one."""

    def __init__(self, cores: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # paths of its sockets are short
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self._start("--head", "--port", str(self.port), "--num-cpus", str(cores), "--temp-dir", str(self.folder),
                    "--include-dashboard", "false")  # fmt: skip
        until(lambda: _open(self.port))

    @property
    def address(self) -> str:
        return f"ray://127.0.0.1:{self.port}"

    def _start(self, *words: str) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats",
                   "--object-store-memory", str(80 * 2**20), "--node-ip-address", "127.0.0.1", *words]  # fmt: skip
        with open(self.folder / "log", "ab") as log:
            self.processes.append(subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **QUIET}, cwd=self.folder, start_new_session=True,
            ))  # fmt: skip

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _open(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def owner(lease: Path) -> int:
    """The process that has a lease; 0 where it was given back."""
    said = json.loads(lease.read_text())
    return 0 if said.get("released") else int(said["process"])
