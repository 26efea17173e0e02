from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from kbench import registry
from kbench.errors import DataError, SourceError
from kbench.sources import Source
from kbench.sources.local import local


def quiet(what: str, done: int, total: int) -> None:
    pass


def fetch(source: Source, target: Path, *, only: tuple[str, ...] = (), force: bool = False) -> tuple[int, int, int]:
    done = source.fetch(target, files=only, force=force, progress=quiet)
    return done.files, done.bytes, done.new


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.png").write_bytes(b"123")
    (folder / "train.csv").write_text("id,label\na,x\n")
    return folder


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    path = tmp_path / "mine.zip"
    with zipfile.ZipFile(path, "w") as handle:
        handle.writestr("train/a.png", b"123")
        handle.writestr("train.csv", "id,label\na,x\n")
    return path


def test_a_folder_is_used_where_it_is(mine: Path, tmp_path: Path) -> None:
    target = tmp_path / "data" / "pets"
    assert fetch(local(path="mine", _root=tmp_path), target) == (2, 16, 0)
    assert target.is_symlink()
    assert target.resolve() == mine
    assert fetch(local(path="mine", _root=tmp_path), target) == (2, 16, 0)


def test_a_link_follows_the_yaml(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    target = tmp_path / "data" / "pets"
    fetch(local(path="mine", _root=tmp_path), target)
    fetch(local(path="other", _root=tmp_path), target)
    assert target.resolve() == tmp_path / "other"
    assert (mine / "train.csv").is_file()


def test_a_folder_that_is_the_data_folder_needs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "data" / "pets"
    target.mkdir(parents=True)
    (target / "train.csv").write_text("id\n")
    assert fetch(local(path="data/pets", _root=tmp_path), target) == (1, 3, 0)
    assert fetch(local(path="data/pets", copy=True, _root=tmp_path), target) == (1, 3, 0)
    assert not target.is_symlink()


def test_a_link_never_takes_the_place_of_files(mine: Path, tmp_path: Path) -> None:
    target = tmp_path / "data" / "pets"
    target.mkdir(parents=True)
    (target / "precious").write_text("1")
    with pytest.raises(SourceError, match="is there already and is no link"):
        fetch(local(path="mine", _root=tmp_path), target, force=True)
    assert (target / "precious").is_file()


@pytest.mark.parametrize("copy", [False, True])
def test_a_folder_around_the_data_folder_is_refused(tmp_path: Path, copy: bool) -> None:
    with pytest.raises(SourceError, match="has the data folder"):
        fetch(local(path=".", copy=copy, _root=tmp_path), tmp_path / "data" / "pets")


def test_copy_makes_real_files_and_does_it_once(mine: Path, tmp_path: Path) -> None:
    source, target = local(path="mine", copy=True, _root=tmp_path), tmp_path / "data" / "pets"
    assert fetch(source, target) == (2, 16, 2)
    assert not target.is_symlink()
    (mine / "train" / "a.png").write_bytes(b"456")
    assert fetch(source, target) == (2, 16, 0)
    assert (target / "train" / "a.png").read_bytes() == b"123"


def test_a_zip_is_unpacked_once(zipped: Path, tmp_path: Path) -> None:
    source, target = local(path="mine.zip", _root=tmp_path), tmp_path / "data" / "pets"
    assert fetch(source, target) == (2, 16, 2)
    assert (target / "train" / "a.png").read_bytes() == b"123"
    (target / "train" / "more.png").write_bytes(b"1")
    (target / "train.csv").write_text("corrected")
    assert fetch(source, target) == (2, 16, 0)
    assert (target / "train.csv").read_text() == "corrected"


def test_a_missing_file_is_unpacked_again(zipped: Path, tmp_path: Path) -> None:
    source, target = local(path="mine.zip", _root=tmp_path), tmp_path / "data" / "pets"
    fetch(source, target)
    (target / "train" / "a.png").unlink()
    assert fetch(source, target) == (2, 16, 1)


def test_force_unpacks_over_what_was_changed(zipped: Path, tmp_path: Path) -> None:
    source, target = local(path="mine.zip", _root=tmp_path), tmp_path / "data" / "pets"
    fetch(source, target)
    (target / "train.csv").write_text("changed")
    (target / "mine.txt").write_text("mine")
    assert fetch(source, target, force=True) == (2, 16, 1)
    assert (target / "train.csv").read_text() == "id,label\na,x\n"
    assert (target / "mine.txt").read_text() == "mine"


def test_another_zip_does_not_overwrite_the_files_of_the_first(zipped: Path, tmp_path: Path) -> None:
    target = tmp_path / "data" / "pets"
    fetch(local(path="mine.zip", _root=tmp_path), target)
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as handle:
        handle.writestr("train.csv", "id,label\nb,y\n")
    with pytest.raises(DataError, match="differ"):
        fetch(local(path="new.zip", _root=tmp_path), target)
    assert (target / "train.csv").read_text() == "id,label\na,x\n"


def test_a_zip_replaces_a_link_and_not_what_it_points_to(mine: Path, zipped: Path, tmp_path: Path) -> None:
    target = tmp_path / "data" / "pets"
    fetch(local(path="mine", _root=tmp_path), target)
    fetch(local(path="mine.zip", _root=tmp_path), target)
    assert not target.is_symlink()
    assert sorted(path.name for path in mine.iterdir()) == ["train", "train.csv"]


def test_chosen_files_alone_are_unpacked_and_the_rest_later(zipped: Path, tmp_path: Path) -> None:
    source, target = local(path="mine.zip", _root=tmp_path), tmp_path / "data" / "pets"
    assert fetch(source, target, only=("*.csv",)) == (1, 13, 1)
    assert fetch(source, target) == (2, 16, 1)


def test_a_folder_in_place_cannot_be_fetched_in_part(mine: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="used where it is"):
        fetch(local(path="mine", _root=tmp_path), tmp_path / "data", only=("train.csv",))


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"'.*/nowhere\.zip' does not exist"):
        fetch(local(path="nowhere.zip", _root=tmp_path), tmp_path / "data")


