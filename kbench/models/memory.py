"""When memory runs out: recognise it, and do in parts what does not fit at once.

Predicting in parts gives what predicting at once gives; training in parts is the business of `training/update.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from kbench.errors import PredictionError


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory ran out, an accelerator's or the CPU's."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def in_parts(compute: Callable[[list[torch.Tensor]], torch.Tensor], batch: list[torch.Tensor]) -> torch.Tensor:
    """Return `compute(batch)`; where that does not fit into memory, the results of its halves, concatenated.

    Args:
        compute: takes tensors [B, ...] and returns one [B, ...], row by row.
        batch: tensors of the same rows.

    Raises:
        PredictionError: a single row does not fit.
    """
    try:
        return compute(batch)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
    # the error is gone, and with it the tensors its traceback held
    rows = len(batch[0])
    if rows == 1:
        raise PredictionError(
            f"memory ran out with a single image: {reason}",
            "a model and an image size that fit",
            "predict on another device (--device cpu), or train with a smaller input.size",
        )
    halves = ([tensor[part] for tensor in batch] for part in (slice(0, rows // 2), slice(rows // 2, None)))
    return torch.cat([in_parts(compute, half) for half in halves])


def free_memory(device: torch.device) -> float:
    """Return the bytes that are free on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    known = Path("/proc/meminfo")
    if not known.is_file():  # no Linux: half of what there is
        return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":") for line in known.read_text(encoding="ascii").splitlines())
    return float(fields["MemAvailable"].split()[0]) * 1024
