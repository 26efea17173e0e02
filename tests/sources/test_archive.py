from __future__ import annotations

import os
import random
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from forged_zips import Entry, forge
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from kbench import files, sources
from kbench.errors import DataError, KbenchError
from kbench.sources import archive
from kbench.sources.names import tells_case


def quiet(what: str, done: int, total: int) -> None:
    pass


def unpack(zipped: Path, target: Path, **options: object) -> sources.Fetched:
    return archive.unpack(zipped, target, progress=quiet, **options)  # type: ignore[arg-type]


def make_zip(path: Path, contents: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as handle:
        for name, content in contents.items():
            handle.writestr(name, content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_refused(zipped: Path, *words: str, target: Path | None = None) -> None:
    """The archive is refused in three parts and neither the target nor anything around it has changed."""
    target = target or zipped.parent / "box" / "target"
    target.parent.mkdir(exist_ok=True)
    before = tree(zipped.parent)
    with pytest.raises(DataError) as caught:
        unpack(zipped, target)
    assert caught.value.expected
    assert caught.value.todo
    for word in words:
        assert word in str(caught.value)
    after = {name: content for name, content in tree(zipped.parent).items() if not name.endswith(".lock")}
    assert after == before
    assert not target.exists()


def test_files_arrive_as_they_were_zipped(tmp_path: Path) -> None:
    contents = {"train.csv": b"id,label\n", "train/a.png": os.urandom(70_000), "train/empty.txt": b"", "ü/é.txt": b"x"}
    done = unpack(make_zip(tmp_path / "all.zip", contents), tmp_path / "data" / "digits")
    assert tree(tmp_path / "data" / "digits") == contents
    assert (done.files, done.bytes, done.new) == (4, sum(map(len, contents.values())), 4)


def test_nothing_but_the_target_and_its_lock_is_left_beside_it(tmp_path: Path) -> None:
    unpack(make_zip(tmp_path / "all.zip", {"a": b"1"}), tmp_path / "data" / "digits")
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"digits", ".tmp-digits.lock"}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_every_common_compression_is_read(tmp_path: Path, method: int) -> None:
    contents = {"big": random.Random(0).randbytes(3_000_000) + b"0" * 3_000_000, "small": b"x"}
    unpack(make_zip(tmp_path / "all.zip", contents, method), tmp_path / "out")
    assert tree(tmp_path / "out") == contents


def test_lzma_members_are_refused_by_their_method(tmp_path: Path) -> None:
    assert_refused(make_zip(tmp_path / "all.zip", {"a": b"1"}, zipfile.ZIP_LZMA), "compression method 14", "7-Zip")


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/evil",
        "..\\evil",
        "a\\..\\..\\evil",
        "C:/evil",
        "C:\\evil",
        "..",
        "a/..",
        "\\\\host\\x",
    ],
)
def test_paths_that_leave_the_target_are_refused(tmp_path: Path, name: str) -> None:
    assert_refused(forge(tmp_path / "slip.zip", [Entry("good"), Entry(name)]), "outside the target")


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "\x1b[2J"])
def test_names_with_control_characters_are_refused(tmp_path: Path, name: str) -> None:
    assert_refused(forge(tmp_path / "odd.zip", [Entry(name)]), "control characters")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_special_files_are_refused(tmp_path: Path, kind: int) -> None:
    entries = [Entry("train", b"/etc", mode=kind | 0o777), Entry("train/passwd")]
    assert_refused(forge(tmp_path / "link.zip", entries), "'train'", "link or a special file")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a/x.png", "a/x.png"),
        ("a/x.png", "a//./x.png"),
        ("é", "e\u0301"),
        ("a", "a/b"),
    ],
)
def test_names_that_would_meet_on_some_disk_are_refused(tmp_path: Path, first: str, second: str) -> None:
    assert_refused(forge(tmp_path / "twice.zip", [Entry(first), Entry("other"), Entry(second)]), "one place")


