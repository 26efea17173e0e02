"""The same job on real photographs with ImageNet weights, where the data is at hand."""

from __future__ import annotations

import json
import os

import processes
import pytest
from places import SHARED
from results import RECIPES, SETS, at_hand, make_workspace

DATA = SHARED
pytestmark = pytest.mark.slow


@pytest.fixture
def kbench(tmp_path):
    """A function that runs a command in a workspace with the recipes of the README's table and their data."""
    make_workspace(tmp_path, DATA)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("KBENCH_", "KAGGLE_"))}

    def run(*words: str) -> str:
        done = processes.kbench(*words, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def needs(name: str) -> None:
    """Skip the test where a set is not at hand."""
    for entry in SETS:
        if entry.name == name and (why := at_hand(entry, DATA)):
            pytest.skip(f"{why}: the real photographs are kept beside the checkout")


def test_every_recipe_has_a_row_in_the_table() -> None:
    files = [path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.yaml")]
    assert {str(name) for name in files} == {entry.name for entry in SETS} - {"digits"}


@pytest.mark.parametrize("name", [entry.name for entry in SETS if entry.competition != "digits"])
def test_a_recipe_of_the_table_passes_the_check(name, kbench) -> None:
    needs(name)
    competition, _, experiment = name.partition("/")
    kbench("download", competition)
    found = json.loads(kbench("check", "-c", competition, *(["-e", experiment] if experiment else []), "--json"))
    assert found["rows"] > 0


def test_photographs_are_used_in_place_and_every_step_works_on_them(kbench) -> None:
    needs("dogcat/best")
    kbench("download", "dogcat")
    assert json.loads(kbench("check", "--images", "--json"))["rows"] == 2400
    assert "every step works: 2 stages" in kbench("train", "-e", "best", "--smoke")


def test_a_head_on_pretrained_features_beats_chance_by_far(kbench) -> None:
    needs("dogcat")
    kbench("download", "dogcat")
    short = ["--set", "input.size=96", "--set", "stages.head.schedule.cycles=1"]
    kbench("train", "--fold", "0", "--run", "head", *short)
    made = json.loads(kbench("ensemble", "head", "--json"))
    assert made["score"] < 0.35
    graded = json.loads(kbench("submit", "--json"))
    assert graded["status"] == "complete"
    assert graded["all_rows"] < 0.35
