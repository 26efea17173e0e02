"""The README says what is there: commands, options, files, and the YAML it shows."""

from __future__ import annotations

import re

import pytest
import typer.main
import yaml
from places import ROOT

from kbench.cli.app import app
from kbench.config import reading, yaml12
from kbench.config.competition import Competition

README = (ROOT / "README.md").read_text()
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TYPED = sorted({match.strip() for match in re.findall(r"(?:^|`|&& )kbench ([a-z][^`#\n&]*)", README, re.MULTILINE)})


@pytest.mark.parametrize("line", TYPED)
def test_every_command_line_of_the_readme_exists(line):
    words = line.split()
    assert words[0] in COMMANDS
    known = {option for parameter in COMMANDS[words[0]].params for option in parameter.opts}
    assert {word for word in words[1:] if word.startswith("-")} <= known


def test_the_readme_names_the_make_targets_there_are():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE)) <= targets


def test_the_yaml_of_the_readme_is_a_competition():
    shown = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert shown is not None
    content = reading.with_stage_defaults(yaml12.parse_yaml(shown.group(1), name="README.md"))
    competition = Competition.model_validate(content)
    assert list(competition.stages) == ["head", "all"]
    assert yaml.safe_load(shown.group(1))["task"] == competition.task


def test_every_linked_file_is_there():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_reading_order_names_every_part_of_the_package():
    tree = README[README.index("## Where things are") :]
    for path in (ROOT / "kbench").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert path.name in tree, path.name
        if path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/" in tree, path.name