@pytest.mark.parametrize(("first", "second"), [("a/x.png", "a/X.PNG"), ("A/b", "a"), ("É", "é")])
def test_names_that_differ_by_case_are_two_files_where_the_disk_says_so(
    tmp_path: Path, first: str, second: str
) -> None:
    zipped = make_zip(
        tmp_path / "case.zip", {first: b"1", "inner.zip": zipped_bytes(tmp_path, {second: b"3"}), second: b"2"}
    )
    (tmp_path / "probe").touch()
    two_files = not (tmp_path / "PROBE").exists()
    assert tells_case(tmp_path) == two_files
    if two_files:
        unpack(zipped, tmp_path / "out", nested=True)
        assert tree(tmp_path / "out") == {first: b"1", second: b"2", f"inner/{second}": b"3"}
    else:
        assert_refused(zipped, "one place")
    with archive.open_zip(zipped) as opened, pytest.raises(DataError, match="one place"):
        archive._check_listing(opened, one_case=True)


@pytest.mark.parametrize("flags", [0x1, 0x41, 0x2000])
def test_encrypted_archives_are_refused(tmp_path: Path, flags: int) -> None:
    assert_refused(forge(tmp_path / "secret.zip", [Entry("a", flags=flags)]), "encrypted", "password")


def test_a_member_longer_than_it_says_is_stopped(tmp_path: Path) -> None:
    bomb = forge(tmp_path / "bomb.zip", [Entry("a", b"0" * 50_000_000, size=1000)])
    assert_refused(bomb, "longer than the 1,000 bytes")


def test_no_byte_beyond_the_declared_size_is_handed_out(tmp_path: Path) -> None:
    bomb = forge(tmp_path / "bomb.zip", [Entry("a", b"0" * 50_000_000, size=1000)])
    seen: list[bytes] = []
    with archive.open_zip(bomb) as opened:
        (member,) = archive.members(opened)
        with pytest.raises(DataError):
            seen.extend(archive.content(opened, member))
    assert sum(map(len, seen)) <= 1000


