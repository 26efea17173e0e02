from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import SHARED

from kbench import registry
from kbench.config.competition import Competition
from kbench.config.reading import with_stage_defaults
from kbench.config.yaml12 import parse_yaml
from kbench.data.table.layouts import read_table
from kbench.data.table.reading import Request
from kbench.drafting.draft import _CALLED, _value, draft, limits_in, named_metric
from kbench.drafting.facts import Facts, discover
from kbench.sources.embedded import embedded

real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not on this machine")
LOCAL = {"name": "local", "path": "pets.zip"}


def parsed(root: Path, source: dict[str, Any] = LOCAL) -> dict[str, Any]:
    content = parse_yaml(draft(root, name="pets", source=source), name="pets.yaml")
    assert isinstance(content, dict)
    return content


def validated(root: Path) -> Competition:
    return Competition.model_validate(with_stage_defaults(parsed(root)))


def write(root: Path, size: tuple[int, int] = (100, 120), **tables: str) -> None:
    """Write tables, and an image for each line of `files`."""
    for name, text in tables.items():
        if name != "files":
            (root / f"{name}.csv").write_text(text)
    for file in tables.get("files", "").split():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / file), np.zeros((*size, 3), np.uint8))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("data") / "digits"
    embedded().fetch(target, files=(), force=False, progress=lambda what, done, total: None)
    return target


def test_the_digits_draft_has_nothing_left_to_do(digits: Path) -> None:
    text = draft(digits, name="digits", source={"name": "embedded", "dataset": "digits"})
    assert text.count("TODO") == 1  # the first line says what to look for
    competition = Competition.model_validate(with_stage_defaults(parse_yaml(text, name="digits")))
    assert competition.task == "single_label"
    assert competition.source.params == {"dataset": "digits"}
    assert competition.data.train.model_dump(exclude={"where"}) == {
        "csv": "train.csv",
        "images": "train",
        "suffix": ".png",
        "id": "id",
    }
    assert competition.data.test is not None
    assert (competition.data.test.csv, competition.data.test.images) == (None, "test")
    assert competition.data.target == "label"
    assert competition.metric.name == "log_loss"
    assert competition.submission.format.name == "probabilities"
    assert competition.submission.sample == "sample_submission.csv"
    assert (competition.input.size, competition.input.channels) == (32, 1)


def test_the_digits_draft_reads_its_tables(digits: Path) -> None:
    data = Competition.model_validate(
        with_stage_defaults(parse_yaml(draft(digits, name="digits", source=LOCAL), name="digits"))
    ).data
    for split, part, rows in (("train", data.train, 1437), ("test", data.test, 360)):
        assert part is not None
        request = Request(digits, split, "single_label", part.csv, (str(part.images),), part.suffix, part.id)  # type: ignore[arg-type]
        assert len(read_table("csv", {}, request)) == rows


def test_names_of_the_draft_that_are_registered_bind(digits: Path) -> None:
    competition = Competition.model_validate(
        with_stage_defaults(parse_yaml(draft(digits, name="digits", source=LOCAL), name="digits"))
    )
    layout, metric, folds = competition.data.layout, competition.metric, competition.folds
    assert registry.bind("layout", layout.name, layout.params, where="data.layout") == []
    assert registry.bind("metric", metric.name, metric.params, where="metric") == []
    assert registry.bind("fold strategy", folds.strategy, folds.options, where="folds") == []
    assert registry.bind("source", competition.source.name, competition.source.params, where="source") == []


def test_an_empty_folder_gives_a_draft_full_of_todos(tmp_path: Path) -> None:
    content = parsed(tmp_path)
    assert content["task"] == content["metric"] == content["data"]["target"] == "TODO"
    assert content["data"]["train"]["images"] == content["data"]["test"]["images"] == "TODO"
    assert content["submission"] == {"format": "TODO", "sample": "TODO"}


