from __future__ import annotations

from pathlib import Path

from looks import picture

from kbench import registry
from kbench.pictures.curves import StageRates, draw_stages
from kbench.training.schedules import curve


def rates(name: str, params: dict, *, top: float = 1.0, **more) -> StageRates:
    schedule = registry.build("schedule", name, params, 10)
    ends = [cycle.last for cycle in schedule.cycles]
    return StageRates("stage", [curve(schedule, top)], schedule.epochs, more.pop("relative", True), ends, **more)


def test_stages_of_any_schedule_are_drawn_side_by_side(tmp_path: Path) -> None:
    stages = [
        rates("constant", {"epochs": 1}),
        rates("sgdr", {"cycles": 3, "cycle_mult": 2}, kept=True),
        rates("one_cycle", {"epochs": 3}, top=3e-3, relative=False, note="each earlier layer group: 1/10"),
        rates("plateau", {"epochs": 4}, note="follows the validation scores"),
    ]
    one = picture(draw_stages(stages[:1], tmp_path / "one.png"))
    four = picture(draw_stages(stages, tmp_path / "four.png"))
    assert four.shape[1] > 2 * one.shape[1]


def test_layer_groups_with_rates_of_their_own_are_drawn(tmp_path: Path) -> None:
    stage = StageRates("s", [[3e-3] * 5, [1e-3] * 5, [1e-4] * 5], epochs=1, relative=False)
    picture(draw_stages([stage], tmp_path / "p.png"))


def test_a_rate_of_zero_and_a_single_update_are_drawn(tmp_path: Path) -> None:
    picture(draw_stages([StageRates("s", [[0.0]], epochs=1, relative=False)], tmp_path / "p.png"))


def test_a_long_stage_is_thinned(tmp_path: Path) -> None:
    picture(draw_stages([StageRates("s", [[0.1] * 100_000], epochs=9, relative=False)], tmp_path / "p.png"))
