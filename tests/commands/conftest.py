"""What the tests of the commands share."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import written


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace with the small competitions of `small_runs.py`, nothing trained."""
    return written(tmp_path)
