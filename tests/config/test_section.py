"""A field that names a part is all a part needs: it is held against the registry, found, tried and built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from pydantic import Field, ValidationError
from yamls import digits

from kbench import registry
from kbench.config import reading
from kbench.config.competition import Competition
from kbench.config.reading import merge, validate, with_stage_defaults
from kbench.config.section import LATER, UNFIT, Component, Kind, Section, Surroundings
from kbench.config.stage import Stage
from kbench.errors import ConfigError, check_number
from kbench.registry import register
from kbench.runs.trial_build import part_problems

KNOWN = Surroundings(task="single_label", metric="log_loss")


def made(change: dict[str, Any] | None = None) -> Competition:
    """Return the digits competition with a change merged over its YAML."""
    return validate(merge(digits(), change or {}), file="digits.yaml", folder=Path("nowhere"), name="digits")


def sections(section: type[Section]) -> Iterator[type[Section]]:
    """Yield a kind of section and all that it may hold."""
    yield section
    for field in section.model_fields.values():
        for inside in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(inside, type) and issubclass(inside, Section):
                yield from sections(inside)


# -- every part ----------------------------------------------------------------------------------------------------

EVERYTHING: dict[str, Any] = {
    "task": "segmentation", "metric": "mean_iou", "ensemble": {"decision": "thresholds"},
    "data": {"masks": "index"}, "model": {"name": "smp", "options": {"decoder": "unet"}},
    "stages": {"cycles": {"loss": "focal", "mix": "mixup"}},
    "input": {"reader": "raster", "files": {"M": "{id}.tif"}, "bands": {"M": {"names": ["green", "nir"]}},
              "derive": ["ndwi"]},
}  # fmt: skip


def test_every_field_that_names_a_part_is_found_with_its_path() -> None:
    content = json.dumps(with_stage_defaults(merge(digits(), EVERYTHING)))
    competition = Competition.model_validate_json(content)
    slots = {slot.where: slot for slot in competition.slots()}
    fields = [
        (kind.named_by or key, kind.name)
        for section in sections(Competition)
        for key, field in section.model_fields.items()
        for kind in field.metadata
        if isinstance(kind, Kind)
    ]
    named = [(where.removesuffix(".0").rpartition(".")[2], slot.kind) for where, slot in slots.items()]
    assert sorted(named) == sorted(fields)
    assert slots["model.name"].params == {"decoder": "unet"}
    assert slots["stages.cycles.loss"].section is competition.stages["cycles"]
    assert {slot.kind for slot in slots.values()} == set(registry.kinds()) - {"recipe"}


def test_what_names_no_part_is_not_found() -> None:
    found = [slot.where for slot in made().slots()]
    assert not {"data.masks", "ensemble.decision", "stages.cycles.loss", "stages.cycles.mix"} & set(found)


def test_a_part_is_built_by_its_path_with_what_the_yaml_says() -> None:
    competition = made({"tta": {"name": "random", "n": 2}})
    assert len(competition.build("tta")) == 3  # the plain view, and two random ones
    assert (
        competition.build("stages.cycles.schedule", 5).steps == competition.stages["cycles"].build("schedule", 5).steps
    )


# -- where the registry is asked -------------------------------------------------------------------------------------


def test_the_registry_is_asked_where_a_part_is_read() -> None:
    with pytest.raises(ValidationError) as caught:
        Stage.model_validate({"loss": {"name": "focal", "gama": 2}, "crop": "rondom"}, context=KNOWN)
    found = [(item["type"], item["loc"], item["ctx"]["where"]) for item in caught.value.errors()]
    assert found == [(UNFIT, ("loss",), "loss.gama"), (UNFIT, ("crop",), "crop")]


def test_without_the_rest_of_the_yaml_only_the_shape_of_a_part_is_checked() -> None:
    assert Stage.model_validate({"loss": {"name": "anything", "at": "all"}}).loss == Component(
        name="anything", at="all"
    )
    with pytest.raises(ValidationError, match=r"loss\.name"):
        Stage.model_validate({"loss": {"gamma": 2}})


def test_a_default_is_held_against_the_task_like_what_is_written() -> None:
    content = merge(digits(), {"task": "segmentation", "metric": "mean_iou", "data": {"masks": "index"}})
    with pytest.raises(ConfigError) as caught:
        validate(content, file="x", folder=Path("nowhere"), name="x")
    assert "model.name: the model 'timm' is not for the task 'segmentation'" in caught.value.what


def test_what_sections_say_against_one_another_is_told_beside_a_part_that_is_wrong() -> None:
    with pytest.raises(ConfigError) as caught:
        made({"metric": "log_los", "stages": {"cycles": {"start": "nowhere"}}})
    assert [problem.where for problem in caught.value.problems] == ["metric", "stages.cycles.start"]


def test_a_name_of_a_wrong_shape_is_one_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        made({"folds": {"strategy": {"name": "anything"}}, "model": {"name": 3}})
    assert [problem.where for problem in caught.value.problems] == ["folds.strategy", "model.name"]


def test_a_name_and_parameters_in_two_fields_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        made({"task": "regression", "metric": "rmse", "model": {"name": "smp", "options": {"decodr": "unet"}}})
    assert [problem.where for problem in caught.value.problems] == ["model.name", "model.options.decodr"]


# -- a new kind of part ----------------------------------------------------------------------------------------------


@pytest.fixture
def blur(monkeypatch: pytest.MonkeyPatch) -> type[Competition]:
    """A competition whose stages name a part of a new kind, by one field."""
    monkeypatch.setitem(registry.MODULES, "blur", ())
    monkeypatch.setitem(registry._parts, "blur", {})

    @register("blur")
    def gaussian(*, sigma: float = 1.0) -> float:
        check_number("blur.sigma", sigma, "(0, inf)")
        return sigma

    class Blurred(Stage):
        blur: Annotated[Component | None, Kind("blur")] = Field(None, description="softens images")

    class Whole(Competition):
        stages: dict[str, Blurred] = Field(description="the recipe")  # type: ignore[assignment]

    monkeypatch.setattr(reading, "Competition", Whole)
    monkeypatch.setattr(reading, "Stage", Blurred)
    return Whole


def blurred(part: Any) -> Competition:
    """Return the digits competition whose stage names such a part."""
    return made({"stages": {"cycles": {"blur": part}}})


@pytest.mark.usefixtures("blur")
def test_a_new_kind_of_part_is_one_field() -> None:
    with pytest.raises(ConfigError, match=r"stages\.cycles\.blur: unknown blur 'gausian' \(did you mean 'gaussian'"):
        blurred("gausian")
    with pytest.raises(ConfigError, match=r"stages\.cycles\.blur\.sigma: should be a valid number, got 'x'"):
        blurred({"name": "gaussian", "sigma": "x"})
    assert [str(problem) for problem in part_problems(blurred({"name": "gaussian", "sigma": 0.0}), None)] == [
        "stages.cycles.blur: blur.sigma is '0.0' (expected: a number in (0, inf); correct `blur.sigma:` in the YAML)"
    ]
    competition = blurred({"name": "gaussian", "sigma": 2.5})
    assert part_problems(competition, None) == []
    assert competition.stages["cycles"].build("blur") == 2.5


@pytest.mark.usefixtures("blur")
def test_a_part_that_is_made_of_more_than_its_parameters_is_not_tried_without_a_row_of_its_own() -> None:
    @register("blur")
    def measured(images: np.ndarray, *, sigma: float = 1.0) -> float:
        return float(images.mean()) * sigma

    assert part_problems(blurred("measured"), None) == []


def test_a_reader_is_tried_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._parts, "reader", dict(registry._parts["reader"]))

    @register("reader")
    def banded(*, bands: int = 1, _channels: int) -> Any:
        check_number("input.reader.bands", bands, f"[1, {_channels}]", whole=True)

    competition = made({"input": {"reader": {"name": "banded", "bands": 7}}})
    assert [problem.where for problem in part_problems(competition, None)] == ["input.reader"]


def test_a_setting_that_came_later_is_hashed_only_where_it_is_used() -> None:
    class Later(Section):
        steps: int = Field(3, description="there from the start")
        stop: Annotated[bool, LATER] = Field(True, description="came later")

    assert Later().view() == {"steps": 3}
    assert Later(stop=False).view() == {"steps": 3, "stop": False}
