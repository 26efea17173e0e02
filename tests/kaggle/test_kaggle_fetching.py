from __future__ import annotations

import io
import os
import zipfile

import pytest
from standin import Fault

from kbench.errors import ConfigError, DataError, KbenchError, ServiceError, SourceError
from kbench.sources import Fetched
from kbench.sources.kaggle.client import kaggle
from kbench.sources.service.fetch import _checked_names
from kbench.sources.service.manifest import Manifest
from kbench.sources.service.protocol import DataFile


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def tree(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and ".download" not in path.parts
    )


def test_the_bundle_is_unpacked_with_the_zips_inside_it(standin, fetch, tmp_path):
    standin.files = {"train.zip": zipped(train__1=b"x"), "labels.csv.zip": zipped(**{"labels.csv": b"id"})}
    standin.zip()
    assert fetch() == Fetched(files=2, bytes=3, new=2)
    assert tree(tmp_path / "data") == ["labels.csv", "train/1"]


def test_zips_inside_stay_zips_when_asked(standin, clock, tmp_path):
    standin.files = {"train.zip": zipped(a=b"x")}
    standin.zip()
    source = kaggle(slug=standin.slug, nested=False, _sleep=clock.sleep, _mounted=tmp_path / "input")
    source.fetch(tmp_path / "data", files=[], force=False, progress=lambda *_: None)
    assert tree(tmp_path / "data") == ["train.zip"]


def test_a_zip_asked_for_is_unpacked_where_the_bundle_would_have_it(standin, fetch, tmp_path):
    standin.files["deep/train.zip"] = zipped(train__1=b"x", train__2=b"y")
    standin.files["test.zip"] = zipped(a=b"x")
    standin.files["large.bin"] = bytes(9_000_000)
    fetch("*.zip")
    assert tree(tmp_path / "data") == ["deep/train/1", "deep/train/2", "test/a"]


def test_nothing_is_left_over_after_a_fetch(fetch, tmp_path):
    fetch()
    assert sorted(os.listdir(tmp_path / "data/.download")) == [".tmp-new.lock", "lock", "manifest.json", "manifest.txt"]


def test_what_is_recorded_is_not_fetched_again(standin, fetch):
    first = fetch()
    asked = len(standin.seen)
    assert fetch() == Fetched(first.files, first.bytes, new=0)
    assert fetch("train.csv").new == 0
    assert len(standin.seen) == asked


def test_a_missing_file_is_fetched_again(standin, fetch, tmp_path):
    fetch()
    (tmp_path / "data/train.csv").unlink()
    assert fetch().new == 1
    assert (tmp_path / "data/train.csv").read_bytes() == standin.files["train.csv"]


