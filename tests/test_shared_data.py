"""The same job on real photographs with ImageNet weights, where the data is at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "dogcat").is_dir(), reason="the photographs of ../shared/data are not here"),
]


@pytest.fixture
def dogcat(tmp_path):
    """A workspace whose competition is a folder of 3,200 photographs with a solution."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        from results import DOGCAT
    finally:
        sys.path.pop(0)
    (tmp_path / "competitions").mkdir()
    (tmp_path / "competitions" / "dogcat.yaml").write_text(DOGCAT.format(data=DATA.resolve()))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("KBENCH_", "KAGGLE_"))}

    def kbench(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "kbench", *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    kbench("download", "dogcat")
    return kbench


def test_photographs_are_used_in_place_and_every_step_works_on_them(dogcat):
    assert json.loads(dogcat("check", "--images", "--json"))["rows"] == 2400
    assert "every step works: 2 stages" in dogcat("train", "--smoke")


def test_a_head_on_pretrained_features_beats_chance_by_far(dogcat):
    short = ["--set", "input.size=96", "--set", "stages.all=null", "--set", "stages.head.schedule.cycles=1"]
    dogcat("train", "--fold", "0", "--run", "head", *short)
    made = json.loads(dogcat("ensemble", "head", "--json"))
    assert made["score"] < 0.35
    graded = json.loads(dogcat("submit", "--json"))
    assert graded["status"] == "complete"
    assert graded["all_rows"] < 0.35
