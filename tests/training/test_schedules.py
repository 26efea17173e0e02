from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, ReduceLROnPlateau

from kbench import registry
from kbench.errors import ConfigError
from kbench.training.schedules import constant, cosine, curve, one_cycle, plateau, sgdr, triangular


def torch_rates(make, steps: int, lr_max: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr_max)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_sgdr_gives_fastais_first_twelve_rates() -> None:
    rates = curve(sgdr(10, cycles=3, cycle_mult=2, warmup=0.05), 0.1)
    expected = [0.001, 0.09755, 0.09045, 0.07939, 0.06545, 0.05, 0.03455, 0.02061, 0.00955, 0.00245, 0.1, 0.09938]
    assert rates[:12] == pytest.approx(expected, abs=5e-6)


def test_sgdr_gives_fastais_rates_at_the_seams_of_cycles() -> None:
    rates = curve(sgdr(10, cycles=3, cycle_mult=2, warmup=0.05), 0.1)
    assert len(rates) == 70
    assert [rates[29], rates[30], rates[69]] == pytest.approx([0.000616, 0.1, 0.000154], abs=5e-7)


@pytest.mark.parametrize(("cycles", "length", "mult", "epochs"), [(3, 1, 2, 7), (3, 2, 1, 6), (2, 1, 2, 3)])
def test_sgdr_counts_epochs_as_fastai_does(cycles: int, length: int, mult: int, epochs: int) -> None:
    assert sgdr(5, cycles=cycles, cycle_len=length, cycle_mult=mult).epochs == epochs


def test_a_cycle_ends_after_its_last_update_where_fastai_saved_one_update_early() -> None:
    schedule = sgdr(10, cycles=3, cycle_mult=2)
    updates_done = [cycle.last + 1 for cycle in schedule.cycles]
    assert updates_done == [10, 30, 70]
    assert [done - 1 for done in updates_done] == [9, 29, 69]  # fast.ai 0.7


@pytest.mark.parametrize("updates", [1, 2, 3, 10, 20, 21, 39, 40, 60, 360, 4999])
def test_the_warm_up_of_a_twentieth_is_fastais_number_of_updates(updates: int) -> None:
    rates = curve(sgdr(updates, warmup=0.05), 1.0)
    fastai = sum(1 for step in range(updates) if step < updates / 20)
    assert sum(rate == 0.01 for rate in rates[: updates - 1]) == min(fastai, updates - 1)


@settings(deadline=None)
@given(st.integers(1, 50), st.floats(0, 0.999))
def test_a_warm_up_leaves_an_update_of_its_cycle(updates: int, warmup: float) -> None:
    schedule = sgdr(updates, cycles=2, warmup=warmup, warmup_rate=0.0)
    assert schedule.rate(schedule.cycles[0].last, 1.0, []) > 0


@pytest.mark.parametrize(("length", "mult"), [(1, 1), (1, 2), (2, 3), (3, 1)])
def test_sgdr_equals_torchs_warm_restarts_per_update(length: int, mult: int) -> None:
    schedule = sgdr(7, cycles=3, cycle_len=length, cycle_mult=mult, floor_lr=0.003)
    reference = torch_rates(
        lambda optimizer: CosineAnnealingWarmRestarts(optimizer, T_0=7 * length, T_mult=mult, eta_min=0.003),
        schedule.steps,
        0.2,
    )
    assert curve(schedule, 0.2) == pytest.approx(reference, abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 13))
def test_cycles_tile_the_updates(cycles: int, length: int, mult: int, per_epoch: int) -> None:
    schedule = sgdr(per_epoch, cycles=cycles, cycle_len=length, cycle_mult=mult)
    updates = [step for cycle in schedule.cycles for step in range(cycle.first, cycle.last + 1)]
    assert updates == list(range(schedule.steps))
    assert schedule.steps == schedule.epochs * per_epoch
    assert [cycle.index for cycle in schedule.cycles] == list(range(cycles))
    assert all(schedule.rate(cycle.first, 0.5, []) == 0.5 for cycle in schedule.cycles)


@settings(deadline=None)
@given(st.floats(1e-6, 1), st.floats(0, 1), st.floats(0, 0.1))
def test_a_cosine_stays_between_its_floor_and_the_highest_rate(lr_max: float, floor: float, floor_lr: float) -> None:
    lowest = min(lr_max, max(floor * lr_max, floor_lr))
    rates = curve(cosine(3, epochs=4, floor=floor, floor_lr=floor_lr), lr_max)
    assert rates[0] == pytest.approx(lr_max)
    assert all(lowest * (1 - 1e-9) <= rate <= lr_max * (1 + 1e-9) for rate in rates)


@pytest.mark.parametrize(("lr_max", "lowest"), [(1e-3, 1e-4), (1e-4, 5e-5)])
def test_biomassters_cosine_is_torchs_per_epoch_with_the_higher_floor(lr_max: float, lowest: float) -> None:
    schedule = cosine(3, epochs=100, floor=0.1, floor_lr=5e-5, per="epoch")
    reference = torch_rates(lambda optimizer: CosineAnnealingLR(optimizer, 100, eta_min=lowest), 100, lr_max)
    rates = curve(schedule, lr_max)
    assert rates[::3] == pytest.approx(reference, rel=1e-9)
    assert rates[::3] == rates[2::3]


def test_a_constant_schedule_keeps_the_rate() -> None:
    assert curve(constant(2, epochs=3), 0.3) == [0.3] * 6


@pytest.mark.parametrize(
    "schedule",
    [constant(4, epochs=3), cosine(4, epochs=3), one_cycle(4, epochs=3), triangular(4, epochs=3), plateau(4, epochs=3)],
)
def test_other_schedules_are_one_cycle_of_all_updates(schedule) -> None:
    assert [(cycle.first, cycle.last) for cycle in schedule.cycles] == [(0, 11)]
    assert (schedule.epochs, schedule.steps) == (3, 12)


