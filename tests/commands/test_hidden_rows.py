"""Hidden rows against the clock: models are left out, a killed notebook goes on, a broken image costs its row."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_runs
from places import ROOT

from kbench.commands.ensemble import ensemble
from kbench.commands.export import ExportOptions, export
from kbench.commands.infer import infer
from kbench.commands.train import train
from kbench.data.table.table import training_share
from kbench.runs import hidden_rows
from kbench.runs.blend import EnsembleOptions
from kbench.runs.bundle_opening import open_bundle
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.workspace import Choice

CPU = EnsembleOptions(device="cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two runs of `classes`, of other sizes, predicted four rows at a time."""
    root = small_runs.written(tmp_path_factory.mktemp("hidden"))
    for name in ("classes", "numbers"):
        yaml = root / "competitions" / f"{name}.yaml"
        yaml.write_text(yaml.read_text() + "loader: {valid_batch_size: 2, workers: 0}\n")
    train(open_experiment(Choice("classes", workspace=root)), "all", TrainOptions(device="cpu"))
    wide = Choice("classes", run="wide", assignments=("input.size=12", "stages.all.lr=0.05"), workspace=root)
    train(open_experiment(wide), "all", TrainOptions(device="cpu"))
    return root


@pytest.fixture(scope="module")
def bundle(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both runs, weighed by a fitted combiner."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    export(Choice("classes", workspace=root), ["baseline-s0", "wide"], CPU, ExportOptions(folder))
    return folder


@pytest.fixture
def data(root: Path, tmp_path: Path) -> Path:
    """A data folder with a test set alone."""
    folder = tmp_path / "data"
    shutil.copytree(root / "data" / "classes" / "test", folder / "test")
    shutil.copy(root / "data" / "classes" / "sample_submission.csv", folder)
    return folder


def values_of(file: str | Path) -> dict[str, list[float]]:
    with open(file, newline="") as handle:
        return {row["id"]: [float(row["left"]), float(row["right"])] for row in csv.DictReader(handle)}


@pytest.mark.parametrize("options", [{}, {"combine": "weights"}, {"weights": (1.0, 3.0)}, {"combine": "greedy"}])
def test_a_blend_of_two_sizes_is_that_of_the_ensemble(
    root: Path, data: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    choice, how = Choice("classes", workspace=root), EnsembleOptions(device="cpu", **options)
    expected = Path(ensemble(choice, ["baseline-s0", "wide"], how)["file"]).read_bytes()
    export(choice, ["baseline-s0", "wide"], how, ExportOptions(tmp_path / "bundle"))
    made = infer(tmp_path / "bundle", data=data, out=tmp_path / "o.csv", work=tmp_path / "w", hours=9, device="cpu",
                 checkpoint_s=1e-6)  # fmt: skip
    assert len(json.loads((tmp_path / "w" / "plan.json").read_text())["slices"]) == 4  # 4 rows, then 2 at a time
    assert Path(made["file"]).read_bytes() == expected


def test_a_broken_image_and_a_missing_one_cost_their_rows_alone(
    root: Path, bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = values_of(infer(bundle, data=data, out=tmp_path / "a.csv", work=tmp_path / "a", hours=None,
                            device="cpu")["file"])  # fmt: skip
    (data / "test" / "0003.png").write_bytes((data / "test" / "0003.png").read_bytes()[:40])
    yaml = bundle / "runs" / "baseline-s0" / "config.yaml"
    assert "0003" not in yaml.read_text()
    made = infer(bundle, data=data, out=tmp_path / "b.csv", work=tmp_path / "b", hours=None, device="cpu",
                 checkpoint_s=1e-6)  # fmt: skip
    assert made["unreadable"] == ["0003"]
    assert "'0003'" in capsys.readouterr().err
    values = values_of(made["file"])
    share = training_share(open_experiment(Choice("classes", workspace=root)).train)
    assert np.allclose(values.pop("0003"), share, atol=1e-6)
    whole.pop("0003")
    assert np.allclose(list(values.values()), list(whole.values()), atol=1e-6)
    assert list(values) == list(whole)


class Ticking:
    """A clock that says that every model takes a second for a row."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow: float) -> None:
        self.now = 0.0
        predict, clock = hidden_rows._Work._predict, self

        def slower(work: hidden_rows._Work, one: hidden_rows.Slice, told: object = None) -> None:
            predict(work, one, told)  # type: ignore[arg-type]
            rows = one.stop - one.start
            for models in list(told.seconds):  # type: ignore[attr-defined]
                told.seconds[models] = slow * rows  # type: ignore[attr-defined]
                clock.now += slow * rows
            told.loading = 0.0  # type: ignore[attr-defined]

        monkeypatch.setattr(hidden_rows._Work, "_predict", slower)


def test_half_the_time_leaves_out_the_least_gain_for_a_second_and_says_so(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = json.loads((bundle / "bundle.json").read_text())
    ticking = Ticking(monkeypatch, 1.0)
    opened = open_bundle(bundle, tmp_path / "w")
    combined = opened.combined
    table = combined.experiment.table("test", data=data, look=False)
    models = len(said["members"])
    assert models == 8  # 2 runs x 2 folds x 2 cycles
    limit = hidden_rows.Limit(models * len(table) / hidden_rows._RESERVE * 0.7, 1e-6, lambda: ticking.now)
    hidden = hidden_rows.predict_hidden(combined, table, device="cpu", plan=tmp_path / "w" / "plan.json", key="k",
                                        limit=limit)  # fmt: skip
    assert hidden.forecast == models * len(table)
    assert hidden.left_out
    assert hidden.seconds <= models * len(table) * 0.7
    adds = {one["member"]: one["adds"] for one in said["gains"]}
    least = min(adds, key=lambda name: adds[name])
    assert {name.partition("/")[0] for name in hidden.left_out} == {least}
    err = capsys.readouterr().err
    assert "left out: " + ", ".join(sorted(hidden.left_out, key=err.index)) in " ".join(err.split())
    result = hidden.combined.predict(hidden.rows)
    assert len(result.members) == models - len(hidden.left_out)
    assert np.isclose(sum(result.weights), 1)
    assert len(result.ids) == len(table)


KILLED = """
import os, signal, sys
from pathlib import Path
from kbench.commands.infer import infer
from kbench.runs import hidden_rows
predict = hidden_rows._Work.predict_next
def counted(work):
    predict(work)
    if len(work._slices) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
hidden_rows._Work.predict_next = counted
bundle, data, out, work = map(Path, sys.argv[1:])
infer(bundle, data=data, out=out, work=work, hours=None, device="cpu", checkpoint_s=1e-6)
"""


def test_a_killed_notebook_goes_on_where_it_was(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(path) for path in (bundle, data, tmp_path / "o.csv", tmp_path / "w")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *paths], cwd=ROOT, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    slices = json.loads((tmp_path / "w" / "plan.json").read_text())["slices"]
    assert slices[-1]["stop"] == 6
    done: list[int] = []
    predict = hidden_rows._Work._predict

    def watched(work: hidden_rows._Work, one: hidden_rows.Slice, clock: object = None) -> None:
        done.append(one.start)
        predict(work, one, clock)  # type: ignore[arg-type]

    monkeypatch.setattr(hidden_rows._Work, "_predict", watched)
    made = infer(bundle, data=data, out=tmp_path / "o.csv", work=tmp_path / "w", hours=None, device="cpu",
                 checkpoint_s=1e-6)  # fmt: skip
    assert done == [6, 8]
    assert "going on after 6 of 10 rows" in capsys.readouterr().err
    fresh = infer(bundle, data=data, out=tmp_path / "f.csv", work=tmp_path / "f", hours=None, device="cpu")
    assert Path(made["file"]).read_bytes() == Path(fresh["file"]).read_bytes()


REFUSED = """
import sys
class Without:  # as if they were not installed
    names = {"matplotlib", "sklearn", "kaggle", "kagglesdk", "kagglehub", "IPython"}
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.names else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
sys.argv = ["kbench", *sys.argv[1:]]
from kbench.cli import main
main()
"""


def test_nothing_that_only_training_needs_is_imported(bundle: Path, data: Path, tmp_path: Path) -> None:
    words = ["infer", str(bundle), "--data", str(data), "--out", str(tmp_path / "o.csv"), "--work", str(tmp_path / "w"),
             "--device", "cpu"]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", REFUSED, *words], cwd=tmp_path, check=False, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(values_of(tmp_path / "o.csv")) == 10
    gone = subprocess.run([sys.executable, "-c", f"{REFUSED.split('sys.argv')[0]}\nimport sklearn"], check=False,
                          capture_output=True, text=True)  # fmt: skip
    assert "No module named 'sklearn'" in gone.stderr


def test_bundle_and_data_are_only_read(
    bundle: Path, data: Path, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    before = {path: path.stat().st_mtime_ns for folder in (bundle, data) for path in folder.rglob("*")}
    read_only(bundle)
    read_only(data)
    infer(bundle, data=data, out=tmp_path / "o.csv", work=tmp_path / "w", hours=None, device="cpu")
    assert {path: path.stat().st_mtime_ns for folder in (bundle, data) for path in folder.rglob("*")} == before


@pytest.fixture
def read_only(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Take the right to write from a folder and all in it, until the test is over."""

    def lock(folder: Path) -> None:
        paths = [folder, *folder.rglob("*")]
        modes = {path: path.stat().st_mode for path in paths}
        for path in paths:
            path.chmod(modes[path] & ~0o222)
        request.addfinalizer(lambda: [path.chmod(mode) for path, mode in modes.items()])

    return lock


def test_a_folder_that_is_no_bundle_says_what_to_type(data: Path, tmp_path: Path) -> None:
    from kbench.errors import ConfigError

    with pytest.raises(ConfigError, match="is no bundle") as caught:
        infer(tmp_path, data=data, out=None, work=tmp_path / "w", hours=None)
    assert "`kbench export" in caught.value.todo
