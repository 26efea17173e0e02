from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbench.ensemble.imported import import_predictions
from kbench.errors import PredictionError
from kbench.inference.predictions import Predictions

IDS = np.array(["0001", "0002", "0003"])


def imported(
    folder: Path, text: str, *, task: str = "single_label", names: tuple[str, ...] = ("cat", "dog")
) -> Predictions:
    (folder / "team.csv").write_text(text)
    return import_predictions(folder / "team.csv", task=task, names=names, ids=IDS)


def test_columns_are_matched_by_name_and_rows_by_id(tmp_path: Path) -> None:
    found = imported(tmp_path, "image,dog,cat\n0003,0.3,0.7\n0001,0.1,0.9\n0002,0.2,0.8\n")
    assert found.ids.tolist() == IDS.tolist()
    assert found.names == ("cat", "dog")
    np.testing.assert_allclose(found.values[:, 1], [0.1, 0.2, 0.3], atol=1e-7)


def test_one_column_is_the_probability_of_the_last_of_two_classes(tmp_path: Path) -> None:
    found = imported(tmp_path, "id,label\n0001,0.1\n0002,0.2\n0003,1\n")
    np.testing.assert_allclose(found.values, [[0.9, 0.1], [0.8, 0.2], [0, 1]], atol=1e-7)


def test_one_column_of_the_first_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="dog: no such column"):
        imported(tmp_path, "id,cat\n0001,0.1\n0002,0.2\n0003,1\n")


def test_rows_that_sum_to_one_but_for_rounding_are_divided_by_their_sums(tmp_path: Path) -> None:
    found = imported(tmp_path, "id,cat,dog\n0001,0.333,0.666\n0002,0.5,0.5\n0003,1,0\n")
    np.testing.assert_allclose(found.values.sum(axis=1), 1, atol=1e-7)


def test_logits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match=r"3 of 3 rows: the one of id '0001' has a value outside 0..1"):
        imported(tmp_path, "id,cat,dog\n0001,-2,3\n0002,1,-1\n0003,4,0\n")


def test_scores_that_do_not_sum_to_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="1 of 3 rows: the one of id '0002' does not sum to 1"):
        imported(tmp_path, "id,cat,dog\n0001,0.5,0.5\n0002,0.5,0.6\n0003,1,0\n")


@pytest.mark.parametrize("cell", ["", "nan", "inf", "-inf", "x", "True"])
def test_a_cell_that_is_no_finite_number_is_refused(tmp_path: Path, cell: str) -> None:
    with pytest.raises(PredictionError, match="id '0002' is not of finite numbers"):
        imported(tmp_path, f"id,cat,dog\n0001,0.5,0.5\n0002,{cell},{cell}\n0003,1,0\n")


def test_every_problem_of_columns_and_ids_is_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(PredictionError) as caught:
        imported(tmp_path, "id,cat,dogg\n1,0.5,0.5\n1,0.5,0.5\n0003,1,0\n")
    for part in ("dog: no such column", "dogg: is no target", "1 ids stand twice: '1'", "2 of 3 ids are missing"):
        assert part in caught.value.what
    assert caught.value.expected
    assert caught.value.todo


def test_ids_that_lost_their_zeros_are_missing(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match=r"3 of 3 ids are missing: '0001'.*the file has '1', '2'"):
        imported(tmp_path, "id,p\n1,0.5\n2,0.5\n3,1\n")


def test_rows_of_other_ids_are_left_out_and_counted(tmp_path: Path) -> None:
    found = imported(tmp_path, "id,p\n0000,x\n0001,0.1\n0002,0.2\n0003,0.3\n9,-7\n")
    assert found.source["ignored"] == 2
    assert found.source["foreign"] is True
    assert len(found.source["sha256"]) == 64


def test_labels_need_not_sum_to_one(tmp_path: Path) -> None:
    found = imported(tmp_path, "id,dog,cat\n0001,1,1\n0002,0,0\n0003,1,0\n", task="multi_label")
    assert found.values.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_a_regression_takes_any_finite_number_and_any_column_name(tmp_path: Path) -> None:
    found = imported(tmp_path, "id,prediction\n0001,-1.5\n0002,0\n0003,1e6\n", task="regression", names=("age",))
    assert found.values[:, 0].tolist() == [-1.5, 0, 1e6]


def test_a_file_that_is_missing_or_no_csv_is_a_prediction_error(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="no such file"):
        import_predictions(tmp_path / "absent.csv", task="regression", names=("y",), ids=IDS)
    with pytest.raises(PredictionError, match="cannot read"):
        imported(tmp_path, "")


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20), st.booleans())
@settings(max_examples=25, deadline=None)
def test_what_was_exported_is_imported(tmp_path_factory: pytest.TempPathFactory, p: list[float], packed: bool) -> None:
    ids = np.array(sorted(f"im{row}.jpg" for row in range(len(p))))
    text = "id,tag\n" + "".join(f"{name},{value:.9g}\n" for name, value in zip(ids, p, strict=True))
    path = tmp_path_factory.mktemp("foreign") / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    found = import_predictions(path, task="multi_label", names=("tag",), ids=ids)
    assert found.values[:, 0].tolist() == p
