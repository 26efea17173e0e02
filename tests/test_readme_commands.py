"""Every command of the README is run: its blocks as they stand, on small data, and the lines inside its sentences."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_runs
import yaml
from test_readme import README, TYPED
from typer.testing import CliRunner

from kbench.cli.app import app

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
BLOCKS = [
    [part.strip() for line in block.splitlines() for part in line.partition("#")[0].split("&&")]
    for block in re.findall(r"```\n(kbench .*?)```", README, re.DOTALL)
]
ELSEWHERE = {  # a line, and the test that runs one like it
    "train --cluster dask://HOST:PORT":
        "runs/test_cluster.py::test_dask_trains_what_one_machine_does_while_workers_die_and_hang",
    "pack": "runs/test_packing.py::test_a_fold_stopped_here_goes_on_elsewhere_as_if_it_had_stayed",
    "import": "cli/test_pipeline.py::test_imported_predictions_score_and_join",
    "sweep experiment=crop,full maps.windows.name=full,overlap":
        "cli/test_segmentation_pipeline.py::test_ways_of_training_against_ways_of_predicting_are_one_table",
}  # fmt: skip
SENTENCES = {  # a line inside a sentence, and how it is typed here
    "list KIND": "list loss",
    "sweep stages.all.lr=1e-3,3e-3": "sweep stages.all.lr=1e-3,3e-3",
    "train -e": "train -e other --fold 0 --set stages.all.lr=1e-3",
    "new": "new again --data {data}",
}


def do(line: str, data: Path) -> None:
    """Run a line as the README has it; the example's paths are the small data's."""
    typed = line.removeprefix("kbench ").replace("path/to/folder", str(data)).format(data=data)
    words = shlex.split(typed.replace("path/to/answers.csv", str(data / "solution.csv")))
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"kbench {typed}\n{done.output}\n{done.exception!r}"


def small(content: dict[str, Any]) -> dict[str, Any]:
    """Return a draft whose training takes a second."""
    stages = {"all": {"lr": 0.01, "schedule": {"name": "sgdr", "cycles": 2}, "keep": ["cycles"]}}
    return {
        **content, "input": {"size": 16}, "model": {"backbone": "resnet10t"}, "stages": stages,
        "train": {"batch_size": 8, "augment": "side_on"}, "folds": {"strategy": "stratified", "n": 2}, "tta": "flip",
    }  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images of two classes with an answers' file, in a workspace of one competition."""
    root = small_runs.written(tmp_path / "workspace")
    for other in ("labels", "numbers"):
        (root / "competitions" / f"{other}.yaml").unlink()
        shutil.rmtree(root / "competitions" / other)
    path = root / "competitions" / "classes.yaml"
    path.write_text(path.read_text().replace("n: 2", "n: 4").replace("lr: find", "lr: 0.02"))
    (root / "competitions" / "classes" / "other.yaml").write_text("tta: none\n")
    monkeypatch.chdir(root)
    return root / "source" / "classes"


def test_the_job_and_the_lines_inside_sentences(data: Path) -> None:
    job, _ = BLOCKS
    assert [line.split()[1] for line in job] == ["download", "train", "ensemble", "submit"]
    for line in job:
        do(line, data)
    for line in SENTENCES.values():
        do(line, data)


def test_the_job_on_data_of_ones_own(data: Path) -> None:
    _, own = BLOCKS
    do(own[0], data)
    draft = Path("competitions/mine.yaml")
    draft.write_text(yaml.safe_dump(small(yaml.safe_load(draft.read_text())), sort_keys=False))
    do("use mine", data)
    for line in own[1:]:
        do(line, data)


def test_no_command_of_the_readme_is_left_out() -> None:
    shown = {line.removeprefix("kbench ") for block in BLOCKS for line in block}
    assert {line for line in TYPED if line not in shown} == set(ELSEWHERE) | set(SENTENCES)
    for where in ELSEWHERE.values():
        file, name = where.split("::")
        assert f"def {name}(" in (HERE / file).read_text()
