"""Shipped recipes: what they stand for, and that a YAML may change any of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from yamls import digits

from kbench import registry
from kbench.config.competition import Competition
from kbench.config.reading import load_competition, merge, written_out
from kbench.config.yaml12 import dump_yaml
from kbench.errors import ConfigError
from kbench.workspace import Workspace

NAMES = registry.names("recipe")
NEEDED: dict[str, dict[str, Any]] = {"progressive": {"sizes": [64, 128, 256]}}


def named(name: str, **params: Any) -> dict[str, Any]:
    return {"name": name, **NEEDED.get(name, {}), **params}


def write(workspace: Workspace, content: dict[str, Any], **experiments: dict[str, Any]) -> None:
    """Write a competition without a recipe of its own, changed, and its experiments."""
    bare = {key: value for key, value in digits().items() if key not in ("train", "stages", "tta")}
    workspace.competition("mine").write_text(dump_yaml({**bare, **content}))
    for name, change in experiments.items():
        path = workspace.experiment("mine", name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(dump_yaml(change))


def load(workspace: Workspace, experiment: str | None = None, *assignments: str) -> Competition:
    return load_competition(workspace, "mine", experiment=experiment, assignments=assignments)


def training(competition: Competition) -> str:
    return competition.hashes(plugins=[], weights=None)["training"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_the_yaml_it_stands_for(workspace: Workspace, name: str) -> None:
    write(workspace, {"recipe": named(name)})
    short = load(workspace)
    write(workspace, written_out(named(name)))
    assert load(workspace) == short
    assert training(load(workspace)) == training(short)


def test_the_lesson_has_the_eight_steps(workspace: Workspace) -> None:
    write(workspace, {"recipe": "lesson"})
    made = load(workspace)
    head, augmented, whole = made.stages.values()
    assert (head.groups, head.precompute, head.augment.name, head.lr) == ("head", True, "none", "find")
    assert (augmented.groups, augmented.precompute, augmented.augment.name) == ("head", False, "side_on")
    assert augmented.lr_from_stage == "head"
    assert (whole.groups, whole.lr, whole.lr_decay, whole.precompute) == ("all", "find", 10, False)
    assert whole.schedule.params == {"cycles": 3, "cycle_mult": 2, "warmup": 0.05}
    assert whole.keep == ["cycles"]
    assert (made.tta.name, made.tta.params) == ("random", {"n": 4})


def test_satellite_images_turn_and_layers_are_three_times_apart(workspace: Workspace) -> None:
    write(workspace, {"recipe": {"name": "lesson", "images": "satellite"}})
    made = load(workspace)
    assert made.stages["all"].augment.name == "top_down"
    assert made.stages["all"].lr_decay == 3


def test_progressive_sizes_train_head_then_all_at_each(workspace: Workspace) -> None:
    write(workspace, {"recipe": named("progressive")})
    stages = load(workspace).stages
    assert [(stage.size, stage.groups) for stage in stages.values()] == [
        (size, groups) for size in (64, 128, 256) for groups in ("head", "all")
    ]
    assert [name for name, stage in stages.items() if stage.keep] == ["all-256"]


@pytest.mark.parametrize("sizes", [[128, 64], [64, 64], []])
def test_sizes_that_do_not_rise_are_an_error(workspace: Workspace, sizes: list[int]) -> None:
    write(workspace, {"recipe": {"name": "progressive", "sizes": sizes}})
    with pytest.raises(ConfigError, match="rising"):
        load(workspace)


def test_the_yaml_beside_a_recipe_changes_stages_leaves_some_out_and_adds_some(workspace: Workspace) -> None:
    last = {"lr": 1e-4, "schedule": {"name": "constant", "epochs": 1}}
    write(workspace, {
        "recipe": "lesson", "train": {"batch_size": 16}, "tta": "flip",
        "stages": {"augmented": None, "all": {"lr": 1e-3}, "last": last},
    })  # fmt: skip
    made = load(workspace)
    assert list(made.stages) == ["head", "all", "last"]
    assert [stage.batch_size for stage in made.stages.values()] == [16, 16, 16]
    assert (made.stages["all"].lr, made.stages["all"].lr_decay) == (1e-3, 10)
    assert made.tta.name == "flip"


def test_an_experiment_may_change_a_parameter_of_the_recipe_or_a_stage(workspace: Workspace) -> None:
    write(
        workspace, {"recipe": "lesson", "stages": {"head": {"clip": 1.0}}},
        deeper={"recipe": {"images": "satellite"}, "stages": {"all": {"batch_size": 8}}},
        without={"extends": "deeper", "stages": {"augmented": None}},
    )  # fmt: skip
    made = load(workspace, "without")
    assert list(made.stages) == ["head", "all"]
    assert (made.stages["all"].lr_decay, made.stages["all"].batch_size, made.stages["head"].clip) == (3, 8, 1.0)


def test_an_experiment_that_names_another_recipe_leaves_the_stages_of_the_baseline(workspace: Workspace) -> None:
    written = {key: digits()[key] for key in ("train", "stages", "tta")}
    write(workspace, written, lesson={"recipe": "lesson"}, back={"extends": "lesson", "recipe": "frozen"})
    assert list(load(workspace).stages) == ["cycles"]
    assert list(load(workspace, "lesson").stages) == ["head", "augmented", "all"]
    assert list(load(workspace, "back").stages) == ["head"]
    assert load(workspace, "back").tta.name == "flip"


def test_assignments_reach_the_recipe_and_its_stages(workspace: Workspace) -> None:
    write(workspace, {"recipe": "lesson"})
    made = load(workspace, None, "stages.all.lr=0.5", "recipe.images=satellite", "stages.augmented=null")
    assert list(made.stages) == ["head", "all"]
    assert (made.stages["all"].lr, made.stages["all"].lr_decay) == (0.5, 3)
    with pytest.raises(ConfigError, match="there is no stage 'al'"):
        load(workspace, None, "stages.al.lr=1")


@pytest.mark.parametrize(
    ("recipe", "says"),
    [("leson", "unknown recipe"), ({"name": "lesson", "image": "satellite"}, "no such parameter"),
     ({"name": "lesson", "images": "x-ray"}, "photographs"), (3, "should be"), ({"cycles": 2}, "should be")],
)  # fmt: skip
def test_a_wrong_recipe_is_named(workspace: Workspace, recipe: Any, says: str) -> None:
    write(workspace, {"recipe": recipe})
    with pytest.raises(ConfigError, match=says) as found:
        load(workspace)
    assert "recipe" in found.value.what
    assert "kbench list recipe" in found.value.expected


@pytest.mark.parametrize(
    ("change", "says"),
    [({"lr_from_stage": "nowhere"}, "no earlier stage"), ({"lr_from_stage": "all"}, "no earlier stage"),
     ({"lr": 0.1}, "beside a rate")],
)  # fmt: skip
def test_a_rate_comes_from_an_earlier_stage_that_finds_one(
    workspace: Workspace, change: dict[str, Any], says: str
) -> None:
    write(workspace, merge({"recipe": "lesson"}, {"stages": {"augmented": change}}))
    with pytest.raises(ConfigError, match=says):
        load(workspace)


def test_a_file_of_the_recipes_imports_nothing_heavy() -> None:
    text = Path(registry.get("recipe", "lesson").function.__code__.co_filename).read_text()
    assert "torch" not in text
    assert "numpy" not in text
