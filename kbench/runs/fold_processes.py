"""Run folds at once: one process of `kbench train --fold k` each, here or wherever there are workers.

A fold is a command line, so a killed worker costs one fold its time since the last resume point and nothing
else. CPU threads or GPUs are divided among the folds; each writes its own console log, and one live table on
stderr reads the folds' logs. `Local` starts processes of this machine; `cluster.py` has workers of Dask and Ray.
To add another kind, write `start`, which returns an `Attempt`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kbench import files, records
from kbench.errors import DataError, FoldBusy
from kbench.machine import cores
from kbench.training.deadline import NONE, Deadline, Stopped
from kbench.workspace import RunPaths

_POLL_S = 1.0
_TICK_S = 0.1
_SILENCE_S = 5.0  # between looks for folds whose worker is silent
_STOPPING_S = 60.0  # that folds elsewhere have to stop
_LOSSES = 10  # attempts at a fold that end with their worker, before it counts as failed
PARENT = "KBENCH_PARENT"  # process number of the command that trains folds at once
STOP = "KBENCH_STOP"  # a file: once it is there, folds that were started from elsewhere stop
FOLDER = "KBENCH_FOLDER"  # where a fold's command is typed, where that is elsewhere
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


class Attempt(Protocol):
    """A fold's command that was started somewhere."""

    def poll(self) -> int | None:
        """Return its exit code, below 0 where it was killed or its machine is gone; None while it runs."""

    def stop(self, *, gently: bool) -> None:
        """Tell it to stop at its next resume point, or at once; it can go on later."""


class Workers(Protocol):
    """What starts folds.

    Attributes:
        elsewhere: whether they may die or fall silent one by one, so that their folds are begun again on others.
    """

    elsewhere: bool

    def start(self, command: FoldCommand, log: Path) -> Attempt | None:
        """Start a fold whose output goes to `log`; None where there is no room now."""

    def close(self) -> None:
        """Leave nothing behind."""


@dataclass
class Local:
    """Processes of this machine, `jobs` at a time, with so many devices each."""

    jobs: int
    devices: int = 1
    elsewhere: bool = False
    _slots: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, command: FoldCommand, log: Path) -> Attempt | None:
        """Start a process in the first slot that is free."""
        free = [slot for slot in range(self.jobs) if slot not in self._slots or self._slots[slot].poll() is not None]
        if not free:
            return None
        environment = divided_environment(free[0], self.jobs, self.devices)
        self._slots[free[0]] = process = start_fold(command.words, environment, log)
        return _Process(process)

    def close(self) -> None:
        """Do nothing: processes end by themselves."""


@dataclass(frozen=True)
class _Process:
    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self, *, gently: bool) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if gently else signal.SIGINT)


def start_fold(words: Sequence[str], environment: Mapping[str, str], log: Path | str) -> subprocess.Popen[bytes]:
    """Start `kbench` with some words in a session of its own; it ends with this process."""
    with files.open_log(Path(log)) as handle:
        return subprocess.Popen(
            [sys.executable, "-m", "kbench", *words],
            env={**os.environ, **environment, PARENT: str(os.getpid())}, cwd=environment.get(FOLDER) or None,
            stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, start_new_session=True,
        )  # fmt: skip


def run_fold(words: Sequence[str], environment: Mapping[str, str], log: str) -> int:
    """Run one fold's command to its end: what a worker of a cluster does.

    Args:
        words: the command's words after `kbench`.
        environment: what is added to the worker's own; `KBENCH_STOP` names the file that stops it.
        log: the file its output goes to.

    Returns:
        Its exit code, below 0 where a signal ended it.
    """
    stop = environment.get(STOP)
    process = start_fold(words, environment, log)
    told = False
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_POLL_S)
        if stop and not told and os.path.exists(stop):
            process.send_signal(signal.SIGTERM)  # which lets it write a resume point
            told = True


def run_commands(
    commands: Sequence[FoldCommand], *, workers: Workers, paths: RunPaths, deadline: Deadline = NONE
) -> dict[int | str, int]:
    """Train folds in processes; a failed one does not stop the others.

    Where workers are elsewhere, a fold whose worker died is begun again, and so is one whose worker is silent, while
    that one may still come back: it finds its lease gone.

    Args:
        commands: the folds.
        workers: who trains them.
        paths: the run; each fold's output goes to its `console.log`.
        deadline: when to stop; the processes know its time themselves, but a signal only by us.

    Returns:
        Each fold's exit code; 5 where it stopped in time.

    Raises:
        KeyboardInterrupt: the user stopped; every fold was told to stop and can go on later.
    """
    folds = {command.fold: Folding(command, paths) for command in commands}
    looked, told = time.monotonic(), False
    with live_table(list(folds), paths, folds):
        try:
            while any(fold.code is None for fold in folds.values()):
                if workers.elsewhere and time.monotonic() - looked > _SILENCE_S:
                    looked = time.monotonic()
                    for fold in folds.values():
                        fold.look_for_silence()
                if deadline.lacks():
                    for attempt in [one for fold in folds.values() for one in fold.attempts if not told]:
                        attempt.stop(gently=True)
                    told = True
                    for fold in folds.values():
                        fold.end()
                for fold in folds.values():
                    if fold.wanted and not fold.begin(workers):
                        break
                time.sleep(_TICK_S)
                for fold in folds.values():
                    fold.look(again=workers.elsewhere)
        except KeyboardInterrupt:
            attempts = [attempt for fold in folds.values() for attempt in fold.attempts]
            for attempt in attempts:
                attempt.stop(gently=False)
            ended = time.monotonic() + (_STOPPING_S if workers.elsewhere else float("inf"))  # some may be silent
            while any(attempt.poll() is None for attempt in attempts) and time.monotonic() < ended:
                time.sleep(_TICK_S)
            raise
    return {name: int(fold.code or 0) for name, fold in folds.items()}


