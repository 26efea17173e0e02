from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import pandas as pd
import pytest

from kbench.commands.report import report
from kbench.errors import ConfigError, PredictionError
from kbench.report.subject import ReportOptions
from kbench.runs.experiment import label_threshold, open_experiment
from kbench.runs.opening import open_run
from kbench.workspace import Choice

DRAWN = {
    "classes": {"confusion.png", "confusion-shares.png", "most-uncertain.png", "random-incorrect.png"},
    "labels": {"labels.png", "most-uncertain.png", "random-correct.png"},
    "numbers": {"scatter.png", "random.png"},
}
ROWS = {"classes": 48, "labels": 24, "numbers": 24}


def made(workspace: Path, name: str, **options) -> dict:
    return report(Choice(name, workspace=workspace), ReportOptions(device="cpu", **options))


@pytest.fixture(scope="module")
def reports(small_workspace: Path) -> dict[str, dict]:
    """The report of each small run."""
    return {name: made(small_workspace, name) for name in DRAWN}


@pytest.mark.parametrize("name", DRAWN)
def test_every_task_has_a_report_whose_links_all_lead_somewhere(
    small_workspace: Path, reports: dict[str, dict], name: str
) -> None:
    found = reports[name]
    page = Path(found["page"])
    assert page == small_workspace / "runs" / name / "baseline-s0" / "report.html"
    links = set(re.findall(r'(?:src|href)="([^"#]+)"', page.read_text()))
    assert {"pictures/growth.png", "pictures/training.png", "pictures/most-incorrect.png"} <= links
    assert {f"pictures/{file}" for file in DRAWN[name]} <= links
    for link in links:
        file = page.parent / link
        assert cv2.imread(str(file)) is not None if file.suffix == ".png" else len(pd.read_csv(file))
    assert {Path(file).name for file in found["files"]} >= {Path(link).name for link in links}
    assert json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("name", DRAWN)
def test_every_row_of_the_trained_folds_is_in_the_report(reports: dict[str, dict], name: str) -> None:
    found = reports[name]
    assert found["score"]["rows"] == sum(row["rows"] for row in found["members"]) == ROWS[name]
    assert sum(row["rows"] for row in found["slices"]["site"]) == ROWS[name]


def test_the_range_test_of_a_stage_that_finds_its_rate_is_drawn(reports: dict[str, dict]) -> None:
    drawn = {name: {Path(file).name for file in found["files"]} for name, found in reports.items()}
    assert "lr-find-first.png" in drawn["classes"]
    assert not any(file.startswith("lr-find") for file in drawn["labels"] | drawn["numbers"])


def test_the_rates_the_folds_found_and_their_spread_are_on_the_page(
    small_workspace: Path, reports: dict[str, dict]
) -> None:
    rates = reports["classes"]["rates"]
    assert list(rates) == ["first"]
    table = pd.read_csv(small_workspace / "runs/classes/baseline-s0/pictures/rates.csv").iloc[0]
    assert [table["fold 0"], table["fold 1"]] == pytest.approx(list(rates["first"]["folds"].values()), rel=1e-4)
    assert table["spread"] == pytest.approx(rates["first"]["spread"], rel=1e-4)
    assert "pictures/rates.csv" in Path(reports["classes"]["page"]).read_text()
    assert reports["labels"]["rates"] == {}


def test_untrained_folds_are_said_on_the_page(reports: dict[str, dict]) -> None:
    assert "Folds 1 are not trained" in Path(reports["labels"]["page"]).read_text()
    assert "not trained" not in Path(reports["classes"]["page"]).read_text()


def test_numbers_of_the_report_are_those_of_the_score(small_workspace: Path, reports: dict[str, dict]) -> None:
    found = reports["classes"]
    score = open_run(Choice("classes", workspace=small_workspace)).out_of_fold(device="cpu").score
    assert {str(row["fold"]): row["mean"] for row in found["members"]} == pytest.approx(score["folds"])
    whole = found["growth"][-1]
    assert (whole["ensemble"], whole["members"]) == ("mean of all", 2)
    assert (whole["score"], whole["low"], whole["high"]) == pytest.approx((score["score"], score["low"], score["high"]))
    assert [row["member"] for row in found["adds"]] == ["all-0", "all-1"]
    assert sum(row["rows"] for row in found["classes"]) == score["rows"] == 48


def test_slices_are_those_metadata_columns_that_tell_rows_apart(reports: dict[str, dict]) -> None:
    slices = reports["classes"]["slices"]
    assert [row["site"] for row in slices["site"]] == ["north", "south"]
    assert slices["age"][-1]["age"] == "(empty)"
    assert len(slices["age"]) == 6


