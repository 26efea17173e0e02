from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from kbench.models.checkpoint import read_checkpoint, snapshot_tensors
from kbench.training.events import Note
from kbench.training.fold import begin, train_fold
from kbench.workspace import FoldPaths

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch compiles with g++ here"),
]
STAGE: dict[str, Any] = {"schedule": ("constant", {"epochs": 3}), "compile": True, "batch_size": 8}


def trained(folder: Path, *, events: int | None = None, **changes: Any) -> list[str]:
    """Train a fold, or until it has made some events; return what it said."""
    paths = FoldPaths(folder)
    paths.root.mkdir(parents=True, exist_ok=True)
    resumed = begin(paths, training=toy.IDENTITY["training"])
    context = toy.context(folder, lines=resumed[0].log_lines if resumed else 0, checkpoint_s=0)
    said = []
    build = partial(toy.TinyNet, dropout=changes.pop("dropout", 0.5))
    running = train_fold(context, [toy.stage(**{**STAGE, **changes})], build, resumed=resumed)
    for number, event in enumerate(running, start=1):
        said += [event.text] if isinstance(event, Note) else []
        if number == events:
            running.close()
            break
    return said


def ends(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(FoldPaths(folder).snapshot("only", "last"))
    assert checkpoint is not None
    return snapshot_tensors(checkpoint)


def test_a_compiled_network_learns_what_the_network_learns(tmp_path: Path) -> None:
    """27 rows in batches of 8: the last batch of 3 goes through the network itself."""
    said = trained(tmp_path / "compiled", dropout=0.0)
    assert any("compiles the network" in text for text in said)
    trained(tmp_path / "plain", compile=False, dropout=0.0)
    ours, plain = ends(tmp_path / "compiled"), ends(tmp_path / "plain")
    assert list(ours) == list(plain)  # no prefix of the compiled module
    for name, value in ours.items():
        torch.testing.assert_close(value, plain[name], atol=1e-4, rtol=1e-3)


def test_a_compiled_fold_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    trained(tmp_path / "whole")
    for _ in range(20):
        trained(tmp_path / "stopped", events=4)
        if FoldPaths(tmp_path / "stopped").snapshot("only", "last").exists():
            break
    whole, stopped = ends(tmp_path / "whole"), ends(tmp_path / "stopped")
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())


def test_without_a_compiler_the_fold_says_what_to_write(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from test_compiling import trained\n"
        "from kbench.errors import TrainingError\n"
        f"try: trained(Path({str(tmp_path / 'fold')!r}))\n"
        "except TrainingError as error: print(error)"
    )
    environment = {**os.environ, "CXX": "/nonexistent", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
                   "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "the network cannot be compiled here: " in done.stdout
    assert "set `compile: false`" in done.stdout
    assert "/nonexistent" in done.stdout