@dataclass
class Folding:
    """A fold on its way to an exit code.

    Attributes:
        command: what is run.
        paths: of the run.
        attempts: those that run now; more than one where a worker fell silent.
        losses: how many ended with their worker.
        wanted: whether one more is to be started.
        code: its exit code, once it has one.
    """

    command: FoldCommand
    paths: RunPaths
    attempts: list[Attempt] = field(default_factory=list)
    losses: int = 0
    wanted: bool = True
    code: int | None = None
    _silent: int = 0  # generation of the lease that was silent

    def poll(self) -> int | None:
        """Return its exit code, None while it has none."""
        return self.code

    def begin(self, workers: Workers) -> bool:
        """Start an attempt; return whether there was room."""
        attempt = workers.start(self.command, self.paths.fold(self.command.fold).console)
        if attempt is not None:
            self.attempts.append(attempt)
            self.wanted = False
        return attempt is not None

    def end(self) -> None:
        """Begin no attempt any more."""
        self.wanted = False
        if self.code is None and not self.attempts:
            self.code = Stopped.exit_code

    def look(self, *, again: bool) -> None:
        """See which attempts ended; one that ended with its worker is made again, on another one."""
        for attempt in list(self.attempts):
            code = attempt.poll()
            if code is None:
                continue
            self.attempts.remove(attempt)
            if again and (code < 0 or code == FoldBusy.exit_code):
                self.losses += code < 0
                continue
            self.code = code if self.code is None else self.code
        if self.code is None and not self.attempts and not self.wanted:
            self.wanted, self.code = self.losses < _LOSSES, None if self.losses < _LOSSES else 1

    def look_for_silence(self) -> None:
        """Want another attempt where the one that has the fold is silent for longer than a lease lasts."""
        from kbench.runs.leases import lease_of

        if self.code is not None or not self.attempts or self.wanted:
            return
        lease = lease_of(self.paths.fold(self.command.fold))
        if lease is not None and lease.state == "silent" and lease.generation > self._silent:
            self._silent, self.wanted = lease.generation, True


def divided_environment(slot: int, jobs: int, devices: int = 1) -> dict[str, str]:
    """Return the environment of one of `jobs` processes: its share of the CPU threads, its GPU or GPUs."""
    environment = dict(os.environ)
    threads = str(max(1, cores() // jobs))
    environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    gpus = visible_gpus()
    if gpus:
        own = dict.fromkeys(gpus[(slot * devices + one) % len(gpus)] for one in range(devices))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return environment


def end_with_parent() -> None:
    """Let the system end this process with the one that started it for a fold, however that one ends (Linux)."""
    parent = os.environ.pop(PARENT, None)
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

    if console.told_in_lines():
        with _told(folds, paths, running):
            yield
        return
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
            state = "waiting" if process is None or getattr(process, "wanted", False) else "running"
            state = state if code is None else "done" if code == 0 else "failed"
            shown.add_row(str(fold), state, *last_epoch(paths, fold))
        return shown

    with Live(table(), console=console.err, refresh_per_second=2) as live, _often(lambda: live.update(table())):
        yield


@contextmanager
def _often(show: Callable[[], None]) -> Iterator[None]:
    """Show something again and again in a thread, and once more when the block has ended."""
    ended = threading.Event()

    def refresh() -> None:
        while not ended.wait(_POLL_S):
            show()

    thread = threading.Thread(target=refresh, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        show()


@contextmanager
def _told(folds: Sequence[int | str], paths: RunPaths, running: dict[Any, Any]) -> Iterator[None]:
    """Tell each fold's epochs, and its end, as events."""
    from kbench import console

    told: dict[int | str, tuple[Any, ...]] = {}
    ended: set[int | str] = set()

    def tell() -> None:
        for fold in folds:
            last, process = last_record(paths, fold), running.get(fold)
            if last and told.get(fold) != (last["stage"], last["epoch"]):
                told[fold] = last["stage"], last["epoch"]
                console.epoch(fold, last)
            code = None if process is None else process.poll()
            if code is not None and fold not in ended:
                ended.add(fold)
                console.event("fold", fold=fold, code=code)

    with _often(tell):
        yield


def last_record(paths: RunPaths, fold: int | str) -> dict[str, Any] | None:
    """Return what a fold's log says of its last finished epoch, or None where there is none."""
    number, maybe = (int, float), (int, float, type(None))
    keys: dict[str, type | tuple[type, ...]] = {
        "stage": str, "epoch": int, "epochs": int, "train_loss": number, "valid_loss": maybe, "score": maybe,
        "images_per_s": number,
    }  # fmt: skip
    try:
        epochs = records.read_records(paths.fold(fold).log, keys=keys, only={"event": "epoch"})
    except DataError:  # whoever draws its curves says what is damaged
        epochs = []
    return dict(epochs[-1]) if epochs else None


def last_epoch(paths: RunPaths, fold: int | str) -> list[str]:
    """Return stage, epoch, losses, score and speed of a fold's last finished epoch."""
    record = last_record(paths, fold)
    if record is None:
        return ["-"] * 6
    numbers = [record["train_loss"], record["valid_loss"], record["score"]]
    return [
        record["stage"], f"{record['epoch'] + 1}/{record['epochs']}",
        *("-" if number is None else f"{number:.4f}" for number in numbers), f"{record['images_per_s']:.0f}",
    ]  # fmt: skip