@pytest.mark.slow
def test_only_the_slices_asked_for_are_made_the_target_can_be_one(small_workspace: Path) -> None:
    assert list(made(small_workspace, "numbers", slices=("site",))["slices"]) == ["site"]
    assert len(made(small_workspace, "classes", slices=("target",))["slices"]["target"]) == 2


def test_a_slice_that_is_no_column_is_an_error(small_workspace: Path) -> None:
    with pytest.raises(ConfigError, match="'nose' is no metadata column"):
        made(small_workspace, "classes", slices=("nose",))


@pytest.mark.slow
def test_folds_are_graded_one_by_one_on_the_local_solution_only_if_asked(
    small_workspace: Path, reports: dict[str, dict]
) -> None:
    assert "test" not in reports["classes"]
    rows = made(small_workspace, "classes", solution=True)["test"]
    assert [(row["ensemble"], row["members"]) for row in rows] == [
        ("last snapshot of fold 0", 1), ("fold 0", 2), ("2 folds", 4)
    ]  # fmt: skip
    assert not list((small_workspace / "submissions").rglob("*trial*"))


def test_a_solution_that_is_not_here_is_an_error(small_workspace: Path) -> None:
    with pytest.raises(ConfigError, match="'labels' has no solution on this machine"):
        made(small_workspace, "labels", solution=True)


@pytest.mark.slow
@pytest.mark.parametrize("by_class", [True, False])
def test_sheets_go_by_class_or_overall(small_workspace: Path, by_class: bool) -> None:
    found = made(small_workspace, "labels", by_class=by_class, k=2)
    image = cv2.imread(str(Path(found["page"]).parent / "pictures" / "most-uncertain.png"))
    assert image.shape[1] < 700 if by_class else image.shape[1] > 1000  # 2 beside each other, or 8


def test_a_run_without_a_trained_fold_has_no_report(small_workspace: Path) -> None:
    run = small_workspace / "runs" / "classes"
    shutil.copytree(run / "baseline-s0", run / "empty", ignore=shutil.ignore_patterns("fold-*"))
    with pytest.raises(PredictionError, match="no fold of 'empty' is trained"):
        report(Choice("classes", run="empty", workspace=small_workspace), ReportOptions(device="cpu"))
    shutil.rmtree(run / "empty")


def test_a_run_that_is_not_there_is_an_error(small_workspace: Path) -> None:
    with pytest.raises(ConfigError, match="no run 'other'"):
        report(Choice("classes", run="other", workspace=small_workspace), ReportOptions())


def test_labels_are_told_by_the_metrics_threshold(small_workspace: Path) -> None:
    def threshold(*assignments: str) -> object:
        return label_threshold(open_experiment(Choice("labels", None, None, assignments, small_workspace)).competition)

    assert threshold() == 0.2  # the default of f2_samples
    assert threshold("metric={name: f2_samples, threshold: [0.1, 0.2, 0.3]}") == [0.1, 0.2, 0.3]
    assert threshold("metric=bce") == 0.5


def test_the_picked_images_are_listed_too(reports: dict[str, dict]) -> None:
    found = pd.read_csv(next(file for file in reports["classes"]["files"] if file.endswith("picks.csv")), dtype=str)
    assert set(found["kind"]) >= {"most_correct", "most_uncertain", "random_correct"}
    assert set(found["right"][found["kind"] == "most_correct"]) == {"True"}
    assert (found.groupby(["kind", "of"]).size() <= 4).all()
    assert found["id"].str.fullmatch("[0-9]{4}").all()


def test_what_views_add_is_predicted_only_if_asked(small_workspace: Path, reports: dict[str, dict]) -> None:
    assert "views" not in reports["classes"]
    found = made(small_workspace, "classes", views=True)
    assert [row["ensemble"] for row in found["views"]][-1] == "all snapshots, all views"
    assert found["views"][-1]["score"] == pytest.approx(found["score"]["score"])
    assert found["views"][0]["score"] != found["views"][-1]["score"]
    run = small_workspace / "runs" / "classes" / "baseline-s0"
    again = json.loads((run / "fold-0" / "oof-plain" / "all-0.json").read_text())
    assert again["source"]["views"] == {"name": "none"}


def test_slices_of_decided_labels_are_scored_as_the_score_is(small_workspace: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(small_workspace, root, symlinks=True)
    path = root / "competitions" / "labels.yaml"
    path.write_text(path.read_text() + "ensemble: {decision: threshold}\n")
    found = made(root, "labels", slices=("site",))
    rows = found["slices"]["site"]
    whole = sum(row["score"] * row["rows"] for row in rows) / sum(row["rows"] for row in rows)
    assert whole == pytest.approx(found["score"]["score"])
    assert found["growth"][-1]["score"] == pytest.approx(found["score"]["score"])
