"""A CSV and empty image files, read the way a competition's table is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kbench.data.table.layouts import read_table
from kbench.data.table.reading import Request
from kbench.data.table.table import Table
from kbench.errors import DataError


def read(root: Path, split: str = "train", *, layout: str = "csv", params: Any = None, **request: Any) -> Table:
    return read_table(layout, params or {}, Request(root=root, split=split, **{"task": "single_label", **request}))  # type: ignore[arg-type]


def write(root: Path, csv: str, files: list[str]) -> Path:
    (root / "train.csv").write_text(csv, encoding="utf-8")
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"")
    return root


def problems_of(caught: pytest.ExceptionInfo[DataError]) -> list[str]:
    return [line[4:] for line in caught.value.what.splitlines()[1:]]
