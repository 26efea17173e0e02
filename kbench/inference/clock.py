"""How long each model of a pass takes: what a notebook's time limit is held against."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class Clock:
    """Seconds of models, added up over batches.

    Attributes:
        seconds: models that run one body, by the checksums of their weights -> seconds they took together.
        loading: seconds in which models were loaded and made ready.
    """

    seconds: dict[tuple[str, ...], float] = field(default_factory=dict)
    loading: float = 0.0

    @contextlib.contextmanager
    def timing(self, models: Sequence[str], device: torch.device) -> Iterator[None]:
        """Add the seconds of a block to those of some models, to `loading` where none is named.

        An accelerator is waited for at the end of the block.
        """
        started = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent, key = time.perf_counter() - started, tuple(models)
        if key:
            self.seconds[key] = self.seconds.get(key, 0.0) + spent
        else:
            self.loading += spent


def timing(clock: Clock | None, models: Sequence[str], device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return what adds the seconds of a block to a clock, or does nothing where there is none."""
    return contextlib.nullcontext() if clock is None else clock.timing(models, device)
