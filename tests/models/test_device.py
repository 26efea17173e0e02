from __future__ import annotations

import pytest
import torch
from torch import nn

from kbench.errors import ConfigError
from kbench.models import device as module
from kbench.models.device import (
    autocast,
    choose_device,
    choose_precision,
    cpu_has_bfloat16,
    emulates_bfloat16,
    place,
    usable_precision,
)

CPU = torch.device("cpu")


def test_a_word_that_is_no_device_is_refused_in_a_word() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_device("gpu")
    assert caught.value.what == "'gpu' is no device"


def test_auto_takes_the_accelerator_where_there_is_one() -> None:
    there = [name for name in ("cuda", "xpu", "mps") if torch.get_device_module(name).is_available()]
    assert choose_device("auto").type == (there[0] if there else "cpu")
    assert choose_device("cpu") == CPU


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp16"):
        choose_precision("fp16", CPU, training=True)


@pytest.mark.parametrize("setting", ["fp32", "bf16"])
def test_what_was_set_is_taken(setting: str) -> None:
    assert choose_precision(setting, CPU, training=True) == setting


def test_auto_takes_bfloat16_where_the_processor_multiplies_it() -> None:
    assert choose_precision("auto", CPU, training=True) == "fp32"
    assert choose_precision("auto", CPU, training=False) == ("bf16" if cpu_has_bfloat16() else "fp32")


@pytest.mark.parametrize("hardware", [True, False])
def test_a_model_of_another_machine_is_run_in_what_this_one_computes(monkeypatch, hardware: bool) -> None:
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: hardware)
    assert usable_precision("fp32", CPU) == "fp32"
    assert usable_precision("fp16", CPU) == "fp32"
    assert usable_precision("bf16", CPU) == ("bf16" if hardware else "fp32")
    assert emulates_bfloat16(CPU) is not hardware


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_forward_pass_runs_in_its_precision(precision, dtype: torch.dtype) -> None:
    with autocast(CPU, precision):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == dtype


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "nonsense"])
def test_a_device_that_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        choose_device(name)


def test_auto_finds_a_device() -> None:
    there = [name for name in ("cuda", "xpu", "mps") if torch.get_device_module(name).is_available()]
    assert choose_device("auto").type == (there[0] if there else "cpu")


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_model_is_laid_out_as_asked_and_keeps_its_weights(channels_last: bool) -> None:
    model = nn.Conv2d(3, 4, 3)
    before = model.weight.detach().clone()
    assert place(model, CPU, channels_last=channels_last) is model
    place(model, CPU, channels_last=not channels_last)
    place(model, CPU, channels_last=channels_last)
    assert model.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert torch.equal(model.weight, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA on this machine")
def test_auto_on_a_gpu_is_half_precision() -> None:
    assert choose_precision("auto", torch.device("cuda"), training=True) in ("bf16", "fp16")
