from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kbench import registry
from kbench.errors import DataError, SubmissionError
from kbench.inference.predictions import Predictions
from kbench.metrics.metric import make_metric
from kbench.submission.check import write_submission
from kbench.submission.formats.base import Format
from kbench.submission.grading import Scores, grade

IDS = ["10", "9", "0001", "b"]  # not in the order of sorted ids
P = np.array([0.9, 0.2, 0.6, 0.3])  # of dog
DOG = np.array([1, 0, 0, 1])


def two_classes(format: str, **params: Any) -> tuple[Format, pd.DataFrame]:
    columns = ("cat", "dog") if format == "probabilities" else ("label",)
    made = registry.build("format", format, params, _names=("cat", "dog"), _task="single_label")
    return made, pd.DataFrame({"id": IDS, **dict.fromkeys(columns, [0.5] * 4)})


def submitted(folder: Path, format: Format, sample: pd.DataFrame) -> Path:
    order = np.argsort(IDS)
    values = np.column_stack([1 - P, P])[order].astype(np.float32)
    predictions = Predictions(np.array(IDS)[order], ("cat", "dog"), values, "single_label", {})
    return write_submission(folder / "a.csv", format.build(predictions, sample), sample=sample, format=format)


def graded(
    folder: Path, solution: str, format: str = "probabilities", metric: str = "log_loss", **params: Any
) -> Scores:
    made, sample = two_classes(format, **params)
    (folder / "solution.csv").write_text(solution)
    file = submitted(folder, made, sample)
    return grade(file, folder / "solution.csv", sample=sample, format=made, metric=make_metric(metric))


def rows(*cells: str, header: str = "id,label") -> str:
    return header + "\n" + "".join(f"{name},{cell}\n" for name, cell in zip(IDS, cells, strict=True))


LOSSES = -np.log(np.where(DOG, P, 1 - P))


def test_class_names_are_answers(tmp_path: Path) -> None:
    found = graded(tmp_path, rows("dog", "cat", "cat", "dog", header="id,animal"))
    assert (found.score, found.public, found.private) == (pytest.approx(LOSSES.mean(), rel=1e-6), None, None)


def test_one_column_per_class_is_an_answer(tmp_path: Path) -> None:
    found = graded(tmp_path, rows("1,0", "0,1", "0,1", "1,0", header="id,dog,cat"))
    assert found.score == pytest.approx(LOSSES.mean(), rel=1e-6)


@pytest.mark.parametrize(("target", "cells"), [(None, "1001"), ("dog", "1001"), ("cat", "0110")])
def test_zero_and_one_mean_what_the_submission_means_by_them(tmp_path: Path, target: str | None, cells: str) -> None:
    found = graded(tmp_path, rows(*cells), "single_probability", target=target)
    assert found.score == pytest.approx(LOSSES.mean(), rel=1e-6)


def test_class_names_grade_a_single_probability_too(tmp_path: Path) -> None:
    found = graded(tmp_path, rows("dog", "cat", "cat", "dog"), "single_probability", target="cat")
    assert found.score == pytest.approx(LOSSES.mean(), rel=1e-6)


def test_labels_are_graded_by_accuracy(tmp_path: Path) -> None:
    assert graded(tmp_path, rows("dog", "cat", "cat", "dog"), "label", "accuracy").score == 0.5


def test_usage_splits_public_and_private_in_any_case(tmp_path: Path) -> None:
    solution = rows("dog,Public", "cat,PRIVATE", "cat,private", "dog,Ignored", header="id,label,USAGE")
    found = graded(tmp_path, solution)
    assert found.public == pytest.approx(LOSSES[0], rel=1e-6)
    assert found.private == pytest.approx(LOSSES[1:3].mean(), rel=1e-6)
    assert found.score == pytest.approx(LOSSES[:3].mean(), rel=1e-6)


def test_a_split_without_private_rows_has_no_private_score(tmp_path: Path) -> None:
    found = graded(tmp_path, rows(*["dog,Public"] * 4, header="id,label,Usage"))
    assert found.private is None
    assert found.public == found.score


