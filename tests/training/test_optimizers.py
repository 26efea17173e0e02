from __future__ import annotations

import pytest
import torch
from torch import nn

from kbench import registry
from kbench.errors import ConfigError
from kbench.training.optimizers import apply_schedule, parameter_groups, per_group, spread
from kbench.training.schedules import constant, one_cycle, sgdr


def network() -> tuple[nn.Sequential, list[list[tuple[str, nn.Parameter]]]]:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3))
    return model, [
        [*model[0].named_parameters(prefix="0"), *model[1].named_parameters(prefix="1")],
        list(model[2].named_parameters(prefix="2")),
    ]


def test_one_value_stands_for_every_layer_group() -> None:
    assert per_group(0.1, 3, what="lr") == [0.1, 0.1, 0.1]


def test_one_value_per_layer_group_is_kept() -> None:
    assert per_group([1e-4, 1e-3, 1e-2], 3, what="lr") == [1e-4, 1e-3, 1e-2]


@pytest.mark.parametrize("value", [[0.1, 0.2], [0.1] * 4, -0.1, "find", [0.1, None, 0.2], float("nan"), True])
def test_a_wrong_number_of_values_or_a_wrong_value_is_an_error(value) -> None:
    with pytest.raises(ConfigError) as caught:
        per_group(value, 3, what="lr")
    assert caught.value.what.startswith("lr ")


def test_earlier_layer_groups_learn_slower_by_the_decay() -> None:
    assert spread(0.09, 3, 3) == pytest.approx([0.01, 0.03, 0.09])
    assert spread(0.09, 1, 2) == [0.09, 0.09]


def test_biases_and_norms_do_not_decay() -> None:
    _, layers = network()
    groups = parameter_groups(layers, [0.1, 0.2], [0.01, 0.02], no_decay=True)
    assert [(group["layer"], group["lr"], group["weight_decay"]) for group in groups] == [
        (0, 0.1, 0.01),
        (0, 0.1, 0.0),
        (1, 0.2, 0.02),
        (1, 0.2, 0.0),
    ]
    assert all(
        (parameter.ndim <= 1) == (group["weight_decay"] == 0) for group in groups for parameter in group["params"]
    )


def test_without_exemptions_there_is_one_group_per_layer_group() -> None:
    model, layers = network()
    groups = parameter_groups(layers, [0.1, 0.2], [0.01, 0.02], no_decay=False)
    assert [len(group["params"]) for group in groups] == [4, 2]
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in model.parameters()}


def test_frozen_parameters_are_left_out() -> None:
    model, layers = network()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    assert [group["layer"] for group in parameter_groups(layers, [0.1, 0.2], [0, 0], no_decay=False)] == [1]


def test_nothing_to_train_is_an_error() -> None:
    model, layers = network()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="none of the 2 layer groups"):
        parameter_groups(layers, [0.1, 0.2], [0, 0], no_decay=False)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.9)),
        ("adam", lambda groups: torch.optim.Adam(groups)),
        ("adamw", lambda groups: torch.optim.AdamW(groups)),
    ],
)
def test_an_optimizer_updates_as_torchs_with_the_same_groups(name: str, reference) -> None:
    results = []
    for kbench in (True, False):
        torch.manual_seed(0)
        model, layers = network()
        if kbench:
            optimizer = registry.build("optimizer", name, {"no_decay": True}, layers, [0.01, 0.1], [0.1, 0.2])
        else:
            optimizer = reference(
                [
                    {"params": [model[0].weight], "lr": 0.01, "weight_decay": 0.1},
                    {
                        "params": [model[0].bias, model[1].weight, model[1].bias],
                        "lr": 0.01,
                        "weight_decay": 0.0,
                    },
                    {"params": [model[2].weight], "lr": 0.1, "weight_decay": 0.2},
                    {"params": [model[2].bias], "lr": 0.1, "weight_decay": 0.0},
                ]
            )
        for _ in range(3):
            optimizer.zero_grad()
            features = model[1](model[0](torch.ones(2, 1, 4, 4))).mean((2, 3))
            model[2](features).square().sum().backward()
            optimizer.step()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)  # torch's own unfused loop rounds elsewhere


def test_a_schedule_scales_each_groups_highest_rate() -> None:
    _, layers = network()
    optimizer = registry.build("optimizer", "sgd", {}, layers, [0.01, 0.1], [0.0, 0.0])
    apply_schedule(optimizer, sgdr(4), 2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.05])
    apply_schedule(optimizer, sgdr(4), 0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.1])


def test_a_schedule_sets_the_momentum_of_sgd_and_the_first_beta_of_adam() -> None:
    schedule = one_cycle(20, epochs=1, momenta=(0.95, 0.85))
    for name, momentum in (("sgd", lambda group: group["momentum"]), ("adamw", lambda group: group["betas"][0])):
        optimizer = registry.build("optimizer", name, {}, network()[1], [0.1, 0.1], [0.0, 0.0])
        apply_schedule(optimizer, schedule, 9)
        assert [momentum(group) for group in optimizer.param_groups] == pytest.approx(
            [0.85] * len(optimizer.param_groups)
        )


def test_a_schedule_without_momentum_leaves_the_optimizers() -> None:
    optimizer = registry.build("optimizer", "sgd", {"momentum": 0.7}, network()[1], [0.1, 0.1], [0.0, 0.0])
    apply_schedule(optimizer, constant(4, epochs=1), 0)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.7, 0.7]


def test_a_momentum_for_an_optimizer_without_one_is_an_error() -> None:
    optimizer = torch.optim.Adagrad(parameter_groups(network()[1], [0.1, 0.1], [0, 0], no_decay=False))
    with pytest.raises(ConfigError, match="the optimizer has none"):
        apply_schedule(optimizer, one_cycle(4, epochs=1, momenta=(0.95, 0.85)), 0)


def test_the_highest_rate_survives_saving_and_loading() -> None:
    optimizers = [
        registry.build("optimizer", "adamw", {}, network()[1], [rate, rate], [0.0, 0.0]) for rate in (0.1, 0.2)
    ]
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert all(group["lr_max"] == 0.1 for group in optimizers[1].param_groups)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("sgd", {"momentum": 1.0}),
        ("sgd", {"momentum": 0, "nesterov": True}),
        ("adamw", {"betas": [0.9]}),
        ("adamw", {"betas": [0.9, 1.0]}),
        ("adam", {"eps": 0}),
    ],
)
def test_a_wrong_parameter_is_an_error(name: str, params: dict) -> None:
    with pytest.raises(ConfigError):
        registry.build("optimizer", name, params, network()[1], [0.1, 0.1], [0.0, 0.0])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_first_step_that_overflows_leaves_nothing_behind(name: str) -> None:
    """fp16 begins with such steps: neither weights nor momentum may keep anything of them."""
    found = []
    for overflows in (1, 0):
        torch.manual_seed(0)
        model, layers = network()
        optimizer = registry.build("optimizer", name, {}, layers, [0.01, 0.1], [0.1, 0.2])
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for step in range(overflows + 2):
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.full_like(parameter, torch.inf if step < overflows else float(number + 1))
            scaler.scale(torch.ones(()))  # the scaler knows its scale from the first loss on
            scaler.step(optimizer)
            scaler.update(4.0)
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    torch.testing.assert_close(*found, rtol=0, atol=0)
