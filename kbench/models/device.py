"""Device, precision, memory format and memory: chosen by what the hardware can, never by timing.

Channels-last is the faster memory format of convolutional networks everywhere. On a CPU models train in fp32 and, where
the processor has bfloat16 instructions (AMX or AVX-512 BF16), predict in bfloat16. On a GPU bfloat16 is taken where the
hardware has it, else float16 with a gradient scaler. `benchmarks/README.md` says how to repeat the measurements. When
memory runs out, `in_parts` predicts in halves, which gives what predicting at once gives; training in parts is the
business of `training/update.py`. To admit another kind of device, add it to `choose_device` and `choose_precision`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kbench.errors import ConfigError, PredictionError

Precision = Literal["fp32", "bf16", "fp16"]


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of a name such as `cpu` or `cuda:1`; `auto` takes the accelerator that torch finds, if any.

    Raises:
        ConfigError: the device is not there.
    """
    if name == "auto":
        name = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    elif not re.fullmatch(r"(cpu|cuda|xpu|mps)(:\d+)?", name):
        raise ConfigError(f"'{name}' is no device", "auto, cpu, cuda or cuda:N", "leave out --device")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"the device '{name}' cannot be used: {str(error).splitlines()[0]}",
            "auto, cpu, cuda or cuda:N",
            "leave out --device",
        ) from error
    return device


def choose_precision(setting: str, device: torch.device, *, training: bool) -> Precision:
    """Return the precision of a setting; `auto` takes what the hardware computes fast and right.

    Args:
        setting: `auto`, `fp32`, `bf16` or `fp16`.
        device: where the model is.
        training: on a CPU `auto` trains in fp32: bf16 gains little there, and weight gradients of convolutions with
            one-pixel maps were found to depend on stale memory (docs/adr/0007-bf16.md).

    Raises:
        ConfigError: fp16 on a CPU.
    """
    if setting == "fp16" and device.type == "cpu":
        raise ConfigError(
            "fp16 on a CPU is not mixed precision: torch computes it in fp32 or very slowly",
            "precision auto, fp32 or bf16 on a CPU",
            "set `precision: auto`",
        )
    if setting == "fp32":
        return "fp32"
    if setting != "auto":
        return "bf16" if setting == "bf16" else "fp16"
    if device.type == "cuda":
        return "fp16" if emulates_bfloat16(device) else "bf16"
    if device.type == "cpu" and not training and cpu_has_bfloat16():
        return "bf16"
    return "fp32"


def usable_precision(precision: Precision, device: torch.device) -> Precision:
    """Return the precision to predict in on a device with a model that was judged in another one, maybe elsewhere.

    What the device would only emulate is computed in fp32, whose range holds whatever bf16 and fp16 hold.
    """
    emulated = device.type == "cpu" if precision == "fp16" else precision == "bf16" and emulates_bfloat16(device)
    return "fp32" if emulated else precision


def cpu_has_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 in hardware."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)


def emulates_bfloat16(device: torch.device) -> bool:
    """Return whether bf16 on a device is slower than fp32."""
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not cpu_has_bfloat16()


def autocast(device: torch.device, precision: Precision) -> Any:
    """Return a context manager that computes in a precision; it must not span a `yield`."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def place(model: nn.Module, device: torch.device, *, channels_last: bool) -> nn.Module:
    """Move a model to its device and memory format; return it."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    moved: nn.Module = model.to(device).to(memory_format=memory_format)
    return moved


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
