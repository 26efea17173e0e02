from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from torch import nn
from torch.optim.swa_utils import update_bn

from kbench.config.stage import Average
from kbench.models.checkpoint import read_checkpoint, snapshot_tensors
from kbench.training.fold import begin, train_fold
from kbench.training.optimizers import apply_schedule, normalised, sgd
from kbench.training.schedules import sgdr
from kbench.training.snapshots import refit_batch_norm, weight_mean
from kbench.training.stage_plan import StagePlan
from kbench.workspace import FoldPaths

TRAINING = toy.IDENTITY["training"]


pytestmark = pytest.mark.usefixtures("quick_disk")


def models(count: int) -> list[nn.Module]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(toy.TinyNet())
    return made


def test_the_running_mean_is_that_of_all_states() -> None:
    mean, states = weight_mean(models(1)[0]), []
    for index, model in enumerate(models(4)):
        model.norm.num_batches_tracked.fill_(index)
        mean.update_parameters(model)
        states.append(model.state_dict())
    assert int(mean.n_averaged) == 4
    for name, value in mean.module.state_dict().items():
        parts = torch.stack([state[name].double() for state in states])
        torch.testing.assert_close(value.double(), parts.mean(0) if value.is_floating_point() else parts[-1])


def test_batch_norm_is_refitted_as_torch_does_with_dropout_off() -> None:
    (model,) = models(1)
    reference = copy.deepcopy(model)
    reference.drop.p = 0.0
    batches = [torch.randn(5, 3, 8, 8) for _ in range(4)]
    update_bn(batches, reference)
    refit_batch_norm(model, batches, device=toy.CPU, precision="fp32")
    assert torch.equal(model.norm.running_mean, reference.norm.running_mean)
    assert torch.equal(model.norm.running_var, reference.norm.running_var)
    assert model.norm.momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_frozen_statistics_stay() -> None:
    (model,) = models(1)
    for parameter in model.norm.parameters():
        parameter.requires_grad_(False)
    before = model.norm.running_mean.clone()
    refit_batch_norm(model, [torch.randn(5, 3, 8, 8)], device=toy.CPU, precision="fp32")
    assert torch.equal(model.norm.running_mean, before)


def trained(folder: Path, stage: StagePlan, *, events: int | None = None) -> int:
    paths = FoldPaths(folder)
    paths.root.mkdir(parents=True, exist_ok=True)
    resumed = begin(paths, training=TRAINING)
    context = toy.context(folder, rows=28, lines=resumed[0].log_lines if resumed else 0, checkpoint_s=0.0)
    count = 0
    running = train_fold(context, [stage], toy.build, resumed=resumed)
    for _ in running:
        count += 1
        if count == events:
            running.close()
            break
    return count


def weights(folder: Path, tag: str) -> dict[str, torch.Tensor]:
    found = read_checkpoint(FoldPaths(folder).snapshot("only", tag))
    assert found is not None
    return snapshot_tensors(found)


CYCLES = {"schedule": ("sgdr", {"cycles": 3, "cycle_len": 1}), "keep": frozenset({"cycles", "average"})}


def test_a_stage_keeps_the_mean_of_its_cycles_with_statistics_of_its_own(tmp_path: Path) -> None:
    trained(tmp_path / "fold-0", toy.stage(average=Average(start=2), **CYCLES))
    mean = weights(tmp_path / "fold-0", "average")
    parts = [weights(tmp_path / "fold-0", tag) for tag in "12"]
    for name in ("conv.weight", "norm.weight", "fc.bias"):
        torch.testing.assert_close(mean[name], (parts[0][name] + parts[1][name]) / 2)
    between = (parts[0]["norm.running_mean"] + parts[1]["norm.running_mean"]) / 2
    assert not torch.allclose(mean["norm.running_mean"], between, atol=1e-6)


@pytest.mark.parametrize("of", ["epochs", "cycles"])
def test_a_mean_stopped_again_and_again_is_the_same_to_the_bit(tmp_path: Path, of: Any) -> None:
    stage = toy.stage(average=Average(of=of), **CYCLES)
    trained(tmp_path / "whole", stage)
    while trained(tmp_path / "stopped", stage, events=5) == 5:
        pass
    whole, stopped = weights(tmp_path / "whole", "average"), weights(tmp_path / "stopped", "average")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


# -- weight decay (F-21) -------------------------------------------------------------------------------------------


def layers() -> list[list[tuple[str, nn.Parameter]]]:
    return [[("weight", nn.Parameter(torch.ones(3, 2)))]]


def test_a_decoupled_decay_shrinks_weights_by_rate_times_decay() -> None:
    optimizer = sgd(layers(), [0.5], [0.1], decoupled=True, momentum=0.9)
    (parameter,) = optimizer.param_groups[0]["params"]
    for _ in range(2):
        parameter.grad = torch.zeros_like(parameter)
        apply_schedule(optimizer, sgdr(4, cycles=1), 0)
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((3, 2), (1 - 0.5 * 0.1) ** 2))
    assert torch.count_nonzero(optimizer.state[parameter]["momentum_buffer"]) == 0  # the momentum knows nothing of it


@pytest.mark.parametrize("decoupled", [True, False])
def test_a_normalised_decay_is_divided_by_the_root_of_the_updates_of_the_cycle(decoupled: bool) -> None:
    optimizer = normalised(sgd(layers(), [0.5], [0.3], decoupled=decoupled))
    schedule = sgdr(4, cycles=2, cycle_mult=2)
    key = "decoupled" if decoupled else "weight_decay"
    for step, updates in [(0, 4), (3, 4), (4, 8), (11, 8), (2, 4)]:
        apply_schedule(optimizer, schedule, step)
        assert optimizer.param_groups[0][key] == pytest.approx(0.3 / math.sqrt(updates))
