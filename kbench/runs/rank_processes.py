"""One fold on several devices: a process for each, started here, watched, and ended together.

Each process is a rank (`kbench/training/ranks.py`) that runs `kbench/commands/train_rank.py`; they find one another
by a file. An error of one of them is written down and raised here, so a fold fails on several devices as it does
on one. Who dies takes the others along: they would wait for it for ever.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kbench import console, files
from kbench.config.competition import Competition
from kbench.errors import ConfigError, KbenchError, RankLost, counted
from kbench.runs.fold_job import TrainOptions, fold_option
from kbench.runs.fold_processes import PARENT, divided_environment
from kbench.runs.run import Run
from kbench.training.deadline import NONE, Stopped
from kbench.workspace import Choice

_POLL_S = 0.1
_GRACE_S = 10.0  # for the other ranks to end by themselves, and to say why


@dataclass(frozen=True)
class RankTask:
    """What the ranks of a fold train.

    Attributes:
        choice: the experiment and its run.
        trial: whether it is a smoke run.
        hashes: of the run, as the process that starts the ranks knows them.
        fold: its number, or `full`.
        options: how; the device is that of each rank.
    """

    choice: Choice
    trial: bool
    hashes: dict[str, str]
    fold: int | str
    options: TrainOptions


def meeting(folder: Path) -> Path:
    """Return the file by which ranks find one another."""
    return folder / "meeting"


def read_task(folder: Path) -> RankTask:
    """Return what is trained."""
    task: RankTask = pickle.loads((folder / "task").read_bytes())
    return task


def keep_error(folder: Path, rank: int, error: KbenchError | Stopped) -> None:
    """Write down why a rank ends."""
    files.write_bytes(folder / f"error-{rank}", pickle.dumps(error))


def check_devices(competition: Competition, options: TrainOptions) -> None:
    """Hold what is asked for against what there is.

    Raises:
        ConfigError: fewer devices than asked, one named by its number, or a batch too small to be shared.
    """
    if options.devices == 1:
        return
    if options.cluster:
        raise ConfigError(
            "--devices with --cluster", "one of the two: a worker of a cluster trains a fold on one device",
            "leave out --devices, or train on this machine without --cluster",
        )  # fmt: skip
    kind, wanted = _kind(options.device), options.devices * options.jobs
    there = torch.cuda.device_count() if kind == "cuda" else wanted
    if there < wanted:
        jobs = f" for each of {options.jobs} folds at once" if options.jobs > 1 else ""
        raise ConfigError(
            f"--devices {options.devices}{jobs} asks for {wanted} GPUs, and this machine has {there}",
            f"at most {counted(there, 'GPU')} in all",
            f"`--devices {there // options.jobs}`" if there >= 2 * options.jobs else "leave out --devices",
        )
    for name, stage in competition.stages.items():
        if stage.batch_size < options.devices:
            raise ConfigError(
                f"stage {name} has a batch_size of {stage.batch_size}, which {options.devices} devices cannot share",
                "an image of every batch for each device",
                f"`--set stages.{name}.batch_size={options.devices}` or more, or fewer --devices",
            )


def _kind(device: str) -> str:
    """Return the type of device that a name stands for where there are to be several."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if re.fullmatch(r"cuda:\d+", device):
        raise ConfigError(
            f"--device {device} is one device, and --devices asks for more",
            "cuda or cpu beside --devices",
            "`--device cuda`; CUDA_VISIBLE_DEVICES=0,1 chooses which",
        )
    if device not in ("cuda", "cpu"):
        raise ConfigError(f"a fold cannot train on several devices '{device}'", "cuda or cpu", "leave out --devices")
    return device


def train_on_devices(run: Run, fold: int | str, options: TrainOptions) -> None:
    """Train a fold in `options.devices` processes; the first of them, which writes, holds its lease.

    Raises:
        RankLost: one was killed.
        KbenchError: what a process ended by.
        Stopped: in time, at a resume point.
    """
    kind = _kind(options.device)
    console.note(f"fold {fold}: on {options.devices} devices ({kind}), each with its part of every batch")
    task = RankTask(
        run.experiment.choice, run.experiment.trial, run.trained_as, fold, replace(options, device=kind, deadline=NONE)
    )  # fmt: skip
    with files.scratch_folder() as folder:
        files.write_bytes(folder / "task", pickle.dumps(task))
        ranks = [_started(folder, rank, options.devices) for rank in range(options.devices)]
        try:
            told = False
            while any(process.poll() is None for process in ranks) and not any(process.poll() for process in ranks):
                time.sleep(_POLL_S)
                if options.deadline.why and not told:  # they know its time themselves, but a signal only by us
                    _signal(ranks, signal.SIGTERM)
                    told = True
            codes = _ended(ranks)
        except KeyboardInterrupt:
            _signal(ranks, signal.SIGINT)
            raise
        finally:
            _ended(ranks)
        if any(codes):
            raise _reason(folder, fold, codes, options)


def _started(folder: Path, rank: int, count: int) -> subprocess.Popen[bytes]:
    environment = divided_environment(rank, count) | {PARENT: str(os.getpid())}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # they are on one machine
    return subprocess.Popen(
        [sys.executable, "-m", "kbench.commands.train_rank", str(folder), str(rank)],
        env=environment, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True,
    )  # fmt: skip


def _signal(ranks: Sequence[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in ranks:
        if process.poll() is None:
            process.send_signal(number)


def _ended(ranks: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Wait until all have ended, end those that do not; return the codes they would have ended with by themselves."""
    until = time.monotonic() + _GRACE_S
    while any(process.poll() is None for process in ranks) and time.monotonic() < until:
        time.sleep(_POLL_S)
    codes = [process.poll() or 0 for process in ranks]
    _signal(ranks, signal.SIGKILL)
    for process in ranks:
        process.wait()
    return codes


def _reason(folder: Path, fold: int | str, codes: Sequence[int], options: TrainOptions) -> BaseException:
    """Return why the ranks ended: an error of one of them, before what the others say of its end."""
    paths = [folder / f"error-{rank}" for rank in range(len(codes))]
    errors: list[BaseException] = [pickle.loads(path.read_bytes()) for path in paths if path.is_file()]
    own = [error for error in errors if not isinstance(error, RankLost)]
    own.sort(key=lambda error: isinstance(error, Stopped))
    if own:
        return own[0]
    rank = min(range(len(codes)), key=lambda one: codes[one])  # one that a signal ended first
    how = f"was killed by {signal.Signals(-codes[rank]).name}" if codes[rank] < 0 else f"ended with {max(codes)}"
    return RankLost(
        f"the process of device {rank} of fold {fold} {how}; the others were stopped",
        "every device's process to live until the fold is trained",
        f"`kbench train {fold_option(fold)} --devices {options.devices}` goes on from the last resume point; where "
        "memory ran out, with fewer `loader: {workers: N}`",
    )
