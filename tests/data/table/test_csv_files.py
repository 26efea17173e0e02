from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kbench.data.table.csv_files import numbers, read_frame, texts
from kbench.errors import DataError, SubmissionError


def written(folder: Path, content: bytes, name: str = "a.csv") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_ids_are_text_and_numbers_are_numbers(tmp_path: Path) -> None:
    frame = read_frame(written(tmp_path, b"id,p\n0012,0.5\nNA,1e-3\n"))
    assert texts(frame, "id").tolist() == ["0012", "NA"]
    assert numbers(frame, ["p"]).tolist() == [[0.5], [0.001]]


def test_every_column_can_be_read_as_text(tmp_path: Path) -> None:
    frame = read_frame(written(tmp_path, b"id,label\n1,0012\n"), text=True)
    assert texts(frame, "label").tolist() == ["0012"]


def test_gzip_and_a_byte_order_mark_are_understood(tmp_path: Path) -> None:
    frame = read_frame(written(tmp_path, gzip.compress("\ufeffid,p\nä,1\n".encode()), "a.csv.gz"))
    assert (list(frame.columns), texts(frame, "id").tolist()) == (["id", "p"], ["ä"])


def test_cells_that_are_no_numbers_become_nan(tmp_path: Path) -> None:
    frame = read_frame(written(tmp_path, b"id,p,q\n1,,True\n2,x,False\n"))
    assert np.isnan(numbers(frame, ["p", "q"])).all()


@pytest.mark.parametrize(
    "content",
    [b"", b"id,p\n1,2,3\n2,3,4\n", b"id,p\n1,2\n2,3,4\n", b'id,p\n1,"x', b"id,p\n\xff\xfe,1\n", b"id,p,p\n1,2,3\n"],
    ids=["empty", "wide", "ragged", "quote", "not utf-8", "column twice"],
)
def test_a_malformed_file_gives_a_three_part_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="cannot read") as caught:
        read_frame(written(tmp_path, content))
    assert caught.value.expected
    assert caught.value.todo


def test_a_damaged_gzip_file_gives_the_callers_error(tmp_path: Path) -> None:
    content = gzip.compress(b"id,p\n" + b"1,2\n" * 1000)
    for damaged in (content[:-20], b"no gzip", content[:30] + b"\0\0\0\0" + content[34:]):
        with pytest.raises(SubmissionError):
            read_frame(written(tmp_path, damaged, "a.csv.gz"), error=SubmissionError)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_frame(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="cannot read"):
        read_frame(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_in_utf_16_is_read_with_a_mark_and_without(tmp_path: Path, encoding: str, delimiter: str) -> None:
    rows = [["id", "label"], ["0012", "café"], ["7", "dög"]]
    frame = read_frame(written(tmp_path, "".join(f"{delimiter.join(row)}\r\n" for row in rows).encode(encoding)))
    assert [list(frame.columns), *frame.to_numpy().tolist()] == rows


def test_gzip_is_told_by_what_a_file_holds(tmp_path: Path) -> None:
    for name in ("a.csv", "A.CSV.GZ", "a.csv.gz"):
        frame = read_frame(written(tmp_path, gzip.compress(b"id,p\n0012,1\n"), name))
        assert texts(frame, "id").tolist() == ["0012"]


def test_what_to_type_for_another_encoding_works_when_typed(tmp_path: Path) -> None:
    path = written(tmp_path, "id,label\na,café\nb,dog\n".encode("cp1252"), "train.csv")
    with pytest.raises(DataError, match=r"not in UTF-8, near .*café") as caught:
        read_frame(path)
    typed = caught.value.todo.split("`")[1]
    assert typed.startswith("iconv -f WINDOWS-1252")
    subprocess.run(typed, shell=True, check=True)
    assert "'train-utf8.csv'" in caught.value.todo
    assert texts(read_frame(tmp_path / "train-utf8.csv"), "label").tolist() == ["café", "dog"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04" + bytes(40), "a zip or a spreadsheet"), (bz2.compress(b"id,p\n1,2\n"), "bzip2"),
        (lzma.compress(b"id,p\n1,2\n"), "xz"), (b"PAR1" + bytes(40), "Parquet"),
    ],
)  # fmt: skip
def test_files_that_are_no_csv_are_called_what_they_are(tmp_path: Path, content: bytes, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        read_frame(written(tmp_path, content))
    assert "save it as CSV" in caught.value.todo
