"""What a disk takes for one name: on most of Linux's only the same letters, elsewhere other case or composition too.

To follow a disk that folds something else, add it to `one_place` and probe for it.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from kbench import files


def one_place(name: str, *, one_case: bool) -> str:
    """Return text that is equal for names a disk may take for one: of another composition, perhaps of another case.

    Args:
        name: path of a file.
        one_case: names that differ by case alone are one file there (`tells_case`).
    """
    composed = unicodedata.normalize("NFC", name)
    return composed.casefold() if one_case else composed


def tells_case(folder: Path) -> bool:
    """Return whether names that differ by case alone are two files in a folder."""
    probe = folder / f".tmp-{os.getpid()}-case"
    files.write_bytes(probe, b"")
    try:
        return not probe.with_name(probe.name.upper()).exists()
    finally:
        files.remove(probe)
