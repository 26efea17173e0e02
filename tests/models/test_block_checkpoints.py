from __future__ import annotations

import pytest
import torch
from torch import nn

from kbench.errors import ConfigError
from kbench.models.block_checkpoints import checkpoint_blocks
from kbench.models.classifier import timm_classifier


def gradients(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss and gradients of one batch, and how often the first block was computed."""
    torch.manual_seed(3)
    seen: list[int] = []
    block = model.get_submodule("body.blocks.0")
    hook = block.register_forward_pre_hook(lambda module, inputs: seen.append(1))
    model.zero_grad()
    loss = model(images).square().mean()
    loss.backward()
    hook.remove()
    known = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return loss.detach(), known, len(seen)


def test_the_gradients_are_the_same_with_less_kept() -> None:
    torch.manual_seed(0)
    model = timm_classifier(
        3, 3, _backbone="vit_tiny_patch16_224", drop_path=0.2, dropout=0.3, _size=(32, 32),
    ).train()  # fmt: skip
    images = torch.randn(4, 3, 32, 32)
    loss, plain, computed = gradients(model, images)
    assert computed == 1
    checkpoint_blocks(model, on=True)
    again, same, twice = gradients(model, images)
    assert twice == 2
    assert torch.equal(loss, again)
    assert plain.keys() == same.keys()
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    checkpoint_blocks(model, on=False)
    assert gradients(model, images)[2] == 1


def test_a_body_that_cannot_is_told_and_so_is_one_with_batch_norm() -> None:
    with pytest.raises(ConfigError, match="cannot compute its blocks again"):
        checkpoint_blocks(nn.Linear(2, 2), on=True)
    checkpoint_blocks(nn.Linear(2, 2), on=False)
    model = timm_classifier(3, 3, _backbone="resnet18", _size=(32, 32)).train()
    with pytest.raises(ConfigError, match="count every batch twice"):
        checkpoint_blocks(model, on=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    checkpoint_blocks(model, on=True)
