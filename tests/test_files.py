from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbench import files, records
from kbench.errors import DataError, KbenchError

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


def names(folder: Path) -> list[str]:
    """Return the names of everything in a folder, hidden or not."""
    return sorted(os.listdir(folder))


def python(code: str, *args: object, **options: object) -> subprocess.Popen[str]:
    """Start a process that runs some Python."""
    words = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


# -- whole files ------------------------------------------------------------------------------------------------


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "a" / "b" / "c.txt", "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    assert names(path.parent) == ["c.txt"]


def test_line_ends_are_the_same_on_every_machine(tmp_path: Path) -> None:
    assert files.write_text(tmp_path / "a", "one\r\ntwo\n").read_bytes() == b"one\r\ntwo\n"


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "a.txt", "old")

    def write() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_temporary_name_keeps_the_suffixes(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "a.csv.gz") as temporary:
        assert temporary.suffixes[-2:] == [".csv", ".gz"]
        temporary.write_bytes(b"")


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt"), files.replacing(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_the_old_file_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "a.txt", "old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "a.txt", "old")
    code = """
        import sys, time
        from pathlib import Path
        from kbench import files, records
        with files.replacing(Path(sys.argv[1])) as temporary:
            temporary.write_text("half")
            print("writing", flush=True)
            time.sleep(60)
    """
    process = python(code, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.read_text() == "old"


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "a.txt", "old")
    code = """
        import resource, signal, sys
        from pathlib import Path
        from kbench import files, records
        from kbench.errors import DataError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        path = Path(sys.argv[1])
        for write in (
            lambda: files.write_bytes(path, bytes(20_000)),
            lambda: records.write_chunks(path, [bytes(9_000), bytes(9_000)]),
            lambda: files.append_line(path, "x" * 20_000),
            lambda: files.create_npy(path.with_name("b.npy"), (20_000,), "uint8"),
        ):
            try:
                write()
            except DataError as error:
                print(error.what.splitlines()[0].split(": ")[-1])
    """
    process = python(code, path)
    out, err = process.communicate()
    assert out.splitlines() == ["File too large"] * 4, err
    assert path.read_text()[:3] == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_that_is_a_file_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "")
    with pytest.raises(DataError, match="cannot write") as caught:
        files.write_text(tmp_path / "a" / "b.txt", "x")
    assert "KBENCH_DATA" in caught.value.todo


def test_writing_through_a_link_replaces_the_link_and_not_what_it_points_to(tmp_path: Path) -> None:
    kept = files.write_text(tmp_path / "kept.txt", "kept")
    link = tmp_path / "link.txt"
    link.symlink_to(kept)
    files.write_text(link, "new")
    assert (kept.read_text(), link.read_text(), link.is_symlink()) == ("kept", "new", False)


def test_a_linked_folder_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.write_text(tmp_path / "link" / "a.txt", "x")
    assert (tmp_path / "real" / "a.txt").read_text() == "x"


def test_readers_see_the_old_file_or_the_new_one_and_never_half_of_one(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "a", "0" * 50_000)
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            text = path.read_text()
            seen.add((len(text), len(set(text))))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        files.write_text(path, str(number % 10) * 50_000)
    stop.set()
    reader.join()
    assert seen == {(50_000, 1)}


def test_a_copy_is_whole_and_independent(tmp_path: Path) -> None:
    first = files.write_text(tmp_path / "a", "one")
    second = files.copy(first, tmp_path / "sub" / "b")
    files.write_text(first, "two")
    assert second.read_text() == "one"


def test_a_copy_of_a_missing_file_names_that_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        files.copy(tmp_path / "missing", tmp_path / "b")
    assert names(tmp_path) == []


# -- JSON -------------------------------------------------------------------------------------------------------


@given(content=JSON)
@settings(max_examples=40)
def test_json_is_read_back_as_it_was_written(content: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round.json"
    assert files.read_json(files.write_json(path, content)) == content


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_holds_no_nan(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"score": value})
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000], ids=["empty", "half", "binary", "deep"])
def test_a_damaged_json_is_an_error_that_says_what_to_delete(tmp_path: Path, content: bytes) -> None:
    path = files.write_bytes(tmp_path / "a.json", content)
    with pytest.raises(DataError, match="cannot read") as caught:
        files.read_json(path)
    assert str(path) in caught.value.todo


