from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from yamls import digits

from kbench import files
from kbench.config.competition import Competition, FoldSection, Input, ModelSection
from kbench.config.reading import merge, validate
from kbench.config.section import LATER, Component, Section
from kbench.config.stage import Stage


def made(change: dict[str, Any] | None = None) -> Competition:
    """Return the digits competition with a change merged over its YAML."""
    content = merge(digits(), change or {})
    return validate(content, file="digits.yaml", folder=Path("nowhere"), name="digits")


def training(competition: Competition) -> str:
    """Return the training hash."""
    return competition.hashes(plugins=[], weights=None)["training"]


def contract(competition: Competition) -> str:
    """Return the contract hash."""
    return competition.hashes(plugins=[], weights=None)["contract"]


def stage(**values: Any) -> dict[str, Any]:
    """Return a change of the only stage."""
    return {"stages": {"cycles": values}}


# -- the types --------------------------------------------------------------------------------------------------


def test_a_competition_cannot_be_changed() -> None:
    competition = made()
    with pytest.raises(ValidationError):
        competition.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        competition.stages["cycles"].lr = 1.0  # type: ignore[misc]


def test_the_short_form_of_a_component_is_its_name() -> None:
    assert made({"tta": "flip"}).tta == Component(name="flip")
    assert made({"tta": "flip"}).tta.params == {}


def test_the_parameters_of_a_component_are_what_stands_beside_its_name() -> None:
    assert made().stages["cycles"].schedule.params == {"cycles": 3, "cycle_len": 2, "cycle_mult": 2}


def test_a_list_becomes_a_height_and_a_width() -> None:
    assert made({"input": {"size": [32, 48]}}).input.size == (32, 48)


def test_an_integer_becomes_a_rate() -> None:
    assert made(stage(lr=1)).stages["cycles"].lr == 1.0


@pytest.mark.parametrize("section", [Competition, *Section.__subclasses__()], ids=lambda item: item.__name__)
def test_every_setting_says_what_it_is(section: type[Section]) -> None:
    assert [name for name, field in section.model_fields.items() if not field.description] == []


def test_every_section_says_what_it_is_for() -> None:
    assert all(section.__doc__ for section in Section.__subclasses__())


# -- hashes -----------------------------------------------------------------------------------------------------

CHANGES_WEIGHTS: list[dict[str, Any]] = [
    {"seed": 1},
    {"task": "multi_label", "metric": "bce"},
    {"data": {"target": "other"}},
    {"data": {"train": {"suffix": ".jpg"}}},
    {"data": {"classes": ["a"]}},
    {"data": {"layout": {"name": "csv", "separator": ","}}},
    {"folds": {"n": 4}},
    {"folds": {"seed": 1}},
    {"folds": {"strategy": "kfold"}},
    {"folds": {"options": {"bins": 3}}},
    {"input": {"size": 16}},
    {"input": {"size": [32, 31]}},
    {"input": {"channels": 3}},
    {"input": {"crop": "squash"}},
    {"input": {"mean": [0.5], "std": [0.5]}},
    {"model": {"backbone": "resnet18"}},
    {"model": {"pretrained": True}},
    {"model": {"options": {"dropout": 0.5}}},
    stage(lr=1e-3),
    stage(lr_decay=2),
    stage(lr_from_fold=0),
    stage(weight_decay=0.1),
    stage(schedule={"cycles": 2}),
    stage(schedule={"name": "one_cycle", "epochs": 3}),
    stage(optimizer="sgd"),
    stage(optimizer={"name": "adamw", "eps": 1e-6}),
    stage(groups="head"),
    stage(size=64),
    stage(batch_size=65),
    stage(accumulate=2),
    stage(clip=1.0),
    stage(range_test={"steps": 50}),
    stage(loss="focal"),
    stage(augment={"rotate": 5}),
    stage(augment="none"),
    stage(crop="centre"),
    stage(mix="mixup"),
    stage(sampler="balanced"),
    stage(precision="fp32"),
    stage(channels_last=False),
    stage(ema=0.99),
    stage(precompute=True, groups="head", draws=4),
    stage(precompute=True, groups="head", draws=8),
    stage(early_stop=3),
    stage(min_delta=0.1),
    stage(monitor="loss"),
    stage(keep=["best"]),
    {"input": {"orientation": "ignore"}},
    {"input": {"decode": "auto"}},
    {"stages": {"more": {}}},
    {"train": {"batch_size": 32}},
]
CHANGES_NOTHING: list[dict[str, Any]] = [
    {"title": "x"},
    {"tta": "none"},
    {"tta": {"n": 8}},
    {"ensemble": {"mean": "geometric"}},
    {"ensemble": {"members": ["cycles-0"]}},
    {"submission": {"gzip": True}},
    {"submission": {"format": {"name": "probabilities", "clip": 0.01}}},
    {"loader": {"workers": 3, "valid_batch_size": 7, "checkpoint_minutes": 1.0}},
    {"metric": "accuracy"},
    {"metric": {"name": "log_loss", "eps": 1e-3}},
    {"input": {"cache": "off"}},
    {"input": {"max_pixels": 1000}},
    {"input": {"orientation": "apply", "decode": "exact"}},
    {"source": {"name": "local", "path": "x"}},
]