def test_what_the_draft_leaves_open_is_an_error_of_the_yaml(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task"):
        validated(tmp_path)
    write(tmp_path, train="id,label\na,x\nb,y\n", files="train/a.jpg train/b.jpg")
    content = parsed(tmp_path, {"name": "kaggle", "slug": "pets"})
    competition = Competition.model_validate(with_stage_defaults(content))
    assert registry.bind("metric", competition.metric.name, {}, where="metric") != []


def test_a_label_column_of_class_names_is_a_label_submission(tmp_path: Path) -> None:
    write(
        tmp_path,
        train="id,label\na,cat\nb,dog\n",
        sample_submission="id,label\nc,cat\n",
        files="train/a.jpg train/b.jpg test/c.jpg",
    )
    competition = validated(tmp_path)
    assert (competition.submission.format.name, competition.metric.name) == ("label", "accuracy")


@pytest.mark.parametrize(("rows", "batch"), [(40, 8), (500, 16), (5000, 32)])
def test_a_batch_is_a_small_part_of_the_rows(tmp_path: Path, rows: int, batch: int) -> None:
    lines = "".join(f"{row},{'ab'[row % 2]}\n" for row in range(rows))
    write(tmp_path, size=(20, 20), train=f"id,label\n{lines}", files="train/0.jpg train/1.jpg test/c.jpg")
    assert validated(tmp_path).stages["all"].batch_size == batch


def test_numbers_are_regression(tmp_path: Path) -> None:
    write(
        tmp_path,
        train="id,height,site\na,1.5,P\nb,2.5,P\nc,3,Q\nd,4,Q\n",
        sample_submission="id,height\ne,0\n",
        files="train/a.jpg train/b.jpg train/c.jpg train/d.jpg test/e.jpg",
    )
    competition = validated(tmp_path)
    assert competition.task == "regression"
    assert (competition.submission.format.name, competition.metric.name) == ("value", "rmse")
    assert competition.data.metadata == ["site"]
    assert "group: site" in draft(tmp_path, name="pets", source=LOCAL)


def test_columns_of_the_sample_are_the_targets(tmp_path: Path) -> None:
    write(
        tmp_path,
        train="id,site,b,a\nx,1,1,0\ny,2,1,1\n",
        sample_submission="id,b,a\nz,0.5,0.5\n",
        files="train/x.jpg train/y.jpg test/z.jpg",
    )
    competition = validated(tmp_path)
    assert (competition.task, competition.data.target) == ("multi_label", ["b", "a"])
    assert competition.folds.strategy == "multilabel"


def test_folders_of_classes_are_recognised(tmp_path: Path) -> None:
    files = "train/cats/1.jpg train/dogs/1.jpg valid/cats/2.jpg valid/dogs/2.jpg test1/1.jpg"
    write(tmp_path, size=(300, 300), files=files)
    competition = validated(tmp_path)
    assert (competition.data.layout.name, competition.data.layout.params) == ("folders", {"valid": "valid"})
    assert competition.data.train.images == "train"
    assert competition.data.test is not None
    assert competition.data.test.images == "test1"
    assert (competition.folds.strategy, competition.folds.options) == ("predefined", {"column": "split"})


def test_a_bundle_with_one_folder_around_it_is_understood(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    write(tmp_path / "pets", train="id,label\na,cat\nb,dog\n", files="train/a.jpg train/b.jpg")
    facts = discover(tmp_path)
    assert facts.train_csv == "pets/train.csv"
    assert facts.train is not None
    assert facts.train.folder == "pets/train"


def test_ids_that_carry_their_suffix_keep_it(tmp_path: Path) -> None:
    write(tmp_path, train="file,label\na.jpg,cat\nb.jpg,dog\n", sample_submission="file,label\nc.jpg,cat\n",
          files="train/a.jpg train/b.jpg test/c.jpg")  # fmt: skip
    competition = validated(tmp_path)
    assert competition.data.train.suffix == ""
    assert competition.data.test is not None
    assert (competition.data.test.csv, competition.data.test.suffix) == ("sample_submission.csv", "")


def test_a_column_with_one_value_a_row_is_no_target(tmp_path: Path) -> None:
    rows = "".join(f"{number},name{number}\n" for number in range(60))
    write(tmp_path, train=f"id,name\n{rows}", files=" ".join(f"train/{number}.jpg" for number in range(60)))
    assert discover(tmp_path).target == ()


@pytest.mark.parametrize(
    ("words", "task", "name"),
    [
        ("Log Loss", "single_label", "log_loss"),
        ("Multiclass Loss", "single_label", "log_loss"),
        ("Multi Class Log Loss", "single_label", "log_loss"),
        ("Mean Columnwise Logarithmic Loss", "multi_label", "bce"),
        ("AUC", "multi_label", "auc"),
        ("Area Under Receiver Operating Characteristic Curve", "single_label", "auc"),
        ("Mean Columnwise Area Under Receiver Operating Characteristic Curve", "multi_label", "auc"),
        ("Categorization Accuracy", "single_label", "accuracy"),
        ("Mean F2 Score", "multi_label", "f2_samples"),
        ("Quadratic Weighted Kappa", "regression", "quadratic_kappa"),
        ("Root Mean Squared Error", "regression", "rmse"),
        ("Mean Squared Error (MSE)", "regression", "mse"),
        ("MAE", "regression", "mae"),
        ("MAE", None, "mae"),
        ("MAE", "single_label", None),
        ("Root Mean Squared Logarithmic Error", "regression", None),
        ("Mean Average Precision", "multi_label", None),
    ],
)
def test_the_service_s_words_name_a_metric_only_where_they_are_sure(words: str, task: str, name: str | None) -> None:
    assert named_metric(words, task) == name


def test_every_metric_with_other_names_is_registered() -> None:
    assert {name for names in _CALLED for name in names} <= set(registry.names("metric"))


def test_a_draft_takes_title_and_metric_of_the_service(tmp_path: Path) -> None:
    write(tmp_path, train="id,label\na,cat\nb,dog\n", sample_submission="id,label\nc,cat\n",
          files="train/a.jpg train/b.jpg test/c.jpg")  # fmt: skip
    text = draft(tmp_path, name="pets", source=LOCAL, title="Pets: a # test", metric="AUC", code_only=True)
    content = parse_yaml(text, name="pets.yaml")
    assert isinstance(content, dict)
    assert (content["title"], content["metric"]) == ("Pets: a # test", "auc")
    assert "# A code competition" in text
    assert "`kbench export -c pets`" in text
    pages = {"rules": "CPU Notebook <= 12 hours run-time, GPU Notebook <= 9 hours run-time", "data": "3 hours of video"}
    assert limits_in(pages) == (9, 12)
    text = draft(tmp_path, name="pets", source=LOCAL, code_only=True, hours=limits_in(pages))
    assert "its pages say 9 or 12 h" in text
    assert "`kbench export -c pets --hours 9`" in text


def test_words_of_the_service_stay_in_their_comment(tmp_path: Path) -> None:
    text = draft(tmp_path, name="pets", source=LOCAL, metric="Odd\nseed: 7\u2028task: x")
    content = parse_yaml(text, name="pets.yaml")
    assert isinstance(content, dict)
    assert (content["metric"], content["seed"], content["task"]) == ("TODO", 0, "TODO")


def test_a_draft_is_the_same_twice_and_writes_nothing(digits: Path) -> None:
    before = sorted(path.name for path in digits.iterdir())
    assert draft(digits, name="digits", source=LOCAL) == draft(digits, name="digits", source=LOCAL)
    assert sorted(path.name for path in digits.iterdir()) == before


written = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
scalars = written | st.integers(-(10**9), 10**9) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(written, scalars | st.lists(scalars, max_size=3), max_size=4))
def test_any_name_is_written_so_that_it_is_read_back(content: dict[str, Any]) -> None:
    assert parse_yaml(f"key: {_value(content)}", name="draft")["key"] == content


@real_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dogcat", {"id": "filename", "target": ("label",), "task": "single_label", "format": "single_probability"}),
        ("dogbreed", {"train_csv": "labels.csv", "target": ("breed",), "format": "probabilities"}),
        ("camvid_multilabel", {"target": ("tags",), "task": "multi_label", "format": "tags", "group": "route"}),
        ("camvid", {"task": "segmentation", "target": (), "test_csv": "test.csv"}),
        ("tgs_salt", {"task": "segmentation", "id": "id", "size": (101, 101, 3)}),
        ("s2_dense_regression", {"task": "dense_regression"}),
    ],
)
def test_real_competitions_are_recognised(name: str, expected: dict[str, Any]) -> None:
    facts: Facts = discover(SHARED / name)
    assert {key: getattr(facts, key) for key in expected} == expected