BOMB = """
import bz2, resource, sys
from pathlib import Path
from kbench.sources import archive
from kbench.sources.names import tells_case
with archive.open_zip(Path(sys.argv[1])) as opened:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = sum(len(chunk) for member in archive.members(opened) for chunk in archive.content(opened, member))
print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_member_of_any_size_is_unpacked_in_bounded_memory(tmp_path: Path, method: int) -> None:
    zipped, size = tmp_path / "all.zip", 150_000_000
    with zipfile.ZipFile(zipped, "w", method) as handle, handle.open("zeros", "w") as member:
        for _ in range(size // 1_000_000):
            member.write(bytes(1_000_000))
    done = subprocess.run([sys.executable, "-c", BOMB, zipped], cwd=ROOT, capture_output=True, text=True, check=True)
    total, grown = map(int, done.stdout.split())
    assert total == size
    assert grown < 60_000, "kilobytes"


def test_a_member_shorter_than_it_says_is_refused(tmp_path: Path) -> None:
    assert_refused(forge(tmp_path / "short.zip", [Entry("a", b"12", size=3)]), "shorter")


def test_what_does_not_fit_on_the_disk_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    huge = forge(tmp_path / "huge.zip", [Entry("a", b"0" * 100, size=1 << 60)])
    assert_refused(huge, "GB are free", "KBENCH_DATA")


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    entries = [Entry("a", os.urandom(1000)), *(Entry(f"b{n}", b"", packed=1000, offset=0) for n in range(50))]
    assert_refused(forge(tmp_path / "quine.zip", entries), "share bytes")


def test_a_member_outside_the_file_is_refused(tmp_path: Path) -> None:
    assert_refused(forge(tmp_path / "far.zip", [Entry("a"), Entry("b", offset=1 << 30)]), "past its end")


def test_a_wrong_checksum_is_found(tmp_path: Path) -> None:
    assert_refused(forge(tmp_path / "flip.zip", [Entry("good"), Entry("bad", crc=7)]), "'bad'", "checksum")


@pytest.mark.parametrize("method", [0, 8])
def test_a_flipped_bit_is_found(tmp_path: Path, method: int) -> None:
    zipped = forge(tmp_path / "flip.zip", [Entry("a", os.urandom(5000), method=method)])
    content = bytearray(zipped.read_bytes())
    content[2000] ^= 4
    zipped.write_bytes(content)
    assert_refused(zipped, "damaged")


@pytest.mark.parametrize("keep", [0, 1, 10, 21, 500, -1, -22, -30])
def test_a_truncated_archive_is_refused(tmp_path: Path, keep: int) -> None:
    zipped = make_zip(tmp_path / "cut.zip", {f"{n}": os.urandom(100) for n in range(20)})
    zipped.write_bytes(zipped.read_bytes()[:keep])
    assert_refused(zipped, "damaged")


def test_a_cut_off_archive_with_a_whole_zip_inside_is_not_taken_for_that_zip(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"secret": b"1"}).read_bytes()
    outer = make_zip(tmp_path / "outer.zip", {"inner.zip": inner, "z": b"2" * 99}, zipfile.ZIP_STORED)
    outer.write_bytes(outer.read_bytes()[: outer.read_bytes().rfind(b"PK\x01\x02")])
    assert_refused(outer, "damaged")


@pytest.mark.parametrize("count", [0, 1, 3, 40_000])
def test_a_listing_of_another_length_is_refused(tmp_path: Path, count: int) -> None:
    assert_refused(forge(tmp_path / "count.zip", [Entry("a"), Entry("b")], count=count), "listing")


def test_one_part_of_a_split_archive_is_named(tmp_path: Path) -> None:
    zipped = make_zip(tmp_path / "all.zip", {"a": b"1"})
    content = bytearray(zipped.read_bytes())
    content[-18:-16] = b"\x02\x00"  # the number of this disk
    zipped.write_bytes(content)
    assert_refused(zipped, "part of a split zip", "join the parts")


def test_a_comment_belongs_to_the_archive_and_anything_after_it_does_not(tmp_path: Path) -> None:
    zipped = make_zip(tmp_path / "all.zip", {"a": b"1"})
    with zipfile.ZipFile(zipped, "a") as handle:
        handle.comment = b"made by hand"
    unpack(zipped, tmp_path / "out")
    assert tree(tmp_path / "out") == {"a": b"1"}
    zipped.write_bytes(zipped.read_bytes() + b"\n")
    with pytest.raises(DataError, match="damaged"):
        unpack(zipped, tmp_path / "again")


def test_a_file_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.zip"
    page.write_text("<html>sign in</html>" * 100)
    assert_refused(page, "no zip")


@pytest.mark.parametrize("suffix", [".7z", ".tar.gz", ".rar"])
def test_other_archives_are_named(tmp_path: Path, suffix: str) -> None:
    other = tmp_path / f"data{suffix}"
    other.write_bytes(b"7z")
    assert_refused(other, "is no zip", "own program")


def test_a_missing_archive_is_a_kbench_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read '.*none\.zip'"):
        unpack(tmp_path / "none.zip", tmp_path / "out")


def test_zip64_records_are_read(tmp_path: Path) -> None:
    unpack(forge(tmp_path / "wide.zip", [Entry("a", b"1"), Entry("b", b"2")], wide=True), tmp_path / "out")
    assert tree(tmp_path / "out") == {"a": b"1", "b": b"2"}


@pytest.mark.slow
def test_more_members_than_16_bits_count_are_read(tmp_path: Path) -> None:
    zipped = make_zip(tmp_path / "many.zip", {f"{n % 10}/{n}": b"" for n in range(66_000)})
    with archive.open_zip(zipped) as opened:
        assert len({member.name for member in archive.members(opened)}) == 66_000


def test_bytes_before_the_first_member_are_skipped(tmp_path: Path) -> None:
    unpack(forge(tmp_path / "sfx.zip", [Entry("a", b"1")], prefix=b"#!/bin/sh\n"), tmp_path / "out")
    assert tree(tmp_path / "out") == {"a": b"1"}


def test_what_macos_adds_is_left_out(tmp_path: Path) -> None:
    contents = {"a.png": b"1", "__MACOSX/._a.png": b"2", "x/.DS_Store": b"3"}
    unpack(make_zip(tmp_path / "mac.zip", contents), tmp_path / "out")
    assert tree(tmp_path / "out") == {"a.png": b"1"}


def test_names_in_a_dos_code_page_are_read(tmp_path: Path) -> None:
    unpack(forge(tmp_path / "dos.zip", [Entry("ü.txt".encode("cp437"))]), tmp_path / "out")
    assert list(tree(tmp_path / "out")) == ["ü.txt"]


def test_permissions_of_the_archive_are_not_taken_over(tmp_path: Path) -> None:
    unpack(forge(tmp_path / "suid.zip", [Entry("a", mode=stat.S_IFREG | 0o6777)]), tmp_path / "out")
    assert not (tmp_path / "out" / "a").stat().st_mode & 0o7111


def test_files_that_are_there_stay(tmp_path: Path) -> None:
    target = tmp_path / "out"
    (target / "train").mkdir(parents=True)
    (target / "train" / "mine.txt").write_bytes(b"mine")
    (target / "train" / "a").write_bytes(b"1")
    done = unpack(make_zip(tmp_path / "all.zip", {"train/a": b"1", "train/b": b"2", "c": b"3"}), target)
    assert tree(target) == {"train/mine.txt": b"mine", "train/a": b"1", "train/b": b"2", "c": b"3"}
    assert done.new == 2


def test_a_file_with_other_content_is_never_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "z").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"'z' in .* differ .*\(1 in all\)"):
        unpack(make_zip(tmp_path / "all.zip", {"a": b"1", "z": b"same"}), target)
    assert tree(target) == {"z": b"mine"}


def test_replace_overwrites_files_of_the_same_name_alone(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_bytes(b"old")
    (target / "mine").write_bytes(b"mine")
    done = unpack(make_zip(tmp_path / "all.zip", {"a": b"new", "b": b"1"}), target, replace=True)
    assert tree(target) == {"a": b"new", "b": b"1", "mine": b"mine"}
    assert done.new == 2


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_never_replaces_a_file_nor_a_file_a_folder(tmp_path: Path, replace: bool) -> None:
    target = tmp_path / "out"
    (target / "a").mkdir(parents=True)
    (target / "b").write_bytes(b"1")
    with pytest.raises(DataError, match="2 in all"):
        unpack(make_zip(tmp_path / "all.zip", {"a": b"1", "b/c": b"2"}), target, replace=replace)
    assert tree(target) == {"b": b"1"}


def test_nothing_is_written_through_a_link_in_the_target(tmp_path: Path) -> None:
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    target.mkdir()
    (target / "train").symlink_to(elsewhere)
    with pytest.raises(DataError, match="'train'"):
        unpack(make_zip(tmp_path / "all.zip", {"train/a": b"1"}), target, replace=True)
    assert tree(elsewhere) == {}


def test_a_target_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "mine")
    with pytest.raises(DataError, match="is a link"):
        unpack(make_zip(tmp_path / "all.zip", {"a": b"1"}), tmp_path / "out")
    assert tree(tmp_path / "mine") == {}


def test_only_the_files_asked_for_are_unpacked(tmp_path: Path) -> None:
    zipped = make_zip(tmp_path / "all.zip", {"train/a/1": b"1", "train.csv": b"2", "test/1": b"3"})
    done = unpack(zipped, tmp_path / "out", only=["train/*", "*.csv"])
    assert tree(tmp_path / "out") == {"train/a/1": b"1", "train.csv": b"2"}
    assert done.files == 2


def test_a_pattern_without_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file of .* is called 'tset/\*'"):
        unpack(make_zip(tmp_path / "all.zip", {"test/1": b"3"}), tmp_path / "out", only=["tset/*"])
    assert not (tmp_path / "out").exists()


def zipped_bytes(tmp_path: Path, contents: dict[str, bytes]) -> bytes:
    return make_zip(tmp_path / "part.zip", contents).read_bytes()


def test_zips_inside_take_their_place(tmp_path: Path) -> None:
    bundle = {
        "train.zip": zipped_bytes(tmp_path, {"train/a": b"1", "train/sub/b": b"2"}),
        "test.zip": zipped_bytes(tmp_path, {"a": b"3", "b": b"4"}),
        "deep/masks.zip": zipped_bytes(tmp_path, {"masks/a": b"5"}),
        "train.csv.zip": zipped_bytes(tmp_path, {"train.csv": b"6"}),
        "sample.csv": b"7",
    }
    done = unpack(make_zip(tmp_path / "all.zip", bundle), tmp_path / "out", nested=True)
    expected = {"train/a": b"1", "train/sub/b": b"2", "test/a": b"3", "test/b": b"4", "deep/masks/a": b"5"}
    assert tree(tmp_path / "out") == {**expected, "train.csv": b"6", "sample.csv": b"7"}
    assert done.files == 7


def test_zips_inside_stay_zips_unless_asked(tmp_path: Path) -> None:
    inner = zipped_bytes(tmp_path, {"a": b"1"})
    unpack(make_zip(tmp_path / "all.zip", {"train.zip": inner}), tmp_path / "out")
    assert tree(tmp_path / "out") == {"train.zip": inner}


def test_zips_inside_zips_end_somewhere(tmp_path: Path) -> None:
    content = zipped_bytes(tmp_path, {"a": b"1"})
    for _ in range(6):
        content = zipped_bytes(tmp_path, {"again.zip": content})
    (tmp_path / "all.zip").write_bytes(content)
    with pytest.raises(DataError, match="3 zips deep"):
        unpack(tmp_path / "all.zip", tmp_path / "out", nested=True)
    assert not (tmp_path / "out").exists()


def test_a_bad_zip_inside_leaves_nothing(tmp_path: Path) -> None:
    bad = forge(tmp_path / "bad.zip", [Entry("../../../evil")]).read_bytes()
    zipped = make_zip(tmp_path / "all.zip", {"train.zip": bad, "a": b"1"})
    with pytest.raises(DataError, match="outside the target"):
        unpack(zipped, tmp_path / "out", nested=True)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("evil"))


def test_two_zips_inside_that_hold_one_name_with_other_content_are_refused(tmp_path: Path) -> None:
    bundle = {"a.zip": zipped_bytes(tmp_path, {"a/x": b"1"}), "a/x": b"2"}
    with pytest.raises(DataError, match="differ"):
        unpack(make_zip(tmp_path / "all.zip", bundle), tmp_path / "out", nested=True)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_unpack_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    zipped = make_zip(tmp_path / "all.zip", {f"{n}": b"1" * 10_000 for n in range(600)})
    with pytest.raises(KeyboardInterrupt):
        archive.unpack(zipped, tmp_path / "data" / "out", progress=interrupt)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {".tmp-out.lock"}


KILLED = """
import os, signal, sys
from pathlib import Path
from kbench.sources.archive import unpack
def die(what, done, total):
    os.kill(os.getpid(), signal.SIGKILL)
