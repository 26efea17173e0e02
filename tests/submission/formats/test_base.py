from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from places import GOLDEN

from kbench import registry
from kbench.errors import ConfigError, SubmissionError
from kbench.inference.predictions import Predictions
from kbench.submission.check import check_submission, read_sample, write_submission
from kbench.submission.formats.base import Format

ORDER = ["0012", "7", "a b.jpg", "ä,x", "0003"]  # a sample's order is its own
VALUES = np.array([[0.2, 0.3, 0.5], [1 / 3, 1 / 3, 1 / 3], [0, 0, 1], [1e-7, 0.9999999, 0], [0.6, 0.1, 0.3]])
NAMES = ("ant", "bee", "cow")
laws = settings(max_examples=40, deadline=None)


def make(name: str, *, task: str, names: tuple[str, ...] = NAMES, **params: Any) -> Format:
    made: Format = registry.build("format", name, params, _names=names, _task=task)
    return made


def predictions_of(values: np.ndarray, *, task: str, names: tuple[str, ...] = NAMES, ids: Any = None) -> Predictions:
    ids = np.array(ORDER if ids is None else ids)
    order = np.argsort(ids)
    return Predictions(ids[order], names, values[order].astype(np.float32), task, {})


def sample_of(*columns: str, ids: Any = None) -> pd.DataFrame:
    ids = ORDER if ids is None else ids
    return pd.DataFrame({"id": ids, **dict.fromkeys(columns, [0.5] * len(ids))})


CASES: dict[str, tuple[str, str, tuple[str, ...], dict[str, Any]]] = {
    "probabilities": ("probabilities", "single_label", ("cow", "ant", "bee"), {}),
    "probabilities-clipped": ("probabilities", "single_label", NAMES, {"clip": 0.05}),
    "probabilities-labels": ("probabilities", "multi_label", NAMES, {}),
    "label": ("label", "single_label", ("breed",), {}),
    "single-probability": ("single_probability", "single_label", ("label",), {"target": "bee", "clip": 0.02}),
    "tags": ("tags", "multi_label", ("tags",), {"threshold": [0.5, 0.25, 0.4]}),
    "value": ("value", "regression", ("bee", "ant", "cow"), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_submission_is_the_golden_file(case: str, tmp_path: Path) -> None:
    name, task, columns, params = CASES[case]
    format, sample = make(name, task=task, **params), sample_of(*columns)
    frame = format.build(predictions_of(VALUES, task=task), sample)
    path = write_submission(tmp_path / "a.csv", frame, sample=sample, format=format)
    assert path.read_bytes() == (GOLDEN / f"submission-{case}.csv").read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_the_golden_file_passes_the_check_and_keeps_the_order_of_the_sample(case: str) -> None:
    name, task, columns, params = CASES[case]
    format = make(name, task=task, **params)
    frame = check_submission(GOLDEN / f"submission-{case}.csv", sample_of(*columns), format=format)
    assert frame["id"].tolist() == ORDER


# Round trips -----------------------------------------------------------------------------------------------------

names_of = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0", exclude_categories=["Cs"]), min_size=1),
    min_size=2, max_size=5, unique=True,
)  # fmt: skip
ids_of = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"], exclude_characters="\ufeff"), min_size=1),
    min_size=1, max_size=8, unique=True,
)  # fmt: skip


def round_trip(format: Format, predictions: Predictions, sample: pd.DataFrame, folder: Path) -> Predictions:
    path = write_submission(folder / "a.csv", format.build(predictions, sample), sample=sample, format=format)
    parsed = format.parse(check_submission(path, sample, format=format), sample)
    assert (parsed.ids == predictions.ids).all()
    return parsed


@given(data=st.data(), ids=ids_of)
@laws
def test_probabilities_come_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, ids: list[str]) -> None:
    raw = data.draw(arrays(np.float32, (len(ids), 3), elements=st.floats(2**-10, 1, width=32)))
    values = raw / raw.sum(axis=1, keepdims=True, dtype=np.float64)
    predictions = predictions_of(values, task="single_label", ids=ids)
    format = make("probabilities", task="single_label")
    parsed = round_trip(format, predictions, sample_of("cow", "ant", "bee", ids=ids), tmp_path_factory.mktemp("a"))
    assert parsed.names == predictions.names
    np.testing.assert_allclose(parsed.values, predictions.values, rtol=1e-6, atol=1e-9)


