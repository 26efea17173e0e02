"""Code competitions: a bundle is pushed, its notebook runs, and is submitted once, whatever goes wrong on the way."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import small_runs
from machines import Done
from notebooks_standin import Failed, Files, NotebookStandIn, execute
from standin import Fault

from kbench import cli
from kbench.commands.export import ExportOptions, export
from kbench.commands.train import train
from kbench.runs.blend import EnsembleOptions
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.sources.kaggle import notebooks
from kbench.workspace import Choice

DATASET = "kbench-tiny-images"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a trained fold of a competition on Kaggle, and its bundle."""
    root = small_runs.written(tmp_path_factory.mktemp("code"))
    yaml = root / "competitions" / "classes.yaml"
    text = yaml.read_text()
    line = next(line for line in text.splitlines() if line.startswith("source:"))
    yaml.write_text(text.replace(line, "source: {name: kaggle, slug: tiny-images}"))
    choice = Choice("classes", workspace=root)
    train(open_experiment(choice), "0", TrainOptions(device="cpu"))
    export(choice, [], EnsembleOptions(device="cpu"), ExportOptions(root / "bundle"))
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the workspace, to work in."""
    root = tmp_path / "mine"
    shutil.copytree(trained, root, symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setattr(notebooks, "POLL_S", 0.0)
    return root


@pytest.fixture
def standin(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NotebookStandIn]:
    """The stand-in; a notebook writes what this machine wrote for the public test set."""

    def runs(text: str, files: Files) -> tuple[Files, str]:
        return {"submission.csv": (root / "bundle.local" / "submission.csv").read_bytes()}, "predicted"

    server = NotebookStandIn(runs)
    monkeypatch.setenv("KBENCH_KAGGLE_URL", server.url)
    yield server
    server.close()
    assert not server.errors


@pytest.fixture
def kbench(
    root: Path, standin: NotebookStandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run a command in this process and return how it ended."""

    def run(*words: str, code: int = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["kbench", *words])
        ended: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            ended = stop.code
        captured = capsys.readouterr()
        done = Done(int(ended or 0), captured.out, captured.err)
        assert done.code == code, done
        return done

    return run


def push(kbench: Callable[..., Done], *words: str, code: int = 0) -> Done:
    return kbench("push", "bundle", "-c", "classes", *words, code=code)


def test_a_pushed_notebook_is_submitted_once_and_scored(kbench: Callable[..., Done], standin: NotebookStandIn) -> None:
    done = json.loads(push(kbench, "--json").out)
    assert done["difference"] == 0
    assert (done["notebook"], done["version"]) == (f"tester/{DATASET}", 1)
    (asked,) = [one.json() for one in standin.calls("SaveKernel")]
    assert asked["language"] == "python"
    assert asked["competitionDataSources"] == ["tiny-images"]
    assert asked["sessionTimeoutSeconds"] == 9 * 3600
    standin.scores.append({"status": "COMPLETE", "publicScore": "0.61"})
    sent = json.loads(kbench("submit", "--kernel", "-c", "classes", "--json").out)
    assert (sent["status"], sent["public"]) == ("complete", 0.61)
    (created,) = [one.json() for one in standin.calls("CreateCodeSubmission")]
    assert (created["kernelSlug"], created["kernelVersion"], created["fileName"]) == (DATASET, 1, "submission.csv")
    assert created["submissionDescription"].endswith("]")  # with its tag
    assert not standin.calls("CreateSubmission")
    assert "kbench push" in kbench("submit", "--kernel", "-c", "classes", code=1).err
    again = json.loads(push(kbench, "--json").out)  # the dataset is there; the notebook is run anew
    assert again["version"] == 2
    assert len(standin.calls("CreateDataset")) == 1
    assert not standin.calls("CreateDatasetVersion")


def test_a_file_is_refused_with_the_two_commands_to_type(kbench: Callable[..., Done]) -> None:
    kbench("ensemble", "-c", "classes", "--device", "cpu")
    error = kbench("submit", "-c", "classes", code=1).err
    assert "takes notebooks" in error
    assert "`kbench push`" in error
    assert "`kbench submit --kernel`" in error


def test_a_dry_run_prints_every_request_and_sends_none(kbench: Callable[..., Done], standin: NotebookStandIn) -> None:
    done = json.loads(push(kbench, "--dry-run").out)
    methods = [one["method"] for one in done["requests"]]
    assert methods[0] == "GetCompetition"
    assert methods[-3:] == ["SaveKernel", "GetKernelSessionStatus", "ListKernelSessionOutput"]
    assert methods.count("PUT") == methods.count("StartBlobUpload") > 5
    assert not standin.seen


def test_a_dataset_that_fails_is_told(kbench: Callable[..., Done], standin: NotebookStandIn) -> None:
    standin.states.extend(["BLOBS_RECEIVED", "FAILED"])
    assert "it is FAILED" in push(kbench, code=1).err
    assert not standin.calls("SaveKernel")


def test_an_error_under_a_status_of_success_is_an_error(kbench: Callable[..., Done], standin: NotebookStandIn) -> None:
    standin.plan("CreateDataset", Fault(status=200, body={"status": "error", "error": "the title is taken"}))
    assert "the title is taken" in push(kbench, code=1).err
    assert not standin.calls("SaveKernel")


def test_a_file_that_was_left_out_is_named(kbench: Callable[..., Done], standin: NotebookStandIn) -> None:
    standin.left_out.add("notebook.ipynb")
    assert "lacks 'notebook.ipynb'" in push(kbench, code=1).err
    assert not standin.calls("SaveKernel")


