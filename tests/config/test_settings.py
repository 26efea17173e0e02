"""A setting of a stage is one field and the line that uses it: some that are there, and one that is added."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from kbench.config.reading import load_competition
from kbench.workspace import Workspace

TOOL = ROOT / "tools" / "house.py"
DIGITS = "digits"


def files_of(setting: str, tree: Path = ROOT) -> set[str]:
    """Return the files of a checkout that know a setting, as `tools/house.py` counts them."""
    words = [sys.executable, str(TOOL), "--tree", str(tree), "--setting", setting, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout)["places"].get("setting_files", ()))


@pytest.mark.parametrize(
    ("setting", "used", "other"),
    [
        ("draws", "stage", {"kbench/ensemble/bootstrap.py"}),  # of resamples
        ("min_delta", "stage", set()),
        ("ema", "stage", set()),
        ("normalise_decay", "stage", set()),
        (
            "accumulate",
            "stage",
            {f"kbench/{place}.py" for place in ("commands/check", "commands/inspect", "runs/rates")},
        ),
    ],
)
def test_a_setting_is_known_where_it_is_read_and_where_it_is_used(setting: str, used: str, other: set[str]) -> None:
    assert files_of(setting) - other == {"kbench/config/stage.py", f"kbench/training/{used}.py"}


def hunks(text: str) -> list[tuple[str, str, str]]:
    """Return the changes of a recipe: file, the line that is there, and those that are put below it."""
    changes = []
    for block in re.findall(r"```diff\n(.*?)```", text, re.S):
        name, line, *added = block.splitlines()
        assert all(text.startswith("+") for text in added)
        changes.append((name.removeprefix("+++ "), line[1:], "\n".join(text[1:] for text in added)))
    return changes


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with the setting that CONTRIBUTING.md adds."""
    root = tmp_path_factory.mktemp("tree")
    for folder in ("kbench", "competitions"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, line, added in hunks((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        path = root / name
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        assert lines.count(f"{line}\n") == 1, f"CONTRIBUTING.md names a line of {name} that is not there"
        lines.insert(lines.index(f"{line}\n") + 1, f"{added}\n")
        path.write_text("".join(lines), encoding="utf-8")
    return root


def answer(tree: Path, code: str) -> Any:
    """Run Python with the package of a tree in a process of its own; return the JSON of what it prints last."""
    lines = "import json, sys\nfrom pathlib import Path\nimport kbench\n" + code
    path = os.pathsep.join([str(tree), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, check=False, cwd=tree,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_setting_of_the_recipe_touches_two_files(tree: Path) -> None:
    assert files_of("clip_value") == set()
    assert files_of("clip_value", tree) == {"kbench/config/stage.py", "kbench/training/update.py"}


READ = """
from kbench.commands.workspace import schema
from kbench.config.reading import load_competition
from kbench.errors import ConfigError
from kbench.workspace import Workspace

def opened(*assignments):
    return load_competition(Workspace(Path(kbench.__file__).parents[1]), "digits", assignments=assignments)

def training(*assignments):
    return opened(*assignments).hashes(plugins=[], weights=None)["training"]

try:
    opened("stages.cycles.clip_value=much", "stages.cycles.clip_valeu=1")
except ConfigError as error:
    wrong = [str(problem) for problem in error.problems]
print(json.dumps({
    "plain": training(), "clipped": training("stages.cycles.clip_value=0.1"), "wrong": wrong,
    "described": "clip_value" in schema()["$defs"]["Stage"]["properties"],
}))
"""


def test_the_setting_of_the_recipe_is_read_described_and_hashed(tree: Path) -> None:
    found = answer(tree, READ)
    known = load_competition(Workspace(ROOT), DIGITS).hashes(plugins=[], weights=None)["training"]
    assert found["plain"] == known != found["clipped"]  # what was trained before it was there goes on
    assert found["described"]
    assert found["wrong"] == [
        "stages.cycles.clip_value: should be a valid number, got 'much'",
        "stages.cycles.clip_valeu: unknown key (did you mean 'clip_value'?)",
    ]


TRAIN = """
import torch
import toy
from kbench.training.fold import train_fold
from kbench.training.loop import Update

def moved(folder, **settings):
    torch.manual_seed(0)
    model = toy.build()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    plain = {"optimizer": ("sgd", {"momentum": 0.0}), "schedule": ("constant", {"epochs": 1})}
    stage = toy.stage(lr=0.5, weight_decay=0.0, **plain, **settings)
    updates = sum(isinstance(event, Update) for event in
                  train_fold(toy.context(Path(folder)), [stage], lambda: model, resumed=None))
    steps = [(new - old).abs().max().item() for new, old in zip(model.parameters(), before)]
    return updates, max(steps)

print(json.dumps([moved(sys.argv[1] + "/plain"), moved(sys.argv[1] + "/clipped", clip_value=1e-3)]))
"""


def test_the_setting_of_the_recipe_trains(tree: Path, tmp_path: Path) -> None:
    code = TRAIN.replace("sys.argv[1]", repr(str(tmp_path)))
    (_, far), (updates, near) = answer(tree, code)
    most = updates * 0.5 * 1e-3  # rate times the largest gradient, in every update
    assert 0 < near <= most * 1.0001 < far