@real_data
@pytest.mark.parametrize("name", ["dogcat", "dogbreed", "camvid_multilabel", "camvid", "tgs_salt"])
def test_drafts_of_real_competitions_validate(name: str) -> None:
    competition = validated(SHARED / name)
    assert competition.data.train.images != "TODO"


# -- what the files say, and what they do not ---------------------------------------------------------------------


def labelled(root: Path, labels: list[str], sample: str, *, places: str = "train", header: str = "label") -> None:
    """Write rows with these labels, an image each, and a sample of two test images."""
    names = [f"a{row:03d}" for row in range(len(labels))]
    rows = "".join(f'{name},"{label}"\n' for name, label in zip(names, labels, strict=True))
    folders = places.split()
    files = [f"{folders[row % len(folders)]}/{name}.jpg" for row, name in enumerate(names)]
    write(root, (24, 24), train=f"id,{header}\n{rows}", sample_submission=sample,
          files=" ".join([*files, "test/t0.jpg", "test/t1.jpg"]))  # fmt: skip


CROPS = ["Maize", "Sugar beet", "Common wheat", "Black-grass"]


def test_names_of_several_words_are_classes(tmp_path: Path) -> None:
    """The trial class-names-with-spaces."""
    labelled(tmp_path, CROPS * 5, "id,label\nt0,Sugar beet\nt1,Maize\n")
    competition = validated(tmp_path)
    assert (competition.task, competition.submission.format.name) == ("single_label", "label")
    assert sorted(discover(tmp_path).classes) == sorted(CROPS)