def test_one_cycle_rises_falls_and_ends_in_fastais_tail() -> None:
    schedule = one_cycle(20, epochs=1, div=10, pct=10, momenta=(0.95, 0.85))
    rates, momenta = curve(schedule, 1.0), [schedule.momentum(step) for step in range(20)]
    assert [rates[step] for step in (0, 3, 9, 12, 18, 19)] == pytest.approx([0.1, 0.4, 1.0, 0.7, 0.1, 0.0505])
    assert [momenta[step] for step in (0, 3, 9, 12, 18, 19)] == pytest.approx(
        [0.95, 0.95 - 0.1 / 3, 0.85, 0.85 + 0.1 / 3, 0.95, 0.95]
    )


def test_triangular_rises_in_one_part_of_cut_div_and_falls_in_the_rest() -> None:
    schedule = triangular(16, epochs=2, div=4, cut_div=8, momenta=(0.95, 0.85))
    rates, momenta = curve(schedule, 1.0), [schedule.momentum(step) for step in range(32)]
    assert [rates[step] for step in (0, 2, 4, 18, 31)] == pytest.approx([0.25, 0.625, 1.0, 0.625, 0.25 + 0.75 / 28])
    assert [momenta[step] for step in (0, 4, 18)] == pytest.approx([0.95, 0.85, 0.9])


def test_without_momenta_the_optimizers_own_is_kept() -> None:
    assert all(make(5, epochs=1).momentum(3) is None for make in (one_cycle, triangular, constant, cosine, plateau))


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 3), st.floats(1, 20), st.floats(0, 99), st.floats(1, 20))
def test_one_cycles_of_any_length_stay_in_range(
    per_epoch: int, epochs: int, div: float, pct: float, cut_div: float
) -> None:
    momenta = (0.95, 0.85)
    for schedule in (
        one_cycle(per_epoch, epochs=epochs, div=div, pct=pct, momenta=momenta),
        triangular(per_epoch, epochs=epochs, div=div, cut_div=cut_div, momenta=momenta),
    ):
        assert all(0 < rate <= 1 + 1e-12 for rate in curve(schedule, 1.0))
        assert all(0.85 - 1e-12 <= (schedule.momentum(step) or 0) <= 0.95 + 1e-12 for step in range(schedule.steps))


@settings(deadline=None)
@given(
    st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), max_size=25),
    st.integers(0, 3),
    st.sampled_from([0.0, 1e-3, 0.1]),
    st.sampled_from([3e-8, 1e-7, 1e-3, 0.5]),
    st.sampled_from([0.0, 1e-6]),
)
def test_plateau_equals_torchs(
    scores: list[float], patience: int, threshold: float, lr_max: float, min_lr: float
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr_max)
    reference = ReduceLROnPlateau(
        optimizer, "max", factor=0.3, patience=patience, threshold=threshold, threshold_mode="abs", min_lr=min_lr
    )
    schedule = plateau(4, epochs=26, patience=patience, threshold=threshold, min_lr=min_lr)
    for epoch in range(len(scores) + 1):
        assert schedule.rate(4 * epoch, lr_max, scores[:epoch]) == optimizer.param_groups[0]["lr"]
        if epoch < len(scores):
            reference.step(scores[epoch])


def test_a_plateau_leaves_a_rate_that_would_change_by_less_than_torchs_eps() -> None:
    schedule = plateau(1, epochs=9, patience=0, min_lr=0)
    rates = curve(schedule, 3e-8, [0.5] * 8)
    assert rates[-1] == rates[2] == pytest.approx(9e-9)


def test_a_plateau_replayed_with_all_scores_gives_each_epochs_rate() -> None:
    schedule = plateau(2, epochs=4, patience=0, factor=0.5)
    assert curve(schedule, 1.0, [0.5, 0.5, 0.6, 0.6]) == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("name", "params", "wrong"),
    [
        ("sgdr", {"cycles": 0}, "cycles is '0'"),
        ("sgdr", {"cycle_len": -1}, "cycle_len is '-1'"),
        ("sgdr", {"cycle_mult": 1.5}, "cycle_mult is '1.5'"),
        ("sgdr", {"cycles": True}, "cycles is 'True'"),
        ("sgdr", {"warmup": 1.0}, "warmup is '1.0'"),
        ("sgdr", {"floor": math.nan}, "floor is 'nan'"),
        ("sgdr", {"cycles": 1000, "cycle_mult": 2}, "never end"),
        ("constant", {"epochs": 0}, "epochs is '0'"),
        ("cosine", {"epochs": "3"}, "epochs is '3'"),
        ("cosine", {"epochs": 3, "per": "batch"}, "per is 'batch'"),
        ("one_cycle", {"epochs": 1, "pct": 100}, "pct is '100'"),
        ("one_cycle", {"epochs": 1, "momenta": [0.9]}, "momenta is"),
        ("triangular", {"epochs": 1, "div": 0.5}, "div is '0.5'"),
        ("triangular", {"epochs": 1, "momenta": [0.9, 1.0]}, "momenta is '1.0'"),
        ("plateau", {"epochs": 1, "factor": 1}, "factor is '1'"),
        ("plateau", {"epochs": 1, "patience": -1}, "patience is '-1'"),
    ],
)
def test_a_wrong_value_is_an_error_with_a_remedy(name: str, params: dict, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.build("schedule", name, params, 10)
    assert wrong in caught.value.what
    assert caught.value.expected
    assert caught.value.todo


def test_a_stage_without_updates_is_an_error() -> None:
    with pytest.raises(ConfigError, match="steps_per_epoch is '0'"):
        sgdr(0)
