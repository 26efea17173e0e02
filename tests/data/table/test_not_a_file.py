"""Paths that are no image files: folders, pipes, devices, and what may not be read."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from drawn_images import drawn, write_images

from kbench.data.images.cache import content_key
from kbench.data.images.decoding import decode
from kbench.data.table.image_files import Listing, find_files, list_folders, list_images
from kbench.data.table.table import Table
from kbench.data.table.verify import look, look_at_images
from kbench.errors import DataError

NOBODY = 65534


@contextlib.contextmanager
def without_rights() -> Iterator[Path]:
    """Yield a folder that everybody may look into, as a user whom permissions hold."""
    was = os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        if was == 0:
            os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            if was == 0:
                os.seteuid(was)


def put(path: Path, what: str) -> str:
    """Put something that is no file at a path; return what it is called."""
    path.unlink()
    if what == "folder":
        path.mkdir()
        return "that is a folder"
    if what == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    return "that is a pipe, a socket or a device"


@pytest.mark.parametrize("what", ["folder", "pipe", "device"])
@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_what_is_no_file_is_named_and_never_read(tmp_path: Path, what: str, suffix: str) -> None:
    rows = write_images(tmp_path, drawn(3))
    path = rows[1][0].rename(rows[1][0].with_suffix(suffix))
    said = put(path, what)
    assert look(path) == look(path, deep=True) == said
    table = Table(
        np.array(["a", "b"]), tmp_path, ((rows[0][0].name,), (path.name,)), "segmentation", (),
        masks=((path.name,), (rows[2][0].name,)),
    )  # fmt: skip
    for deep in (False, True):
        report = look_at_images(table, progress=lambda *_: None, deep=deep)
        assert report.reasons == {said: [path.name, path.name]}
        assert report.rows == {0, 1}
    with pytest.raises(DataError, match="it is a"):
        decode(path, -1)


def test_a_folder_that_may_not_be_listed_is_said_so() -> None:
    with without_rights() as root:
        (root / "images" / "more").mkdir(parents=True)
        (root / "images" / "a.png").write_bytes(b"x")
        (root / "images" / "more").chmod(0o000)
        for call in (
            lambda: list_images(root, "images", suffix=None),
            lambda: list_folders(root, "images/more"),
            lambda: find_files(root, "images/more", ["b"], suffix=".png"),
            lambda: Listing(root / "images").names("more"),
            lambda: find_files(root, "images/more/deeper", ["b"], suffix=".png"),
        ):
            with pytest.raises(DataError, match="cannot be listed: Permission denied"):
                call()
        (root / "images" / "more").chmod(0o700)
        assert list_images(root, "images", suffix=None)[0] == ["a"]


def test_a_file_that_may_not_be_read_is_said_so() -> None:
    with without_rights() as root:
        path = root / "a.png"
        path.write_bytes(b"x")
        path.chmod(0o000)
        assert look(path) == "that may not be read"
        with pytest.raises(DataError, match=r"cannot read .*Permission denied"):
            decode(path, -1)
        with pytest.raises(DataError, match=r"cannot read .*Permission denied"):
            content_key([(path,)], root / "cache")
