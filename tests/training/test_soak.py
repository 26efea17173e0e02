from __future__ import annotations

import subprocess
import sys

import pytest
from places import ROOT

SOAK = ROOT / "benchmarks" / "soak.py"


@pytest.mark.slow
def test_three_runs_killed_at_random_moments_end_as_if_they_had_not_been() -> None:
    done = subprocess.run([sys.executable, str(SOAK), "--runs", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3" in done.stdout