def test_home_and_absolute_paths_are_understood(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    elsewhere = tmp_path / "workspace"
    for number, path in enumerate(("~/mine", str(mine), "../mine")):
        target = tmp_path / f"data{number}"
        fetch(local(path=path, _root=elsewhere), target)
        assert target.resolve() == mine


def test_the_solution_is_relative_to_the_workspace(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "solution.csv").write_text("id,label\n")
    source = local(path="mine", solution="solution.csv", _root=tmp_path)
    assert source.solution(tmp_path / "data") == tmp_path / "solution.csv"
    assert local(path="mine", _root=tmp_path).solution(tmp_path / "data") is None


def test_a_solution_that_does_not_exist_is_an_error(mine: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"solution file .*none\.csv' does not exist"):
        local(path="mine", solution="none.csv", _root=tmp_path).solution(tmp_path)


def test_sending_says_how_to_grade_instead(mine: Path, tmp_path: Path) -> None:
    source = local(path="mine", _root=tmp_path)
    with pytest.raises(SourceError, match=r"solution: FILE\.csv"):
        source.upload(tmp_path / "mine.csv", quiet)
    with pytest.raises(SourceError):
        source.status("1")


def test_the_registry_passes_the_workspace(mine: Path, tmp_path: Path) -> None:
    source = registry.build("source", "local", {"path": "mine"}, _root=tmp_path)
    fetch(source, tmp_path / "data" / "pets")
    assert (tmp_path / "data" / "pets").resolve() == mine


def test_a_yaml_must_name_a_path() -> None:
    problems = registry.bind("source", "local", {"solution": 3}, where="source")
    assert {problem.where for problem in problems} == {"source.path", "source.solution"}