def test_tags_stay_tags_whatever_divides_them(tmp_path: Path) -> None:
    for sign in (" ", ",", "|"):
        cells = [sign.join(cell) for cell in (("a", "b"), ("a", "c"), ("b",), ("c", "b", "a"))]
        labelled(tmp_path, cells * 3, f'id,label\nt0,"{cells[0]}"\nt1,"{cells[1]}"\n')
        facts = discover(tmp_path)
        assert (facts.task, facts.classes, facts.separator) == ("multi_label", ("a", "b", "c"), sign.strip() or None)


def test_words_that_may_be_names_or_tags_are_asked_about(tmp_path: Path) -> None:
    labelled(tmp_path, ["red fox", "red deer", "grey seal"] * 4, "id,label\nt0,red fox\nt1,red deer\n")
    assert discover(tmp_path).task is None
    assert "TODO are its cells whole names" in draft(tmp_path, name="pets", source=LOCAL)


@pytest.mark.parametrize(
    ("column", "target"),
    [("abnormal", "abnormal"), ("Abnormal", "abnormal"), ("normal", "normal"), ("label", "TODO"), ("target", "TODO")],
)
def test_a_probability_of_one_class_is_that_of_the_column_s_name_or_asked_about(
    tmp_path: Path, column: str, target: str
) -> None:
    """The trial positive-class-column."""
    labelled(tmp_path, ["abnormal", "normal"] * 5, f"id,{column}\nt0,0.5\nt1,0.5\n")
    assert discover(tmp_path).format_params == {"target": target}
    assert ("TODO whose probability" in draft(tmp_path, name="pets", source=LOCAL)) == (target == "TODO")


def test_images_of_a_table_are_found_in_all_their_folders(tmp_path: Path) -> None:
    """The trial images-two-folders."""
    labelled(tmp_path, ["x", "y"] * 10, "id,x,y\nt0,0.5,0.5\nt1,0.5,0.5\n", places="train_part_1 train_part_2")
    images = discover(tmp_path).train
    assert images is not None
    assert (images.folder, images.suffix) == ("train_part_*", ".jpg")
    assert discover(tmp_path).test is not None


