from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from kbench import files
from kbench.commands.workspace import schema, shipped, write_schema
from kbench.config.competition import Competition
from kbench.config.reading import load_competition, read_yaml, validate
from kbench.config.section import Section
from kbench.config.yaml12 import dump_yaml, parse_yaml
from kbench.errors import ConfigError
from kbench.runs.trial_build import part_problems
from kbench.workspace import Workspace

HERE = Workspace(ROOT)
YAMLS = sorted(HERE.competitions.rglob("*.yaml"))


def load(path: Path) -> Competition:
    """Return the competition or experiment of a shipped YAML."""
    if path.parent == HERE.competitions:
        return load_competition(HERE, path.stem)
    return load_competition(HERE, path.parent.name, experiment=path.stem)


def ids(path: Path) -> str:
    """Return a YAML's path below `competitions/`."""
    return str(path.relative_to(HERE.competitions))


@pytest.fixture(scope="module")
def validator() -> Any:
    """A validator of the schema, where the package is installed."""
    module = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    module.Draft202012Validator.check_schema(schema())
    return module.Draft202012Validator(schema())


def test_there_are_yamls() -> None:
    assert YAMLS


@pytest.mark.parametrize("path", YAMLS, ids=ids)
def test_a_shipped_yaml_loads(path: Path) -> None:
    assert load(path).title


@pytest.mark.parametrize("path", YAMLS, ids=ids)
def test_the_parts_of_a_shipped_yaml_can_be_built(path: Path) -> None:
    assert part_problems(load(path), None) == []


@pytest.mark.parametrize("path", YAMLS, ids=ids)
def test_a_shipped_yaml_is_read_back_unchanged(path: Path) -> None:
    content = read_yaml(path)
    assert parse_yaml(dump_yaml(content), name=path.name) == content


@pytest.mark.parametrize("path", YAMLS, ids=ids)
def test_a_resolved_yaml_is_the_same_competition(path: Path) -> None:
    made = load(path)
    content = parse_yaml(dump_yaml(made.model_dump(mode="json")), name=path.name)
    folder = HERE.own(made.name)
    again = validate(content, file=path.name, folder=folder, name=made.name, experiment=made.experiment)
    plugins = [folder / name for name in made.plugins]
    assert again == made
    assert again.hashes(plugins=plugins, weights=None) == made.hashes(plugins=plugins, weights=None)


@pytest.mark.parametrize("path", YAMLS, ids=ids)
def test_a_shipped_yaml_follows_the_schema(path: Path, validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(read_yaml(path))] == []


def test_the_committed_schema_is_the_one_of_the_code() -> None:
    assert files.read_json(HERE.schema) == schema(), "run `make schema`"


def test_the_schema_is_written_the_same_every_time(workspace: Workspace) -> None:
    first = write_schema(workspace).read_text()
    assert write_schema(workspace).read_text() == first
    assert json.loads(first) == schema()


def test_the_schema_describes_every_section_and_setting() -> None:
    definitions = schema()["$defs"]
    sections = {section.__name__ for section in Section.__subclasses__()} - {"Competition"}
    assert sections <= set(definitions)
    for name in sections:
        assert all("description" in field for field in definitions[name]["properties"].values())


@pytest.mark.parametrize(
    "text",
    [
        "unknown: 1",
        "task: single",
        "seed: x",
        "train: {batch_sise: 3}",
        "stages: {a: {epochs: 3}}",
        "folds: {n: 0}",
        "input: {size: [1]}",
        "metric: 3",
        "name: digits",
    ],
)
def test_the_schema_refuses_what_kbench_refuses(text: str, validator: Any) -> None:
    content = parse_yaml(text, name="x")
    assert list(validator.iter_errors(content))
    with pytest.raises(ConfigError):
        validate(content, file="x", folder=Path("nowhere"), name="x")


@pytest.mark.parametrize(
    "text",
    ["train: {optimizer: sgd}", "extends: other", "tta: {name: random, n: 3}", "input: {size: [1, 2]}", "seed: 3"],
)
def test_the_schema_takes_short_forms_and_what_only_differs(text: str, validator: Any) -> None:
    assert list(validator.iter_errors(parse_yaml(text, name="x"))) == []


def test_an_unknown_shipped_competition_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="ships no competition 'digit'") as caught:
        shipped("digit")
    assert "'digits'" in caught.value.todo
