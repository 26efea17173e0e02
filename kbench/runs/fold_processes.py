"""Run folds at once: one process of `kbench train --fold k` each, started from joblib threads.

A fold is a command line, so a killed worker costs one fold its time since the last resume point and nothing
else. CPU threads or GPUs are divided among the folds; each writes its own console log, and one live table on
stderr reads the folds' logs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kbench import files, records
from kbench.errors import DataError
from kbench.machine import cores
from kbench.workspace import RunPaths

_POLL_S = 1.0
_PARENT = "KBENCH_PARENT"  # process number of the command that trains folds at once
_PR_SET_PDEATHSIG = 1  # of prctl(2)


@dataclass(frozen=True)
class FoldCommand:
    """One fold to train.

    Attributes:
        fold: its number, or `full`.
        words: the command's words after `kbench`.
    """

    fold: int | str
    words: tuple[str, ...]


def run_commands(commands: Sequence[FoldCommand], *, jobs: int, paths: RunPaths, devices: int = 1) -> list[int | str]:
    """Train folds in processes, `jobs` at a time; a failed one does not stop the others.

    Args:
        commands: the folds.
        jobs: how many at once.
        paths: the run; each fold's output goes to its `console.log`.
        devices: of each fold.

    Returns:
        The folds that failed.

    Raises:
        KeyboardInterrupt: the user stopped; every fold was told to stop and can go on later.
    """
    from joblib import Parallel, delayed

    running: dict[int | str, subprocess.Popen[bytes]] = {}
    stop = threading.Event()
    slots = list(range(jobs))
    guard = threading.Lock()

    def one(command: FoldCommand) -> int:
        with guard:
            if stop.is_set():
                return 130
            slot = slots.pop(0)
            log = files.open_log(paths.fold(command.fold).console)
            process = subprocess.Popen(
                [sys.executable, "-m", "kbench", *command.words],
                env=divided_environment(slot, jobs, devices), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
            running[command.fold] = process
        code = process.wait()
        log.close()
        with guard:
            slots.append(slot)
        return code

    with live_table([command.fold for command in commands], paths, running):
        try:
            codes = Parallel(n_jobs=jobs, backend="threading")(delayed(one)(command) for command in commands)
        except KeyboardInterrupt:
            stop.set()
            for process in running.values():
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            for process in running.values():
                process.wait()
            raise
    return [command.fold for command, code in zip(commands, codes, strict=True) if code]


def divided_environment(slot: int, jobs: int, devices: int = 1) -> dict[str, str]:
    """Return the environment of one of `jobs` processes: its share of the CPU threads, its GPU or GPUs."""
    environment = dict(os.environ)
    threads = str(max(1, cores() // jobs))
    environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, _PARENT: str(os.getpid())}
    gpus = visible_gpus()
    if gpus:
        own = dict.fromkeys(gpus[(slot * devices + one) % len(gpus)] for one in range(devices))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return environment


def end_with_parent() -> None:
    """Let the system end this process with the one that started it for a fold, however that one ends (Linux)."""
    parent = os.environ.pop(_PARENT, None)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it has ended already
        os.kill(os.getpid(), signal.SIGTERM)


def visible_gpus() -> list[str]:
    """Return the GPUs a child may use, by the names CUDA knows them by."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name]
    import torch

    return [str(index) for index in range(torch.cuda.device_count())]


@contextmanager
def live_table(folds: Sequence[int | str], paths: RunPaths, running: dict[Any, Any]) -> Iterator[None]:
    """Show on stderr where each fold is, from the folds' logs, until the block ends."""
    from kbench import console

    if not sys.stderr.isatty():
        yield
        return
    from rich.live import Live
    from rich.table import Table

    def table() -> Table:
        shown = Table("fold", "state", "stage", "epoch", "train", "valid", "score", "images/s")
        for fold in folds:
            process = running.get(fold)
            code = None if process is None else process.poll()
            state = "waiting" if process is None else "running" if code is None else "done" if code == 0 else "failed"
            shown.add_row(str(fold), state, *last_epoch(paths, fold))
        return shown

    ended = threading.Event()
    with Live(table(), console=console.err, refresh_per_second=2) as live:

        def refresh() -> None:
            while not ended.wait(_POLL_S):
                live.update(table())

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            live.update(table())


def last_epoch(paths: RunPaths, fold: int | str) -> list[str]:
    """Return stage, epoch, losses, score and speed of a fold's last finished epoch."""
    number, maybe = (int, float), (int, float, type(None))
    keys: dict[str, type | tuple[type, ...]] = {
        "stage": str, "epoch": int, "epochs": int, "train_loss": number, "valid_loss": maybe, "score": maybe,
        "images_per_s": number,
    }  # fmt: skip
    try:
        epochs = records.read_records(paths.fold(fold).log, keys=keys, only={"event": "epoch"})
    except DataError:  # whoever draws its curves says what is damaged
        epochs = []
    if not epochs:
        return ["-"] * 6
    record = epochs[-1]
    numbers = [record["train_loss"], record["valid_loss"], record["score"]]
    return [
        record["stage"], f"{record['epoch'] + 1}/{record['epochs']}",
        *("-" if number is None else f"{number:.4f}" for number in numbers), f"{record['images_per_s']:.0f}",
    ]  # fmt: skip