def test_images_of_a_table_are_found_in_folders_of_classes(tmp_path: Path) -> None:
    labelled(tmp_path, ["x", "y"] * 10, "id,x,y\nt0,0.5,0.5\nt1,0.5,0.5\n", places="train/x train/y")
    images = discover(tmp_path).train
    assert images is not None
    assert (images.folder, images.suffix) == ("train/**", ".jpg")


@pytest.mark.parametrize(
    ("files", "train", "test"),
    [
        ("train/f/1.jpg train/s/2.jpg test/f/3.jpg test/s/4.jpg", "train", "test"),
        ("seg_train/seg_train/f/1.jpg seg_train/seg_train/s/2.jpg seg_test/seg_test/f/3.jpg seg_test/seg_test/s/4.jpg",
         "seg_train/seg_train", "seg_test/seg_test"),
        ("contest/train/f/1.jpg contest/train/s/2.jpg contest/test/f/3.jpg contest/test/s/3.jpg", "contest/train",
         "contest/test"),
        ("train/f/1.jpg train/s/2.jpg test/unknown/3.jpg test/unknown/4.jpg", "train", "test/unknown"),
        ("contest/train/f/1.jpg contest/train/s/2.jpg", "contest/train", None),
    ],
)  # fmt: skip
def test_a_test_tree_is_the_whole_tree(tmp_path: Path, files: str, train: str, test: str | None) -> None:
    """The trial test-tree-by-class."""
    write(tmp_path, files=files)
    facts = discover(tmp_path)
    assert facts.train is not None
    assert facts.train.folder == train
    assert (facts.test.folder if facts.test else None) == test
    text = draft(tmp_path, name="pets", source=LOCAL)
    assert ("named like the classes" in text) == ("f/3.jpg" in files)


def test_own_data_without_a_sample_needs_no_more(tmp_path: Path) -> None:
    """The trial own-data-no-sample."""
    write(tmp_path, (24, 24), files="train/f/1.png train/s/2.png test/3.png")
    text = draft(tmp_path, name="pets", source=LOCAL)
    assert text.count("TODO") == 1  # the first line says what to look for
    content = parse_yaml(text, name="pets.yaml")
    assert isinstance(content, dict)
    assert (content["metric"], content["submission"]) == ("accuracy", {"format": "label"})
    kaggle = draft(tmp_path, name="pets", source={"name": "kaggle", "slug": "pets"})
    assert "sample: TODO" in kaggle


def test_separators_words_for_unknown_and_packed_tables_are_understood(tmp_path: Path) -> None:
    """The trials csv-semicolon and nan-text-target."""
    labelled(tmp_path, [f"{20 + row * 1.5:g}" if row != 3 else "NaN" for row in range(20)], "id,age\nt0,0\nt1,0\n",
             header="age")  # fmt: skip
    assert (discover(tmp_path).task, discover(tmp_path).format) == ("regression", "value")
    text = (tmp_path / "train.csv").read_text().replace(",", ";").replace(".", ",")
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(text.encode()))
    facts = discover(tmp_path)
    assert (facts.train_csv, facts.id, facts.target, facts.task) == ("train.csv.gz", "id", ("age",), "regression")


def test_archives_in_place_of_images_are_named(tmp_path: Path) -> None:
    write(tmp_path, train="id,label\na,x\nb,y\n")
    (tmp_path / "train.zip").write_bytes(b"PK")
    assert "TODO unpack what holds images" in draft(tmp_path, name="pets", source=LOCAL)


@pytest.mark.parametrize(("rows", "rate"), [(40, 5e-4), (400, "find")])
def test_few_rows_get_a_plain_rate(tmp_path: Path, rows: int, rate: Any) -> None:
    lines = "".join(f"{row},{'ab'[row % 2]}\n" for row in range(rows))
    write(tmp_path, (20, 20), train=f"id,label\n{lines}", files="train/0.jpg train/1.jpg test/c.jpg")
    assert validated(tmp_path).stages["all"].lr == rate