@pytest.mark.parametrize("content", [b"id,label\nz,9\n" + b"b,1\n" * 99, b"short"], ids=["same size", "other size"])
def test_a_file_changed_by_the_user_is_neither_trusted_nor_overwritten(content, standin, fetch, tmp_path):
    standin.files["train.csv"] = b"id,label\na,0\n" + b"b,1\n" * 99
    standin.zip()
    fetch()
    (tmp_path / "data/train.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"'train\.csv'"):
        fetch()
    assert (tmp_path / "data/train.csv").read_bytes() == content


def test_a_copied_folder_still_counts(standin, fetch, tmp_path):
    fetch()
    os.utime(tmp_path / "data/train.csv", ns=(1, 1))
    asked = len(standin.seen)
    assert fetch().new == 0
    assert len(standin.seen) == asked


def test_force_fetches_anew_and_overwrites(standin, fetch, tmp_path):
    fetch()
    (tmp_path / "data/train.csv").write_bytes(b"mine")
    fetch(force=True)
    assert (tmp_path / "data/train.csv").read_bytes() == standin.files["train.csv"]
    assert len(standin.calls("DownloadDataFiles")) == 2


def test_a_file_of_the_users_own_is_not_overwritten_and_the_download_not_lost(standin, fetch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.csv").write_bytes(b"mine")
    for _ in range(2):
        with pytest.raises(DataError, match=r"train\.csv"):
            fetch()
    assert (tmp_path / "data/train.csv").read_bytes() == b"mine"
    assert len(standin.calls("DownloadDataFiles")) == 1
    assert fetch(force=True).new == 2
    assert len(standin.calls("DownloadDataFiles")) == 1
    assert (tmp_path / "data/train.csv").read_bytes() == standin.files["train.csv"]


def test_files_the_user_had_already_are_kept_and_recorded_as_they_are(standin, fetch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.csv").write_bytes(standin.files["train.csv"])
    os.utime(tmp_path / "data/train.csv", ns=(1, 1))
    assert fetch().new == 1
    assert {row.name: row.mtime for row in Manifest(tmp_path / "data").rows()}["train.csv"] == 1


def test_files_the_user_added_stay_and_do_not_count(standin, fetch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/notes.txt").write_bytes(b"mine")
    assert fetch().files == 2
    (tmp_path / "data/notes.txt").write_bytes(b"changed")
    assert fetch().new == 0


@pytest.mark.parametrize("stage", ["download tiny-images.zip", "unpack tiny-images.zip", "checksums"])
def test_a_fetch_killed_anywhere_is_finished_without_a_second_download(stage, standin, source, fetch, tmp_path):
    def killed(what, done, total):
        if what == stage and done >= total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.fetch(tmp_path / "data", files=[], force=False, progress=killed)
    assert fetch().files == 2
    assert tree(tmp_path / "data") == ["images/a.png", "train.csv"]
    assert len(standin.calls("GET")) == 1


def test_files_asked_for_are_fetched_one_by_one_and_added_up(standin, fetch, tmp_path):
    standin.files["large.bin"] = bytes(9_000_000)
    assert fetch("train.csv") == Fetched(1, len(standin.files["train.csv"]), new=1)
    assert fetch("images/*").files == 2
    assert fetch("train.csv").new == 0
    assert len(standin.calls("DownloadDataFile")) == 2
    assert not standin.calls("DownloadDataFiles")


def test_many_small_files_come_faster_in_the_bundle(standin, fetch, tmp_path):
    standin.files |= {f"images/{number}.png": b"x" for number in range(5)}
    standin.zip()
    assert fetch("images/*").files == 6
    assert len(standin.calls("DownloadDataFiles")) == 1
    assert not standin.calls("DownloadDataFile")
    assert tree(tmp_path / "data")[0].startswith("images/")


def test_brackets_in_a_name_are_not_taken_for_a_pattern(standin, fetch, tmp_path):
    standin.files |= {"a[1].csv": b"bracket", "a1.csv": b"plain"}
    standin.zip()
    fetch("a[1].csv", "train.csv")
    assert len(standin.calls("DownloadDataFiles")) == 1
    assert tree(tmp_path / "data") == ["a[1].csv", "train.csv"]


def test_a_pattern_that_matches_nothing_names_the_nearest_file(fetch):
    with pytest.raises(SourceError, match=r"did you mean 'train\.csv'"):
        fetch("trian.csv")


def test_the_listing_is_read_to_its_end_past_an_empty_page(standin, source):
    standin.files |= {f"{number}.bin": b"" for number in range(5)}
    standin.empty_page = True
    assert [file.name for file in source.files()] == list(standin.files)


def test_pages_that_go_round_in_a_circle_end(standin, source):
    page = {"files": [{"name": "a"}], "nextPageToken": "1"}
    standin.plan("ListDataFiles", *[Fault(200, page, {"Content-Type": "application/json"}) for _ in range(9)])
    with pytest.raises(ServiceError, match="circle"):
        source.files()


@pytest.mark.parametrize(
    "name", ["../out.csv", "/etc/x.csv", "a/../../x.csv", "a\\b.csv", "a\nb.csv", ".download/lock"]
)
def test_a_name_that_leads_outside_is_refused(name, standin, fetch, tmp_path):
    standin.files = {name: b"x"}
    with pytest.raises(ServiceError, match="lists a file named"):
        fetch("*")
    assert not list(tmp_path.rglob("*.csv"))


def test_two_names_that_are_one_file_to_a_file_system_are_refused(standin, fetch):
    standin.files = {"\u00e9.csv": b"x", "e\u0301.csv": b"y", "large.bin": bytes(9_000_000)}
    with pytest.raises(ServiceError, match="would be one file here"):
        fetch("*.csv")


def test_names_that_differ_by_case_are_two_files_where_the_disk_says_so(standin, fetch, tmp_path):
    standin.files = {"A.csv": b"x", "a.csv": b"y", "B/c.csv": b"z", "large.bin": bytes(9_000_000)}
    (tmp_path / "probe").touch()
    if (tmp_path / "PROBE").exists():
        with pytest.raises(ServiceError, match=r"'A\.csv' and 'a\.csv'"):
            fetch("*.csv")
    else:
        assert fetch("*.csv").files == 3
        assert (tmp_path / "data/A.csv").read_bytes() == b"x"
        assert (tmp_path / "data/a.csv").read_bytes() == b"y"
    with pytest.raises(ServiceError, match=r"'A\.csv' and 'a\.csv'"):
        _checked_names([DataFile(name, 1) for name in standin.files], one_case=True)


def test_a_damaged_bundle_nobody_vouched_for_is_fetched_anew(standin, fetch):
    good = standin.bundle
    standin.hidden = {"x-goog-hash"}
    standin.bundle = good[: len(good) // 2]
    with pytest.raises(DataError, match="damaged"):
        fetch()
    standin.bundle = good
    assert fetch().files == 2


def test_two_downloads_at_once_are_told_apart(source, fetch, tmp_path):
    def meanwhile(what, done, total):
        with pytest.raises(KbenchError, match="another kbench process"):
            fetch()

    source.fetch(tmp_path / "data", files=[], force=False, progress=meanwhile)


def test_a_data_folder_that_is_a_link_is_followed(standin, fetch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "elsewhere")
    fetch()
    assert (tmp_path / "elsewhere/train.csv").exists()
    assert (tmp_path / "data").is_symlink()


@pytest.mark.parametrize("place", ["input/tiny-images", "input/competitions/tiny-images"])
def test_inside_a_kaggle_notebook_the_data_is_used_in_place(place, standin, fetch, tmp_path):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "train.csv").write_bytes(b"id")
    for _ in range(2):
        assert fetch() == Fetched(files=1, bytes=2, new=0)
    assert (tmp_path / "data").resolve() == tmp_path / place
    assert not standin.seen


def test_inside_a_kaggle_notebook_data_that_is_there_is_not_touched(fetch, tmp_path):
    (tmp_path / "input/tiny-images").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine").write_bytes(b"x")
    with pytest.raises(SourceError, match="in the way"):
        fetch()
    assert (tmp_path / "data/mine").exists()


@pytest.mark.parametrize(
    "text",
    [
        "tiny-images",
        "https://www.kaggle.com/competitions/tiny-images",
        "https://www.kaggle.com/competitions/tiny-images/data?select=train.csv",
        "http://kaggle.com/c/tiny-images/overview/evaluation",
        "www.kaggle.com/c/tiny-images/",
        "competitions/tiny-images",
        " Tiny-Images ",
    ],
)
def test_an_address_pasted_for_a_slug_is_understood(text):
    assert kaggle(slug=text).slug == "tiny-images"


@pytest.mark.parametrize(
    "text", ["", "two words", "https://www.kaggle.com/datasets/a/b", "https://example.com/c/x", "a_b", "../x"]
)
def test_what_names_no_competition_is_refused(text):
    with pytest.raises(ConfigError, match="names no Kaggle competition"):
        kaggle(slug=text)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "http://10.0.0.1:80",
        "http://127.0.0.1.example.com:80",
        "http://user@127.0.0.1:80",
        "https://127.0.0.1:443",
        "http://127.0.0.1",
        "127.0.0.1:80",
        "http://[::1:80",
    ],
)
def test_the_endpoint_can_only_be_moved_to_this_machine(url, source, monkeypatch):
    monkeypatch.setenv("KBENCH_KAGGLE_URL", url)
    with pytest.raises(ConfigError, match="KBENCH_KAGGLE_URL"):
        source.about()


def test_without_a_stand_in_the_client_fails_closed(source, monkeypatch, isolated):
    monkeypatch.delenv("KBENCH_KAGGLE_URL")
    with pytest.raises(ServiceError) as caught:
        source.about()
    assert caught.value.kind == "network"
    assert set(isolated) <= {"127.0.0.1", "::1"}