def test_a_source_that_kaggle_does_not_know_is_named(kbench: Callable[..., Done], standin: NotebookStandIn) -> None:
    standin.plan("SaveKernel", Fault(status=200, body={"ref": "x", "invalidDatasetSources": ["tester/gone"]}))
    assert "does not know the dataset 'tester/gone'" in push(kbench, code=1).err


def test_the_end_of_the_log_of_a_failed_notebook_is_shown(
    kbench: Callable[..., Done], standin: NotebookStandIn
) -> None:
    def fails(text: str, files: Files) -> tuple[Files, str]:
        raise Failed(
            json.dumps([{"stream_name": "stderr", "time": 1, "data": "Traceback ...\nMemoryError: no room\n"}])
        )

    standin.runs = fails
    error = push(kbench, code=1).err
    assert "it is ERROR" in error
    assert "MemoryError: no room" in error


def test_a_lost_answer_never_makes_two_versions(kbench: Callable[..., Done], standin: NotebookStandIn) -> None:
    standin.plan("SaveKernel", Fault(reset=True, done=True))
    standin.plan("CreateDataset", Fault(reset=True, done=True))
    done = json.loads(push(kbench, "--json").out)
    assert done["version"] == 1
    assert {slug: len(versions) for slug, versions in standin.kernels.items()} == {DATASET: 1}
    assert {slug: len(versions) for slug, versions in standin.datasets.items()} == {DATASET: 1}


def test_a_request_that_never_arrived_is_sent_again(kbench: Callable[..., Done], standin: NotebookStandIn) -> None:
    standin.plan("SaveKernel", Fault(reset=True))
    assert json.loads(push(kbench, "--json").out)["version"] == 1
    assert len(standin.calls("SaveKernel")) == 2


def test_without_quota_nothing_is_uploaded(kbench: Callable[..., Done], standin: NotebookStandIn) -> None:
    standin.quota["timeUsed"] = standin.quota["totalTimeAllowed"]
    assert "0.0 h of GPU are left" in push(kbench, "--accelerator", "NvidiaTeslaT4", code=1).err
    assert not standin.calls("StartBlobUpload")


def test_an_upload_that_was_cut_goes_on_where_storage_was(
    kbench: Callable[..., Done], standin: NotebookStandIn
) -> None:
    standin.plan("PUT", Fault(), Fault(cut=100))
    push(kbench, "--json")
    ranges = [one.headers["Content-Range"] for one in standin.calls("PUT") if "Content-Range" in one.headers]
    assert next(one.split("/")[0] for one in ranges) == "bytes *"
    assert ranges[1].startswith("bytes 100-")
    listed = {one["name"]: one["bytes"] for one in json.loads(Path("bundle/bundle.json").read_text())["files"]}
    (version,) = standin.datasets[DATASET]
    assert {name: len(content) for name, content in version.items() if name != "bundle.json"} == listed


def test_a_notebook_that_writes_other_numbers_is_not_kept(
    kbench: Callable[..., Done], standin: NotebookStandIn
) -> None:
    usual = standin.runs

    def others(text: str, files: Files) -> tuple[Files, str]:
        written, log = usual(text, files)
        lines = written["submission.csv"].decode().splitlines()
        lines[1] = f"{lines[1].partition(',')[0]},0.9,0.1"
        return {"submission.csv": ("\n".join(lines) + "\n").encode()}, log

    standin.runs = others
    assert "is not what this machine writes" in push(kbench, code=1).err
    assert "has no notebook" in kbench("submit", "--kernel", "-c", "classes", code=1).err


def test_a_lost_answer_to_the_submission_is_looked_for(kbench: Callable[..., Done], standin: NotebookStandIn) -> None:
    push(kbench)
    standin.plan("CreateCodeSubmission", Fault(reset=True, done=True))
    kbench("submit", "--kernel", "-c", "classes", "--no-wait")
    assert len(standin.submissions) == 1


@pytest.mark.slow
def test_the_notebook_runs_without_network_and_scores_hidden_rows_as_here(
    kbench: Callable[..., Done], standin: NotebookStandIn, root: Path, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    (hidden / "test").mkdir(parents=True)
    ids = []
    for number, path in enumerate(sorted((root / "source" / "classes" / "train").glob("*.png"))[:17]):
        ids.append(f"h{number:03d}")
        shutil.copy(path, hidden / "test" / f"{ids[-1]}.png")
    pd.DataFrame({"id": ids, "left": 0.5, "right": 0.5}).to_csv(hidden / "sample_submission.csv", index=False)
    standin.runs = lambda text, files: execute(text, files, (root / "data" / "classes").resolve(), tmp_path / "public")
    assert json.loads(push(kbench, "--json").out)["difference"] == 0
    text, files = standin.kernels[DATASET][-1], standin.datasets[DATASET][-1]
    written, log = execute(text, files, hidden, tmp_path / "rerun")
    assert set(written) == {"submission.csv"}, log
    kbench("infer", "bundle", "--data", str(hidden), "--out", str(tmp_path / "here.csv"), "--work",
           str(tmp_path / "work"), "--device", "cpu")  # fmt: skip
    there, here = pd.read_csv(tmp_path / "rerun" / "working" / "submission.csv"), pd.read_csv(tmp_path / "here.csv")
    assert there["id"].tolist() == ids
    truth = np.array([row % 2 for row in range(len(ids))])
    scores = [
        -np.log(frame[["left", "right"]].to_numpy()[np.arange(len(ids)), truth]).mean() for frame in (there, here)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
