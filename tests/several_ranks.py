"""A function in several processes at once, which know one another as the ranks of a fold (gloo, on the CPU)."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kbench.training.ranks import Ranks, joined

_LIMIT_S = 240.0


def on_ranks(folder: Path, count: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """Return what a function answers on each of `count` ranks.

    Args:
        folder: for their files; a new one for each call.
        count: of processes.
        work: called in each of them with its `Ranks`.
    """
    folder.mkdir(parents=True)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_rank, args=(folder, rank, count, work)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_LIMIT_S)
        if process.exitcode is None:
            process.kill()
    assert [process.exitcode for process in processes] == [0] * count
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(count)]


def _rank(folder: Path, rank: int, count: int, work: Callable[[Ranks], Any]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        with joined(rank, count, torch.device("cpu"), folder / "meeting") as ranks:
            answer = work(ranks)
            (folder / str(rank)).write_bytes(pickle.dumps(answer))
            ranks.wait()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