@pytest.mark.parametrize("change", CHANGES_WEIGHTS, ids=str)
def test_what_changes_weights_changes_the_training_hash(change: dict[str, Any]) -> None:
    assert training(made(change)) != training(made())


def test_no_two_ways_of_training_share_a_hash() -> None:
    assert len({training(made(change)) for change in CHANGES_WEIGHTS}) == len(CHANGES_WEIGHTS)


@pytest.mark.parametrize("change", CHANGES_NOTHING, ids=str)
def test_what_does_not_change_weights_does_not_change_the_training_hash(change: dict[str, Any]) -> None:
    assert training(made(change)) == training(made())


@pytest.mark.parametrize(
    "selects", [stage(early_stop=2), stage(keep=["best"]), stage(schedule={"name": "plateau", "epochs": 3})], ids=str
)
def test_the_metric_counts_when_a_stage_selects_by_it(selects: dict[str, Any]) -> None:
    assert training(made(selects)) != training(made(merge(selects, {"metric": "accuracy"})))


@pytest.mark.parametrize("section", [Stage, Input, ModelSection])
def test_every_setting_of_the_recipe_is_in_the_training_view(section: type[Section]) -> None:
    view = made().training_view()
    seen = {Stage: view["stages"][0][1], Input: view["input"], ModelSection: view["model"]}[section]
    later = {key for key, field in section.model_fields.items() if LATER in field.metadata}  # seen where they are used
    unseen = {Input: {"cache", "max_pixels"}}.get(section, set())
    assert set(section.model_fields) - set(seen) == later | unseen


def test_every_setting_of_the_contract_is_in_the_contract_view() -> None:
    view = made().contract_view()
    assert set(view) == {"task", "data", "folds"}
    assert set(view["folds"]) == set(FoldSection.model_fields)


@given(data=st.data())
@settings(max_examples=25)
def test_hashes_do_not_depend_on_the_order_of_keys(data: st.DataObject) -> None:
    def shuffled(value: Any, path: str = "") -> Any:
        if not isinstance(value, dict):
            return value
        keys = list(value) if path == ".stages" else data.draw(st.permutations(list(value)))
        return {key: shuffled(value[key], f"{path}.{key}") for key in keys}

    content = shuffled(digits())
    other = validate(content, file="x", folder=Path("nowhere"), name="digits")
    assert other.hashes(plugins=[], weights=None) == made().hashes(plugins=[], weights=None)


def test_the_order_of_stages_counts() -> None:
    content = digits()
    own = content.pop("stages")
    there = validate({**content, "stages": {**own, "a": {}}}, file="x", folder=Path("nowhere"), name="digits")
    back = validate({**content, "stages": {"a": {}, **own}}, file="x", folder=Path("nowhere"), name="digits")
    assert training(there) != training(back)


def test_writing_a_default_out_changes_nothing() -> None:
    assert training(made(stage(accumulate=1, precision="auto", groups="all"))) == training(made())


def test_a_default_of_all_stages_counts_like_the_same_value_in_each() -> None:
    assert training(made({"train": {"clip": 1.0}})) == training(made(stage(clip=1.0)))


def test_the_contract_hash_is_that_of_data_and_folds_alone() -> None:
    assert contract(made(stage(lr=1e-3))) == contract(made()) == contract(made({"seed": 1}))
    assert contract(made({"folds": {"n": 4}})) != contract(made())
    assert contract(made({"data": {"target": "x"}})) != contract(made())


def test_the_content_of_plugins_and_weights_counts_and_not_their_place(tmp_path: Path) -> None:
    first = files.write_text(tmp_path / "a.py", "x = 1")
    same = files.write_text(tmp_path / "sub" / "b.py", "x = 1")
    other = files.write_text(tmp_path / "c.py", "x = 2")
    competition = made()
    hashes = [competition.hashes(plugins=[path], weights=None)["training"] for path in (first, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    weights = [competition.hashes(plugins=[], weights=path)["training"] for path in (first, same, other)]
    assert weights[0] == weights[1] != weights[2]
    assert len({*hashes, *weights, training(competition)}) == 5


def test_hashes_are_sixteen_hexadecimal_digits() -> None:
    for value in made().hashes(plugins=[], weights=None).values():
        assert len(value) == 16
        assert int(value, 16) >= 0
