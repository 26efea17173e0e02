"""The processes that train one fold together, each on a device of its own (docs/adr/0015-several-devices.md).

Each of them, a rank, runs the same lines in the same order; what differs is said by a `Ranks`. Rank 0 alone writes and
speaks. A batch is cut into even parts in its order, so what the ranks learn from together is the batch of one device:
sums and counts of the loss are added up over the ranks, and so are the gradients. Whatever is decided (a rate, a score,
when to stop) is decided by rank 0 and told to the others, by a group of its own that never waits for a device.

A method named here is called by every rank or by none; `ALONE` answers at once, and leaves every number as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kbench.errors import RankLost, TrainingError

T = TypeVar("T")
_BUCKET = 2**24  # gradients that are added up at once
_PATIENCE = timedelta(days=7)  # who dies is seen by the process that started the ranks, which ends the others


@dataclass(frozen=True)
class Ranks:
    """One of the processes that train a fold, and how it speaks with the others.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        control: group that objects travel by, on the CPU; None where there is one rank.
    """

    rank: int = 0
    count: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are other ranks."""
        return self.count > 1

    # -- who does what ---------------------------------------------------------------------------------------

    def share(self, rows: int) -> slice:
        """Return which of `rows` rows in their order are this rank's; the first ranks have one more where it is odd."""
        each, more = divmod(rows, self.count)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def part(self, rows: int) -> tuple[slice, int]:
        """Return what of a batch this rank loads, and how many rows of that count.

        Where the batch is smaller than there are ranks, one that has no row loads the last one, and none counts.
        """
        own = self.share(rows)
        size = own.stop - own.start
        return (own, size) if size else (slice(rows - 1, rows), 0)

    # -- what all of them know -------------------------------------------------------------------------------

    def decided(self, value: T) -> T:
        """Return what rank 0 says."""
        if not self.several:
            return value
        box: list[Any] = [value if self.first else None]
        with _together():
            dist.broadcast_object_list(box, src=0, group=self.control)
        told: T = box[0]
        return told

    def once(self, compute: Callable[[], T]) -> T:
        """Return what rank 0 computes while the others wait."""
        told: Any = self.decided(compute() if self.first else None)
        answer: T = told
        return answer

    def gathered(self, value: T) -> list[T]:
        """Return every rank's value, in the order of the ranks."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.count
        with _together():
            dist.all_gather_object(values, value, group=self.control)
        return values

    def wait(self) -> None:
        """Wait until all ranks are here."""
        self.gathered(None)

    def hold_alike(self, model: nn.Module) -> None:
        """Hold the ranks' weights against one another.

        Raises:
            TrainingError: they are not the same.
        """
        if not self.several:
            return
        sums = self.gathered([float(value.detach().double().sum()) for value in model.parameters()])
        if any(repr(one) != repr(sums[0]) for one in sums):  # NaN is like NaN
            raise TrainingError(
                "the weights of the devices are no longer the same",
                "devices of one kind, and layers whose result depends on weights and batch alone",
                "train on one device (without `--devices`), or on devices of one kind",
            )

    # -- tensors ---------------------------------------------------------------------------------------------

    def added(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all ranks; no gradient passes."""
        if not self.several:
            return tensor
        total = tensor.detach().clone()
        with _together():
            dist.all_reduce(total)
        return total

    def added_with_gradient(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all ranks; its gradient is the sum of the ranks' gradients."""
        total: torch.Tensor = _Sum.apply(tensor, self)
        return total

    def whole(self, part: torch.Tensor, rows: int) -> torch.Tensor:
        """Return a batch [rows, ...] of every rank's part of it.

        Args:
            part: [B, ...] what this rank loaded by `part(rows)`, on its device, of any dtype.
            rows: of the batch.
        """
        if not self.several:
            return part
        most = -(-rows // self.count)
        padded = part.new_zeros((most, *part.shape[1:]))
        padded[: len(part)] = part
        flat = padded.contiguous().view(-1).view(torch.uint8)  # not every dtype travels
        parts = [torch.empty_like(flat) for _ in range(self.count)]
        with _together():
            dist.all_gather(parts, flat)
        sizes = [Ranks(rank, self.count).share(rows) for rank in range(self.count)]
        return torch.cat([
            one.view(part.dtype).view(padded.shape)[: size.stop - size.start]
            for one, size in zip(parts, sizes, strict=True)
        ])  # fmt: skip

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of parameters over all ranks, in place.

        One that has a gradient on some ranks only counts as zero on the others; one that has none anywhere keeps none.
        """
        if not self.several:
            return
        there = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        with _together():
            dist.all_reduce(there, op=dist.ReduceOp.MAX, group=self.control)
        learned = [parameter for parameter, any_rank in zip(parameters, there.tolist(), strict=True) if any_rank]
        for parameter in learned:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._add([parameter.grad for parameter in learned if parameter.grad is not None])

    def average_statistics(self, model: nn.Module) -> None:
        """Make the running statistics of batch norms in training mode the mean over the ranks, in place."""
        if not self.several:
            return
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
        buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        statistics = [buffer for buffer in buffers if buffer.is_floating_point()]
        self._add(statistics)
        if statistics:
            torch._foreach_div_(statistics, self.count)
        counters = [buffer for buffer in buffers if not buffer.is_floating_point()]
        if counters:  # rank 0 has counted every batch
            most = torch.stack([counter.reshape(()) for counter in counters])
            with _together():
                dist.all_reduce(most, op=dist.ReduceOp.MAX)
            torch._foreach_copy_(counters, list(most.unbind()))

    def _add(self, tensors: Sequence[torch.Tensor]) -> None:
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with _together():
                dist.all_reduce(flat)
            sums = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, total in zip(bucket, sums, strict=True):
                tensor.copy_(total.view(tensor.shape))


ALONE = Ranks()
"""The one process of a fold that trains on one device."""


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        context.ranks = ranks
        return ranks.added(tensor)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        return context.ranks.added(gradients[0]), None


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield the tensors in groups of one dtype whose copy takes little memory."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[torch.Tensor] = []
        size = 0
        for tensor in tensors:
            if tensor.dtype != dtype:
                continue
            if bucket and size + tensor.numel() > _BUCKET:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += tensor.numel()
        yield bucket


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(
            f"the process of another device does not answer: {str(error).partition(chr(10))[0]}",
            "every device's process to live until the fold is trained",
            "run the same command again; it goes on from the last resume point",
        ) from error


@contextmanager
def joined(rank: int, count: int, device: torch.device, meeting: Path) -> Iterator[Ranks]:
    """Join the ranks of a fold for the block.

    Args:
        rank: of this process.
        count: of processes.
        device: of this process, which sees no other GPU; tensors travel by NCCL between GPUs, by gloo between CPUs.
        meeting: a file that is not there yet, the same for all ranks, by which they find one another.
    """
    with _together():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=count,
            timeout=_PATIENCE,
        )  # fmt: skip
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    yield Ranks(rank, count, control)  # who leaves by an error ends its process, which the others see
    dist.destroy_process_group()
