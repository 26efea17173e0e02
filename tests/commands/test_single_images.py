"""`kbench predict --image`, the spread of rates, and warnings about batch sizes, on small runs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from drawn_images import drawn, write_images
from typer.testing import CliRunner

from kbench.cli.app import app
from kbench.commands.predict import most_likely, predict_rows
from kbench.errors import ConfigError, DataError
from kbench.runs.experiment import open_experiment
from kbench.runs.opening import open_run
from kbench.runs.rates import batch_warnings, found_rates, on_activations, plan_rows, rate_notes
from kbench.workspace import Choice


def ask(workspace: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.chdir(workspace)
    done = CliRunner().invoke(app, ["predict", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_images_are_predicted_by_the_whole_ensemble(small_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [str(small_workspace / "data" / "classes" / "test" / f"000{row}.png") for row in range(3)]
    found = json.loads(ask(small_workspace, monkeypatch, "-c", "classes", "--json", "--image", files[0], *files[1:]))
    assert [row["file"] for row in found["rows"]] == files
    assert (found["run"], found["task"]) == ("baseline-s0", "single_label")
    for row in found["rows"]:
        assert set(row["values"]) == {"left", "right"}
        assert sum(row["values"].values()) == pytest.approx(1, abs=1e-5)
    shown = ask(small_workspace, monkeypatch, "-c", "classes", "--image", files[0])
    assert "0000.png" in shown.replace("\n", "") or "most likely" in shown
    for option in ("--data", "--out"):
        done = CliRunner().invoke(app, ["predict", "-c", "classes", "--image", files[0], option, "x"])
        assert isinstance(done.exception, ConfigError)
        assert f"--image with {option}" in done.exception.what


def test_a_picture_in_words(small_workspace: Path) -> None:
    said = {
        name: partial(most_likely, competition=open_experiment(Choice(name, workspace=small_workspace)).competition)
        for name in ("classes", "labels", "numbers")
    }
    assert said["classes"]({"cat": 0.2, "dog": 0.7, "fox": 0.06, "owl": 0.04}) == {
        "most likely": "dog 0.700", "then": "cat 0.200", "and then": "fox 0.060"
    }  # fmt: skip
    tags = {"road": 0.7, "haze": 0.3, "water": 0.1}
    assert said["labels"](tags) == {"labels": "road 0.700, haze 0.300"}, "F2 counts labels above 0.2"
    assert said["labels"](tags, decided={"road": 0.0, "haze": 1.0, "water": 1.0})["labels"] == "haze 0.300, water 0.100"
    assert said["labels"]({"road": 0.1})["labels"] == "none; most: road 0.100"
    assert said["numbers"]({"width": 2.0}) == {"width": "2"}
    assert said["numbers"]({"width": 2.2}, decided={"width": 2.0}) == {"width": "2"}


def test_rates_the_folds_found_are_put_side_by_side(small_workspace: Path) -> None:
    rates = found_rates(open_run(Choice("classes", workspace=small_workspace)))
    assert set(rates) == {"first"}
    assert set(rates["first"]["folds"]) == {"0", "1"}
    low, high = sorted(rates["first"]["folds"].values())
    assert rates["first"]["spread"] == pytest.approx(high / low)
    assert rates["first"]["mean"] == pytest.approx((low * high) ** 0.5)
    (note,) = rate_notes(rates)
    assert note.startswith("stage first: the folds found rates from")


def test_another_batch_size_with_the_same_rate_is_warned_of(small_workspace: Path) -> None:
    def warned(*assignments: str) -> list[str]:
        return batch_warnings(open_experiment(Choice("classes", assignments=assignments, workspace=small_workspace)))

    (said,) = warned("train.batch_size=16")
    assert "stages.all makes updates of 16 images, 8 in the baseline" in said
    assert "kbench lr-find --stage all" in said
    assert warned() == warned("stages.all.batch_size=4", "stages.all.accumulate=2") == []
    assert warned("train.batch_size=16", "stages.all.lr=0.03") == []
    (said,) = warned("stages.all.lr=find", "stages.all.lr_from_stage=first", "stages.all.batch_size=16")
    assert "takes the rate stage first found with 8 images" in said


def test_the_plan_shows_every_stage_as_it_stands(small_workspace: Path) -> None:
    competition = open_experiment(Choice("classes", workspace=small_workspace)).competition
    first, whole = plan_rows(competition)
    assert (first["learns"], first["on"], first["lr"], first["epochs"]) == ("head", "images", "find", 1)
    assert (whole["cycles"], whole["apart"], whole["batch"], whole["keeps"]) == (2, 3, 8, "cycles")
    assert not on_activations(competition)


def test_rows_of_another_folder_are_never_written_over_its_data(small_workspace: Path, tmp_path: Path) -> None:
    choice = Choice("classes", workspace=small_workspace)
    other = tmp_path / "other"
    write_images(other / "test", drawn(3))
    mine = other / "train.csv"
    mine.write_text("id,label\na,left\n")
    options = {"data": str(other), "device": "cpu", "force": False}
    for file in (mine, other):
        with pytest.raises(ConfigError, match="which a prediction would replace"):
            predict_rows(choice, out=str(file), **options)
    kept = small_workspace / "data" / "classes" / "train.csv"
    before = kept.read_bytes()
    with pytest.raises(ConfigError, match="which a prediction would replace"):
        predict_rows(choice, out=str(kept), **options)
    assert (kept.read_bytes(), mine.read_text()) == (before, "id,label\na,left\n")
    for _ in range(2):  # its own file may be written again
        assert predict_rows(choice, out=str(tmp_path / "out.csv"), **options)["rows"] == 3
    with pytest.raises(DataError, match="there is no folder"):
        predict_rows(choice, out=None, **{**options, "data": str(tmp_path / "nowhere")})