unpack(Path(sys.argv[1]), Path(sys.argv[2]), progress=die)
"""


def test_after_a_kill_the_same_call_ends_with_the_same_files(tmp_path: Path) -> None:
    contents = {f"{n}": os.urandom(100) for n in range(600)}
    zipped, target = make_zip(tmp_path / "all.zip", contents), tmp_path / "data" / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, zipped, target], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    assert (tmp_path / "data" / ".tmp-out").exists()
    unpack(zipped, target)
    assert tree(target) == contents
    assert not (tmp_path / "data" / ".tmp-out").exists()


def test_a_failing_write_is_a_data_error_and_leaves_nothing(tmp_path: Path) -> None:
    zipped = make_zip(tmp_path / "all.zip", {"a": b"1", "big": os.urandom(200_000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot write"):
            unpack(zipped, tmp_path / "data" / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "data" / "out").exists()
    assert not (tmp_path / "data" / ".tmp-out").exists()


def test_progress_counts_bytes_up_to_the_whole(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    zipped = make_zip(tmp_path / "all.zip", {f"{n}": b"1" * 10_000 for n in range(1500)})
    archive.unpack(zipped, tmp_path / "out", progress=lambda *call: calls.append(call))
    assert calls[-1] == ("unpack all.zip", 15_000_000, 15_000_000)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert 3 <= len(calls) < 20


def test_a_copied_folder_is_the_folder(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    (source / "train").mkdir(parents=True)
    (source / "train" / "a.png").write_bytes(b"1")
    (source / "b.csv").write_bytes(b"2")
    (source / "again").symlink_to(source)
    done = archive.copy_folder(source, tmp_path / "out", progress=quiet)
    assert tree(tmp_path / "out") == {"train/a.png": b"1", "b.csv": b"2"}
    assert done.new == 2


def test_copied_files_overwrite_nothing(tmp_path: Path) -> None:
    for folder, content in (("mine", b"1"), ("out", b"2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(content)
    with pytest.raises(DataError, match="differ"):
        archive.copy_folder(tmp_path / "mine", tmp_path / "out", progress=quiet)
    assert tree(tmp_path / "out") == {"a": b"2"}


def test_disk_limits_are_known() -> None:
    assert files.free_bytes(Path("nowhere/at/all")) > 0
    free = files.free_files(Path("nowhere/at/all"))
    assert free is None or free > 0


names = st.lists(st.text("abcXYZ01 .-_é", min_size=1, max_size=8), min_size=1, max_size=3).map("/".join)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, st.binary(max_size=3000), max_size=8), st.sampled_from([0, 8, 12]))
def test_any_tree_comes_out_as_zipfile_would_unpack_it_or_is_refused(contents: dict[str, bytes], method: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        zipped = make_zip(Path(place) / "all.zip", contents, method)
        try:
            unpack(zipped, Path(place) / "ours")
        except DataError:
            assert any(_is_odd(name) for name in contents) or _meet(contents)
            return
        with zipfile.ZipFile(zipped) as handle:
            handle.extractall(Path(place) / "theirs")
        theirs = tree(Path(place) / "theirs") if contents else {}
        assert (tree(Path(place) / "ours") if contents else {}) == theirs


def _is_odd(name: str) -> bool:
    return ".." in name.split("/") or all(part in ("", ".") for part in name.split("/"))


def _meet(contents: dict[str, bytes]) -> bool:
    paths = ["/".join(part for part in name.casefold().split("/") if part != ".") for name in contents]
    return len(set(paths)) < len(paths) or any(one.startswith(f"{other}/") for one in paths for other in paths)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_gives_anything_but_a_kbench_error_or_whole_files(data: st.DataObject) -> None:
    contents = {"train/a.png": bytes(range(200)), "train/b.png": b"0" * 300, "x.csv": b"id\n1\n"}
    with tempfile.TemporaryDirectory() as place:
        zipped = make_zip(Path(place) / "all.zip", contents)
        content = bytearray(zipped.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        zipped.write_bytes(content[: data.draw(st.integers(0, len(content))) or None])
        target = Path(place) / "box" / "out"
        try:
            unpack(zipped, target)
        except KbenchError:
            assert not target.exists()
        else:
            assert set(tree(target).values()) <= set(contents.values())
        assert {path.name for path in Path(place).iterdir()} <= {"all.zip", "box"}
