from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from kbench.errors import DataError, SourceError
from kbench.files import sha256
from kbench.sources.embedded import embedded

pytestmark = pytest.mark.slow  # a few seconds together


def quiet(what: str, done: int, total: int) -> None:
    pass


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str)


def fetch(target: Path, *, force: bool = False) -> tuple[int, int]:
    done = embedded().fetch(target, files=(), force=force, progress=quiet)
    return done.files, done.new


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("data") / "digits"
    assert fetch(target) == (1799, 1799)
    return target


def test_there_are_as_many_rows_as_images(digits: Path) -> None:
    train, sample = read(digits / "train.csv"), read(digits / "sample_submission.csv")
    assert (len(train), len(sample)) == (1437, 360)
    assert sorted(f"{name}.png" for name in train["id"]) == sorted(path.name for path in (digits / "train").iterdir())
    assert sorted(f"{name}.png" for name in sample["id"]) == sorted(path.name for path in (digits / "test").iterdir())


def test_ids_keep_their_zeros_and_stand_once(digits: Path) -> None:
    ids = [*read(digits / "train.csv")["id"], *read(digits / "sample_submission.csv")["id"]]
    assert sorted(ids) == [f"{number:04d}" for number in range(1, 1798)]


def test_the_images_are_those_of_scikit_learn(digits: Path) -> None:
    bunch = load_digits()
    written = Counter(
        (cv2.imread(str(path), cv2.IMREAD_UNCHANGED).tobytes(), label) for path, label in labelled(digits)
    )
    expected = Counter(
        (np.rint(image * 255 / 16).astype(np.uint8).tobytes(), str(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    assert written == expected


def labelled(digits: Path) -> list[tuple[Path, str]]:
    train, solution = read(digits / "train.csv"), read(digits / ".solution" / "solution.csv")
    return [
        (digits / folder / f"{name}.png", label)
        for folder, frame in (("train", train), ("test", solution))
        for name, label in zip(frame["id"], frame["label"], strict=True)
    ]


def test_images_are_grey_8_bit_and_8_pixels_wide(digits: Path) -> None:
    image = cv2.imread(str(digits / "train" / f"{read(digits / 'train.csv')['id'][0]}.png"), cv2.IMREAD_UNCHANGED)
    assert image.shape == (8, 8)
    assert image.dtype == np.uint8
    assert image.max() == 255


def test_the_test_rows_are_stratified(digits: Path) -> None:
    solution = Counter(read(digits / ".solution" / "solution.csv")["label"])
    everything = Counter(map(str, load_digits().target))
    assert all(abs(solution[label] - 360 * count / 1797) < 1 for label, count in everything.items())


def test_public_and_private_are_halves_of_every_class(digits: Path) -> None:
    table = pd.crosstab(*(read(digits / ".solution" / "solution.csv")[name] for name in ("label", "Usage")))
    assert list(table.columns) == ["Private", "Public"]
    assert (table["Public"] - table["Private"]).between(0, 1).all()


def test_ids_say_nothing_about_labels_or_split(digits: Path) -> None:
    rows = sorted((path.stem, path.parent.name, int(label)) for path, label in labelled(digits))
    numbers = np.arange(len(rows))
    labels, in_test = np.array([label for *_, label in rows]), np.array([part == "test" for _, part, _ in rows])
    assert abs(np.corrcoef(numbers, labels)[0, 1]) < 0.06
    assert abs(np.corrcoef(numbers, in_test)[0, 1]) < 0.06


def test_the_sample_is_even_over_the_classes(digits: Path) -> None:
    sample = read(digits / "sample_submission.csv")
    assert list(sample.columns) == ["id", *"0123456789"]
    assert (sample.drop(columns="id") == "0.1").all(axis=None)


def test_the_tables_are_the_same_everywhere(digits: Path) -> None:
    golden = {
        "train.csv": "c9df1f7829a353ec",
        "sample_submission.csv": "da0fc1df757d813c",
        ".solution/solution.csv": "f5e53173b1f17dbc",
    }
    assert {name: sha256(digits / name)[:16] for name in golden} == golden


def test_the_solution_is_where_grading_looks(digits: Path) -> None:
    assert embedded().solution(digits) == digits / ".solution" / "solution.csv"


def test_a_second_fetch_writes_nothing(digits: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert fetch(digits) == (1799, 0)
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


def test_missing_files_come_back_and_changed_ones_are_named(tmp_path: Path) -> None:
    target = tmp_path / "digits"
    fetch(target)
    (target / "train.csv").unlink()
    (target / "mine.txt").write_text("mine")
    assert fetch(target)[1] == 1
    (target / "train.csv").write_text("mine too")
    with pytest.raises(DataError, match=r"'train\.csv' in .* differ"):
        fetch(target)
    assert (target / "train.csv").read_text() == "mine too"
    assert fetch(target, force=True)[1] == 1
    assert read(target / "train.csv").shape == (1437, 2)
    assert (target / "mine.txt").read_text() == "mine"


def test_without_its_manifest_a_fetch_is_not_done(tmp_path: Path) -> None:
    target = tmp_path / "digits"
    fetch(target)
    (target / ".kbench-manifest.json").unlink()
    (target / "test" / sorted(path.name for path in (target / "test").iterdir())[0]).unlink()
    assert fetch(target) == (1799, 1)


def test_files_of_the_users_own_are_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "digits"
    target.mkdir()
    (target / "train.csv").write_text("mine")
    with pytest.raises(DataError, match="differ"):
        fetch(target)
    assert [path.name for path in target.iterdir()] == ["train.csv"]


def test_a_link_made_for_another_source_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "digits").symlink_to(tmp_path / "mine")
    fetch(tmp_path / "digits")
    assert list((tmp_path / "mine").iterdir()) == []


def test_an_unknown_data_set_gets_the_nearest_name() -> None:
    with pytest.raises(SourceError, match="did you mean 'digits'"):
        embedded(dataset="digit")


def test_it_has_no_service(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no service"):
        embedded().upload(tmp_path / "a.csv", quiet)
    with pytest.raises(SourceError, match="has no service"):
        embedded().status("1")
    with pytest.raises(SourceError, match="written whole"):
        embedded().fetch(tmp_path, files=["train.csv"], force=False, progress=quiet)