def test_a_missing_json_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.json"):
        files.read_json(tmp_path / "a.json")


@given(content=st.dictionaries(TEXT, JSON, max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(content: dict[str, object]) -> None:
    assert files.digest(content) == files.digest(dict(reversed(content.items())))


def test_a_digest_depends_on_every_value_and_on_the_order_of_lists() -> None:
    contents = [{"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {"a": [1, 2]}, {"a": [2, 1]}, {"a": None}, {}]
    assert len({files.digest(content) for content in contents}) == len(contents)


# -- appending --------------------------------------------------------------------------------------------------


def test_appended_lines_are_read_back_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("a", "b\u2028c", "d\x85e\x0bf", "g\nh")]
    for line in lines:
        files.append_line(path, line)
    assert files.read_lines(path) == lines


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert files.read_lines(tmp_path / "log") == []


@pytest.mark.parametrize("tail", ["", '{"half": ', "\u00e9"])
def test_a_half_written_last_line_is_no_line(tmp_path: Path, tail: str) -> None:
    path = files.write_text(tmp_path / "log", f"one\ntwo\n{tail}")
    assert files.read_lines(path) == ["one", "two"]


def test_a_character_cut_in_half_spoils_only_its_own_line(tmp_path: Path) -> None:
    path = files.write_bytes(tmp_path / "log", b"one\n" + "é".encode()[:1])
    assert files.read_lines(path) == ["one"]


@pytest.mark.parametrize(("count", "kept"), [(0, ""), (1, "one\n"), (2, "one\ntwo\n"), (9, "one\ntwo\n")])
def test_keeping_lines_cuts_later_ones_and_the_half_written_one(tmp_path: Path, count: int, kept: str) -> None:
    path = files.write_text(tmp_path / "log", "one\ntwo\nthr")
    files.keep_lines(path, count)
    assert path.read_text() == kept


def test_keeping_all_lines_does_not_touch_the_file(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "log", "one\nzwölf\n")
    before = path.stat().st_ino
    files.keep_lines(path, 2)
    assert path.stat().st_ino == before


def test_keeping_lines_of_a_missing_file_does_nothing(tmp_path: Path) -> None:
    files.keep_lines(tmp_path / "log", 3)
    assert names(tmp_path) == []


def test_a_part_file_goes_on_where_the_bytes_that_count_end(tmp_path: Path) -> None:
    path = files.write_bytes(tmp_path / "a.part", b"0123456789")
    with files.appending(path, keep=4) as write:
        write(b"ab")
        write(b"")
        write(bytearray(b"cd"))
    assert path.read_bytes() == b"0123abcd"


def test_a_part_file_keeps_what_came_before_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.part"
    with contextlib.suppress(RuntimeError), files.appending(path, keep=0) as write:
        write(b"came")
        raise RuntimeError
    assert path.read_bytes() == b"came"


# -- folders ----------------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError), files.replacing_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("x")
        raise RuntimeError
    assert names(tmp_path) == []
    with files.replacing_folder(tmp_path / "a") as folder:
        (folder / "x").write_text("x")
        assert not (tmp_path / "a").exists()
    assert names(tmp_path / "a") == ["x"]


def test_a_staging_folder_begins_empty_and_is_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".tmp-a"
    leftover.mkdir()
    (leftover / "old").write_text("of a killed process")
    with files.staging_folder(tmp_path / "a") as folder:
        assert names(folder) == []
        files.write_new(folder / "x", [b"1", b"2"])
        files.move(folder / "x", tmp_path / "a" / "x")
    assert (tmp_path / "a" / "x").read_bytes() == b"12"
    assert not leftover.exists()


def test_a_new_file_never_overwrites_one(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "a", "old")
    with pytest.raises(FileExistsError):
        files.write_new(path, [b"new"])
    assert path.read_text() == "old"


def test_removing_a_folder_leaves_nothing(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a" / "b" / "c", "x")
    files.remove(tmp_path / "a")
    assert names(tmp_path) == []


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    files.write_text(tmp_path / "real" / "a", "x")
    link = files.link_folder(tmp_path / "link", tmp_path / "real")
    files.remove(link)
    assert names(tmp_path) == ["real"]
    assert names(tmp_path / "real") == ["a"]


def test_removing_what_is_not_there_does_nothing(tmp_path: Path) -> None:
    files.remove(tmp_path / "a")


def test_a_link_replaces_a_link_and_an_empty_folder_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    link = tmp_path / "link"
    link.mkdir()
    files.link_folder(link, tmp_path / "one")
    files.link_folder(link, tmp_path / "two")
    assert link.resolve() == (tmp_path / "two").resolve()
    full = files.write_text(tmp_path / "full" / "a", "x").parent
    with pytest.raises(DataError, match="full"):
        files.link_folder(full, tmp_path / "one")
    assert names(full) == ["a"]
    assert names(tmp_path) == ["full", "link", "one", "two"]


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert files.free_bytes(tmp_path / "not" / "there") > 0
    assert files.free_files(tmp_path / "not" / "there") != 0


# -- artifacts of several files ---------------------------------------------------------------------------------


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A sealed artifact of two files."""
    weights, index = files.write_bytes(tmp_path / "w.bin", bytes(100)), files.write_text(tmp_path / "i.txt", "one\n")
    return records.seal(tmp_path / "a.json", {"score": 0.5}, parts={"weights": weights, "index": index})


def test_a_sealed_artifact_is_read_back(sealed: Path) -> None:
    description = records.read_seal(sealed)
    assert description is not None
    assert description["score"] == 0.5
    assert description["files"]["index"] == {
        "file": "i.txt",
        "bytes": 4,
        "changed_ns": sealed.with_name("i.txt").stat().st_mtime_ns,
        "sha256": files.sha256(sealed.with_name("i.txt")),
    }


def test_an_artifact_is_found_where_its_folder_was_moved_to(sealed: Path, tmp_path: Path) -> None:
    files.move(sealed.parent / "a.json", tmp_path / "other" / "a.json")
    files.move(sealed.parent / "w.bin", tmp_path / "other" / "w.bin")
    files.move(sealed.parent / "i.txt", tmp_path / "other" / "i.txt")
    assert records.read_seal(tmp_path / "other" / "a.json") is not None


@pytest.mark.parametrize("verify", ["size", "time", "content"])
def test_an_artifact_with_a_truncated_or_missing_file_does_not_exist(sealed: Path, verify: Any) -> None:
    sealed.with_name("w.bin").write_bytes(bytes(99))
    assert records.read_seal(sealed, verify=verify) is None
    sealed.with_name("w.bin").unlink()
    assert records.read_seal(sealed, verify=verify) is None


def test_an_edited_file_of_the_same_size_is_found_by_its_checksum(sealed: Path) -> None:
    sealed.with_name("w.bin").write_bytes(bytes(99) + b"x")
    assert records.read_seal(sealed) is None
    assert records.read_seal(sealed, verify="time") is None
    assert records.read_seal(sealed, verify="size") is not None


def test_a_copied_artifact_is_compared_by_its_content_and_counts(sealed: Path) -> None:
    os.utime(sealed.with_name("w.bin"), ns=(1, 1))
    assert records.read_seal(sealed, verify="time") is not None


def test_what_was_not_changed_since_it_was_sealed_is_not_read_again(
    sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail(f"reads {path}"))
    assert records.read_seal(sealed, verify="time") is not None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "{}", '{"files": []}', '{"files": {"w": 1}}', '{"files": {"w": {"file": "../w"}}}',
     '{"files": {"w": {"file": 3, "bytes": 1}}}', '{"files": {"w": {"file": "", "bytes": 1}}}',
     '{"files": {"w": {"file": "a\\u0000b", "bytes": 1}}}', "[" * 100_000],
    ids=range(13),
)  # fmt: skip
def test_a_seal_that_was_not_written_by_kbench_does_not_exist(tmp_path: Path, text: str) -> None:
    assert records.read_seal(files.write_text(tmp_path / "a.json", text)) is None


@given(position=st.integers(0, 400), length=st.integers(0, 400))
@settings(max_examples=40)
def test_a_seal_with_any_missing_piece_never_raises(
    position: int, length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole = records.seal(folder / "cut.json", {"a": 1}, parts={"w": files.write_text(folder / "w", "x")}).read_text()
    files.write_text(folder / "cut.json", whole[:position] + whole[position + length :])
    found = records.read_seal(folder / "cut.json")
    assert found is None or found["files"] == json.loads(whole)["files"]


def test_files_hashed_while_written_are_sealed_without_reading_them_again(tmp_path: Path) -> None:
    entry = records.write_chunks(tmp_path / "a.bin", [b"one", b"", b"two"])
    path = records.seal(tmp_path / "a.json", {}, parts={}, sealed={"data": entry})
    description = records.read_seal(path)
    assert description is not None
    assert description["files"] == {"data": entry}
    assert (tmp_path / "a.bin").read_bytes() == b"onetwo"


def test_a_memory_map_is_written_in_place(tmp_path: Path) -> None:
    array = files.create_npy(tmp_path / "a.npy", (3, 2), "float32")
    array[1] = 7
    files.sync(array)
    assert np.array_equal(np.load(tmp_path / "a.npy"), [[0, 0], [7, 7], [0, 0]])


# -- locks ------------------------------------------------------------------------------------------------------

HOLD = """
    import sys, time
    from pathlib import Path
    from kbench import files
    with files.lock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it reads a line."""
    process = python(HOLD, tmp_path / "x" / ".lock", stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_that_another_process_holds_is_refused_with_a_remedy(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with (
        pytest.raises(KbenchError, match="another kbench process") as caught,
        files.lock(tmp_path / "x" / ".lock", waiting="wait for it"),
    ):
        pass
    assert caught.value.todo == "wait for it"


def test_a_lock_is_waited_for(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    got = threading.Event()

    def wait() -> None:
        with files.lock(tmp_path / "x" / ".lock"):
            got.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert not got.wait(0.2)
    assert holder.stdin is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    waiter.join(30)
    assert got.is_set()


def test_the_lock_of_a_killed_process_is_free(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with files.lock(tmp_path / "x" / ".lock", waiting="no"):
        pass


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError), files.lock(tmp_path / ".lock"):
        raise RuntimeError
    with files.lock(tmp_path / ".lock", waiting="no"):
        pass


def test_a_log_is_opened_for_appending(tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        with files.open_log(tmp_path / "sub" / "console.log") as handle:
            handle.write(text)
    assert (tmp_path / "sub" / "console.log").read_text() == "one\ntwo\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    for write in (files.write_text, files.append_line):
        with pytest.raises(DataError, match="cannot write"):
            write(folder / "a", "x")


def test_what_safetensors_was_writing_when_it_was_killed_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmptdBmO8").write_bytes(b"half")
    (tmp_path / ".tmp-note.txt").write_bytes(b"mine")
    (tmp_path / ".tmpfiles").write_bytes(b"mine")
    files.remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-note.txt", ".tmpfiles"]


def test_what_is_put_aside_is_read_again_in_any_order_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spool = files.Spool()
    readers = [spool.put(content) for content in (b"one", b"", bytes(range(256)) * 500)]
    assert [read() for read in reversed(readers)] == [bytes(range(256)) * 500, b"", b"one"]
    assert names(tmp_path) == []
    handle = spool._handle
    del spool
    assert not handle.closed  # the readers need it
    del readers
    assert handle.closed


def test_a_full_disk_under_what_is_put_aside_is_said() -> None:
    code = """
    import resource, signal
    from kbench import files
    from kbench.errors import DataError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    spool = files.Spool()
    spool.put(b"x" * 900)
    try:
        spool.put(b"x" * 900)
    except DataError as error:
        print(error)
    """
    out, err = python(code).communicate()
    assert "cannot put aside 900 bytes" in out, err
    assert "TMPDIR" in out


def test_what_a_killed_command_left_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from kbench import files
with files.replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    target, other = tmp_path / "folds" / "digits.csv", tmp_path / "folds" / ".tmp-1.000000-0a0b0c0d-digits.csv"
    subprocess.run([sys.executable, "-c", script, str(target)], check=False)
    assert [path.name[:5] for path in target.parent.iterdir()] == [".tmp-"]
    other.write_text("another machine is writing this")
    kept = target.parent / ".tmp-digits.lock"
    kept.write_text("")
    files.write_text(target, "whole")
    assert sorted(path.name for path in target.parent.iterdir()) == [other.name, kept.name, "digits.csv"]
    os.utime(other, (0, 0))
    files._remove_leftovers.cache_clear()
    files.write_text(target, "again")
    assert sorted(path.name for path in target.parent.iterdir()) == [kept.name, "digits.csv"]