@given(data=st.data(), ids=ids_of)
@laws
def test_labels_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, ids: list[str]
) -> None:
    values = data.draw(arrays(np.float32, (len(ids), 3), elements=st.floats(0, 1, width=32)))
    predictions = predictions_of(values, task="multi_label", ids=ids)
    format = make("probabilities", task="multi_label")
    parsed = round_trip(format, predictions, sample_of(*NAMES, ids=ids), tmp_path_factory.mktemp("a"))
    assert (parsed.values == predictions.values).all()


@given(data=st.data(), ids=ids_of)
@laws
def test_numbers_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, ids: list[str]
) -> None:
    values = data.draw(
        arrays(np.float32, (len(ids), 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
    )
    predictions = predictions_of(values, task="regression", ids=ids)
    format = make("value", task="regression")
    parsed = round_trip(format, predictions, sample_of("cow", "bee", "ant", ids=ids), tmp_path_factory.mktemp("a"))
    assert parsed.names == NAMES
    assert (parsed.values == predictions.values).all()


@given(data=st.data(), ids=ids_of, target=st.sampled_from([None, "cat", "dog"]))
@laws
def test_a_single_probability_comes_back_as_two_classes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, ids: list[str], target: str | None
) -> None:
    p = data.draw(arrays(np.float32, (len(ids),), elements=st.floats(0, 1, width=32)))
    predictions = predictions_of(np.column_stack([1 - p, p]), task="single_label", names=("cat", "dog"), ids=ids)
    format = make("single_probability", task="single_label", names=("cat", "dog"), target=target)
    parsed = round_trip(format, predictions, sample_of("label", ids=ids), tmp_path_factory.mktemp("a"))
    assert parsed.names == ("cat", "dog")
    np.testing.assert_allclose(parsed.values, predictions.values, atol=1e-7)


@given(data=st.data(), ids=ids_of)
@laws
def test_tags_come_back_as_what_is_above_the_threshold(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, ids: list[str]
) -> None:
    values = data.draw(arrays(np.float32, (len(ids), 3), elements=st.floats(0, 1, width=32)))
    predictions = predictions_of(values, task="multi_label", ids=ids)
    threshold = data.draw(st.floats(0, 1) | st.lists(st.floats(0, 1), min_size=3, max_size=3))
    format = make("tags", task="multi_label", threshold=threshold)
    parsed = round_trip(format, predictions, sample_of("tags", ids=ids), tmp_path_factory.mktemp("a"))
    assert parsed.names == NAMES
    assert (parsed.values == (predictions.values > np.float32(threshold))).all()


def test_wrong_tags_are_found() -> None:
    format, sample = make("tags", task="multi_label"), sample_of("tags")
    frame = sample.assign(tags=["ant bee", "", "ant  bie", "cow cow", "cow"])
    what = [str(problem) for problem in format.problems(frame, sample)]
    assert what == [
        "tags: 1 word that no tag is called: 'bie' (did you mean 'bee'?)",
        "tags: 1 cell with a tag twice, of 'ä,x'",
    ]


@pytest.mark.parametrize(
    ("names", "task", "params", "says"),
    [
        (NAMES, "single_label", {}, "cannot write the task 'single_label'"),
        (NAMES, "multi_label", {"threshold": 1.5}, "threshold is '1.5'"),
        (NAMES, "multi_label", {"threshold": [0.2, 0.3]}, "2 thresholds for 3 tags"),
        (("blue sky", "sea"), "multi_label", {}, "'blue sky'"),
    ],
)
def test_tags_that_cannot_be_written_are_refused(names: Any, task: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make("tags", task=task, names=names, **params)


@given(data=st.data(), names=names_of, ids=ids_of)
@laws
def test_class_names_come_back_whatever_they_are(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, names: list[str], ids: list[str]
) -> None:
    best = data.draw(st.lists(st.integers(0, len(names) - 1), min_size=len(ids), max_size=len(ids)))
    values = np.eye(len(names))[best]
    predictions = predictions_of(values, task="single_label", names=tuple(names), ids=ids)
    format = make("label", task="single_label", names=tuple(names))
    parsed = round_trip(format, predictions, sample_of("label", ids=ids), tmp_path_factory.mktemp("a"))
    assert parsed.names == tuple(names)
    assert (parsed.values == predictions.values).all()


# Rules -----------------------------------------------------------------------------------------------------------


def test_rows_of_many_classes_sum_to_one_within_a_millionth_on_paper(tmp_path: Path) -> None:
    names = tuple(f"breed{k:03}" for k in range(120))
    values = np.random.default_rng(0).dirichlet(np.full(120, 0.05), 5) * 0.99  # rows a little off
    format = make("probabilities", task="single_label", names=names)
    sample = sample_of(*names)
    frame = format.build(predictions_of(values, task="single_label", names=names), sample)
    path = write_submission(tmp_path / "a.csv", frame, sample=sample, format=format)
    read = pd.read_csv(path, index_col="id").to_numpy()
    np.testing.assert_allclose(read.sum(axis=1), 1, atol=1e-7)


def test_clipping_keeps_sure_mistakes_cheap() -> None:
    frame = make("single_probability", task="single_label", clip=0.05).build(
        predictions_of(VALUES, task="single_label"), sample_of("label")
    )
    assert frame["label"].min() == 0.05
    assert frame["label"].max() == 0.95


def test_clipped_rows_of_classes_still_sum_to_one() -> None:
    frame = make("probabilities", task="single_label", clip=0.1).build(
        predictions_of(VALUES, task="single_label"), sample_of(*NAMES)
    )
    np.testing.assert_allclose(frame[list(NAMES)].sum(axis=1), 1)
    assert frame.loc[2, list(NAMES)].tolist() == pytest.approx([1 / 11, 1 / 11, 9 / 11])


def test_a_probability_a_hair_above_one_is_written_as_one() -> None:
    values = np.full((5, 3), 1 + 5e-7)
    frame = make("probabilities", task="multi_label").build(
        predictions_of(values, task="multi_label"), sample_of(*NAMES)
    )
    assert (frame[list(NAMES)].to_numpy() == 1).all()


def test_the_default_target_is_the_last_class() -> None:
    frame = make("single_probability", task="single_label").build(
        predictions_of(VALUES, task="single_label"), sample_of("label")
    )
    np.testing.assert_allclose(frame["label"], VALUES[:, 2], atol=1e-7)


def test_a_label_of_many_probabilities_is_parsed_as_that_label_alone() -> None:
    format = make("single_probability", task="single_label", target="bee")
    sample = sample_of("label")
    parsed = format.parse(format.build(predictions_of(VALUES, task="single_label"), sample), sample)
    assert (parsed.names, parsed.task) == (("bee",), "multi_label")


def test_columns_without_targets_and_targets_without_columns_are_both_listed() -> None:
    with pytest.raises(SubmissionError) as caught:
        make("probabilities", task="single_label").build(
            predictions_of(VALUES, task="single_label"), sample_of("ant", "be", "cow", "dog")
        )
    for part in (
        "be: a column of the sample that is no target (did you mean 'bee'?)",
        "dog: a column",
        "bee: a target",
    ):
        assert part in caught.value.what


def test_a_sample_with_one_column_suggests_the_formats_with_one_column() -> None:
    with pytest.raises(SubmissionError) as caught:
        make("probabilities", task="single_label").build(
            predictions_of(VALUES, task="single_label"), sample_of("label")
        )
    assert "single_probability" in caught.value.todo


def test_a_sample_with_many_columns_is_refused_by_the_formats_with_one() -> None:
    for name in ("label", "single_probability"):
        with pytest.raises(SubmissionError, match="the sample has 3 target columns"):
            make(name, task="single_label").build(predictions_of(VALUES, task="single_label"), sample_of(*NAMES))


def test_a_single_regression_target_fills_a_single_column_of_any_name() -> None:
    format = make("value", task="regression", names=("age",))
    frame = format.build(predictions_of(VALUES[:, :1], task="regression", names=("age",)), sample_of("Prediction"))
    assert list(frame.columns) == ["id", "Prediction"]


def test_an_id_that_is_not_predicted_is_shown_with_the_nearest_one() -> None:
    sample = sample_of("label", ids=["0012.jpg", "7", "a b.jpg"])
    with pytest.raises(SubmissionError, match=r"1 of 3 ids are not predicted: '0012.jpg' \(did you mean '0012'\?\)"):
        make("label", task="single_label").build(predictions_of(VALUES, task="single_label"), sample)


def test_a_target_that_is_not_predicted_is_named() -> None:
    with pytest.raises(SubmissionError, match="cow: a target that is not predicted"):
        make("label", task="single_label").build(
            predictions_of(VALUES[:, :2], task="single_label", names=("ant", "bee")), sample_of("label")
        )


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("probabilities", "regression"),
        ("label", "multi_label"),
        ("single_probability", "segmentation"),
        ("value", "single_label"),
    ],
)
def test_a_format_refuses_a_task_it_cannot_write(name: str, task: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' cannot write the task '{task}'"):
        make(name, task=task)


@pytest.mark.parametrize("name", ["probabilities", "single_probability"])
@pytest.mark.parametrize("clip", [0.5, -0.1, 1.0, float("nan")])
def test_a_clip_that_is_no_share_below_a_half_is_refused(name: str, clip: float) -> None:
    with pytest.raises(ConfigError, match="with clip"):
        make(name, task="single_label", clip=clip)


def test_an_unknown_target_gets_a_hint() -> None:
    with pytest.raises(ConfigError) as caught:
        make("single_probability", task="single_label", target="bees")
    assert "did you mean 'bee'" in caught.value.todo


def test_yaml_parameters_are_held_against_the_signature() -> None:
    for name in ("probabilities", "label", "single_probability", "value"):
        assert registry.bind("format", name, {}, where="submission.format") == []
    (problem,) = registry.bind("format", "probabilities", {"clip": "much"}, where="submission.format")
    assert problem.where == "submission.format.clip"
    (problem,) = registry.bind("format", "label", {"clip": 0.1}, where="submission.format")
    assert "no such parameter" in problem.what


def test_a_sample_read_from_a_file_works_as_well(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text("id,label\n0012,0.5\n7,0.5\n")
    sample = read_sample(tmp_path / "sample.csv")
    frame = make("label", task="single_label").build(predictions_of(VALUES, task="single_label"), sample)
    assert frame["id"].tolist() == ["0012", "7"]


@pytest.mark.parametrize(
    ("column", "target", "expected"),
    [
        ("abnormal", None, "abnormal"), (" Abnormal ", None, "abnormal"), ("normal", None, "normal"),
        ("label", None, "normal"), ("abnormal", "normal", "normal"), ("label", "abnormal", "abnormal"),
    ],
)  # fmt: skip
def test_a_column_that_is_called_like_a_class_gets_that_class(column: str, target: str | None, expected: str) -> None:
    """The trial positive-class-column."""
    names = ("abnormal", "normal")
    for task in ("single_label", "multi_label"):
        made: Format = registry.build("format", "single_probability", {"target": target}, _names=names, _task=task)
        values = np.array([[0.9, 0.1], [0.2, 0.8]], dtype=np.float32)
        predictions = Predictions(np.array(["a", "b"]), names, values, task, {})
        sample = pd.DataFrame({"id": ["b", "a"], column: [0.5, 0.5]})
        frame = made.build(predictions, sample)
        np.testing.assert_allclose(frame[column], values[::-1, names.index(expected)], rtol=1e-6)
        read = made.parse(frame, sample)
        place = read.names.index(expected)
        np.testing.assert_allclose(read.values[:, place], values[:, names.index(expected)], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "task"),
    [("probabilities", "single_label"), ("probabilities", "multi_label"), ("value", "regression")],
)
@pytest.mark.parametrize("columns", [("Cow", " ant", "bee\u200b"), ("COW", "Ant", "Bee"), ("cow\u00a0", "ant", "bee ")])
def test_columns_that_differ_by_case_blanks_or_form_are_filled_under_the_samples_names(
    tmp_path: Path, name: str, task: str, columns: tuple[str, ...]
) -> None:
    """The sample's header is what is sent; its order is not the classes'."""
    format, sample = make(name, task=task), sample_of(*columns)
    frame = format.build(predictions_of(VALUES, task=task), sample)
    path = write_submission(tmp_path / "a.csv", frame, sample=sample, format=format)
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(["id", *columns])
    np.testing.assert_allclose(frame[list(columns)].to_numpy(), VALUES[:, [2, 0, 1]], atol=1e-6)
    read = format.parse(check_submission(path, sample, format=format), sample)
    assert read.names == NAMES
    np.testing.assert_allclose(read.values, predictions_of(VALUES, task=task).values, atol=1e-6)


def test_columns_that_may_be_two_classes_or_two_columns_of_one_class_are_refused() -> None:
    format = make("probabilities", task="multi_label", names=("ant", "Ant"))
    with pytest.raises(SubmissionError, match="ANT: a column of the sample that is no target"):
        format.build(predictions_of(VALUES[:, :2], task="multi_label", names=("ant", "Ant")), sample_of("ANT", "ant"))
    format = make("probabilities", task="multi_label", names=("ant", "bee"))
    with pytest.raises(SubmissionError, match="ANT: a column of the sample that is no target"):
        format.build(
            predictions_of(VALUES[:, :2], task="multi_label", names=("ant", "bee")), sample_of("ant", "ANT", "bee")
        )
