"""Random changes of YAMLs, CSVs and images: an answer or an error of three parts, and no case that hangs.

`KBENCH_FUZZ` is the seconds of CPU for each kind; 200 YAMLs, 200 CSVs and 100 images are `python benchmarks/fuzz.py`.
"""

from __future__ import annotations

import os

import pytest
from fuzz import KINDS, fuzz

SECONDS = float(os.environ.get("KBENCH_FUZZ", "8"))  # read before the tests hide what the machine has set


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_change_of_a_file_ends_in_a_traceback(kind: str) -> None:
    result = fuzz(kind, count=200, seed=1, seconds=SECONDS)
    assert result.failures == []
    assert result.count > 0
