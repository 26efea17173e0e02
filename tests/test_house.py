"""`tools/house.py` counts what it says: known answers on a small tree, all keys on this checkout."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "house.py"

TREE = {
    "kbench/__init__.py": "def __getattr__(name):\n    from kbench import api\n    return api\n",
    "kbench/api.py": "from kbench.commands.top import run\n",
    "kbench/console.py": "import sys\n",
    "kbench/tasks.py": "DENSE = ('segmentation',)\ndef is_dense(task):\n    return task in DENSE\n",
    "kbench/config.py": "class Stage:\n    draws: int = 1\n",
    "kbench/commands/__init__.py": "",
    "kbench/commands/top.py": (
        "from kbench import console\n"
        "from kbench.commands.middle import step\n"
        "from kbench.commands.bottom import Look\n"
        "def run(setup, paths, *, identity=None): return step\n"
        "def show(setup, paths): return Look\n"
    ),
    "kbench/commands/middle.py": "from .bottom import Look as made\ndef step(given): return given\n",
    "kbench/commands/bottom.py": (
        "from kbench.inference.maps import MapSet, Plain\n"
        "from kbench.tasks import DENSE, is_dense\n"
        "class Look:\n    setup: int\n    paths: int\n    identity: int\n"
        "def look(x, task, dense):\n"
        "    if is_dense(task) or isinstance(x, MapSet | Plain):\n        return 1\n"
        "    return 2 if dense else task == 'regression' or task in DENSE\n"
    ),
    "kbench/inference/__init__.py": "",
    "kbench/inference/maps.py": (
        '"""Maps (F-24), stored (B-04), not UTF-16."""\n'
        "from typing import TYPE_CHECKING\n"
        "from kbench.tasks import is_dense\n"
        "from kbench.data.images import read\n"
        "if TYPE_CHECKING:\n    from kbench.commands.top import run\n"
        "class MapSet: ...\n"
        "class Set: ...\n"
        "class Plain: ...\n"
        "found = read(draws=1) if is_dense('x') else isinstance(found, Set)\n"
    ),
    "kbench/data/__init__.py": "",
    "kbench/data/images.py": (
        "from kbench.data import maps\n"
        "def read(draws):\n"
        "    from kbench.commands import middle\n"  # upwards, and a circle of folders and in functions
        "    return middle\n"
    ),
    "kbench/data/maps.py": "import kbench.data.images\ntext = 'draws'\n" + "\n" * 500,
}
NUMBERS = {
    "files": 14,
    "longest_file": 502,
    "long_files": 1,
    "shared_names": 1,  # maps.py
    "command_files": 4,
    "command_imports": 3,
    "command_storeys": 3,
    "upward_imports": 1,
    "allowed_upward_imports": 2,  # top -> console, kbench -> api
    "unplaced_wings": 0,
    "circles_on_load": 1,  # images and maps
    "circles_anywhere": 1,  # and what stands above them
    "folder_circles": 1,  # commands, inference and data
    "dense_branches": 3,
    "dense_branches_above": 2,
    "task_tests_above": 3,
    "trio_functions": 1,
    "trio_classes": 1,
    "setting_names": 3,  # config, inference.maps, images
    "setting_files": 2,  # config, data.maps
    "dialect_found": 2,
    "dialect_made": 1,
    "dialect_given": 2,
    "citations": 2,
    "sources_page": 1,
    "citations_unexplained": 1,
}
COMING = {
    "kbench/__init__.py": "",
    "kbench/files.py": "from kbench import workspace, errors\n",  # one floor: no order
    "kbench/workspace.py": "",
    "kbench/errors.py": "from kbench.config.stage import Stage\n",  # upwards
    "kbench/odd.py": "import kbench.cli.main\nfrom kbench.tasks import is_dense\nis_dense('x')\n",
    "kbench/tasks.py": "",
    "kbench/cli/__init__.py": "",
    "kbench/cli/main.py": "from kbench import console\nfrom kbench.ensemble import x\n",
    "kbench/console.py": "",
    "kbench/config/__init__.py": "",
    "kbench/config/stage.py": "from ..sources.kaggle import client\n",
    "kbench/sources/kaggle/client.py": "",
    "kbench/training/fold.py": "import kbench.ensemble.mix\n",  # the order that is coming
    "kbench/ensemble/mix.py": "",
}


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["house"] = module
    spec.loader.exec_module(module)
    return module


def written(root: Path, tree: dict[str, str]) -> Path:
    """Write a tree of files and return its folder."""
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def numbers(house: ModuleType, root: Path) -> dict[str, int]:
    """Return the numbers of a tree."""
    return {measure.key: measure.number for measure in house.measured(house.House(root), "draws")}


def test_each_measure_of_a_small_tree_is_known(house: ModuleType, tmp_path: Path) -> None:
    root = written(tmp_path, {**TREE, "docs/sources.md": "| code | source |\n|---|---|\n| F-24 | fast.ai |\n\nB-04\n"})
    lines = sum(text.count("\n") for text in TREE.values())
    assert numbers(house, root) == {**NUMBERS, "lines": lines}


def test_without_a_page_of_sources_nothing_cited_is_explained(house: ModuleType, tmp_path: Path) -> None:
    got = numbers(house, written(tmp_path, TREE))
    assert (got["sources_page"], got["citations_unexplained"]) == (0, 2)


def test_the_coming_folders_have_their_order(house: ModuleType, tmp_path: Path) -> None:
    tree = house.House(written(tmp_path, COMING))
    got = {measure.key: measure for measure in house.measured(tree, "draws")}
    assert tree.layout.name == "coming"
    assert got["upward_imports"].places == ("kbench.errors -> kbench.config.stage",)
    assert got["unplaced_wings"].places == ("odd",)
    assert got["dense_branches_above"].number == 1, "a wing without a place hides no branch"
    assert got["circles_anywhere"].number == 0
    assert tree.anywhere["kbench.config.stage"] == {"kbench.sources.kaggle.client"}
    assert tree.anywhere["kbench.cli.main"] == {"kbench.console"}


def test_a_chain_holds_a_circle_whole(house: ModuleType) -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"d"}}
    assert house.longest_chain(graph) == ["a", "b", "c", "d"]
    assert house.longest_chain({}) == []


def test_both_trees_stand_side_by_side(house: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = written(tmp_path / "old", TREE), written(tmp_path / "new", COMING)
    assert house.main(["--tree", str(after), "--against", str(before)]) == 0
    rows = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert ["files", "14", "14"] in rows
    assert ["dense branches above the passes", "2", "1"] in rows


def test_a_folder_that_is_no_checkout_is_named(
    house: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        house.main(["--tree", str(tmp_path)])
    assert f"'{tmp_path}' is not a checkout" in capsys.readouterr().err


def test_this_checkout_has_all_numbers() -> None:
    done = subprocess.run([sys.executable, str(TOOL), "--json"], capture_output=True, text=True, check=True)
    content = json.loads(done.stdout)
    assert set(content["numbers"]) == {*NUMBERS, "lines"}
    assert content["numbers"]["files"] > 100
    assert set(content["places"]) <= set(content["numbers"])