def test_an_unknown_usage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match="unknown usage 'hidden'"):
        graded(tmp_path, rows("dog,Public", "cat,hidden", "cat,Public", "dog,Public", header="id,label,Usage"))


def test_the_order_and_the_id_columns_name_of_the_solution_do_not_matter(tmp_path: Path) -> None:
    solution = "image,label\nb,dog\n0001,cat\n10,dog\n9,cat\n"
    assert graded(tmp_path, solution).score == pytest.approx(LOSSES.mean(), rel=1e-6)


def test_other_ids_than_the_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError) as caught:
        graded(tmp_path, "id,label\n10,dog\n9,cat\n1,cat\nb,dog\nb,dog\n")
    for part in ("ids are missing: '0001'", "not in the sample: '1'", "stand twice: 'b'"):
        assert part in caught.value.what


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        (rows("dog", "cat", "cow", "dog"), "hold no answers"),
        (rows("0,1", "1,1", "1,0", "0,1", header="id,cat,dog"), "the solution is no answer in 1 rows"),
        (rows("0.5,0.5", "1,0", "1,0", "0,1", header="id,cat,dog"), "the solution is no answer in 1 rows"),
        (rows(",1", "1,0", "1,0", "0,1", header="id,cat,dog"), "the solution is no answer in 1 rows"),
        ("id\n10\n9\n0001\nb\n", "hold no answers"),
    ],
)
def test_what_is_no_answer_is_refused(tmp_path: Path, solution: str, message: str) -> None:
    with pytest.raises(SubmissionError, match=message):
        graded(tmp_path, solution)


def test_a_submission_with_problems_is_not_graded(tmp_path: Path) -> None:
    format, sample = two_classes("probabilities")
    (tmp_path / "bad.csv").write_text("id,cat,dog\n10,2,0\n")
    (tmp_path / "solution.csv").write_text(rows("dog", "cat", "cat", "dog"))
    with pytest.raises(SubmissionError, match="ids are missing"):
        grade(tmp_path / "bad.csv", tmp_path / "solution.csv", sample=sample, format=format,
              metric=make_metric("log_loss"))  # fmt: skip


def test_a_metric_without_a_value_on_the_public_rows_says_so(tmp_path: Path) -> None:
    solution = rows("dog,Public", "cat,Private", "cat,Private", "dog,Private", header="id,label,Usage")
    with pytest.raises(DataError, match="no row of 'cat'"):
        graded(tmp_path, solution, metric="auc")


def test_numbers_are_graded_and_unknown_ones_do_not_count(tmp_path: Path) -> None:
    format = registry.build("format", "value", {}, _names=("age",), _task="regression")
    sample = pd.DataFrame({"id": IDS, "Prediction": [0.0] * 4})
    frame = sample.assign(Prediction=[1.0, 2.0, 3.0, 4.0])
    file = write_submission(tmp_path / "a.csv", frame, sample=sample, format=format)
    (tmp_path / "solution.csv").write_text(rows("1.5", "", "3", "2", header="id,age"))
    found = grade(file, tmp_path / "solution.csv", sample=sample, format=format, metric=make_metric("mae"))
    assert found.score == pytest.approx(2.5 / 3)


def test_labels_are_graded_per_label(tmp_path: Path) -> None:
    format = registry.build("format", "probabilities", {}, _names=("day", "car"), _task="multi_label")
    sample = pd.DataFrame({"id": IDS, "car": [0.5] * 4, "day": [0.5] * 4})
    file = write_submission(tmp_path / "a.csv", sample.assign(car=0.9, day=0.1), sample=sample, format=format)
    (tmp_path / "solution.csv").write_text(rows("1,0", "1,0", "1,1", "0,0", header="id,car,day"))
    found = grade(
        file, tmp_path / "solution.csv", sample=sample, format=format, metric=make_metric("multi_label_accuracy")
    )
    assert found.score == pytest.approx(6 / 8)
