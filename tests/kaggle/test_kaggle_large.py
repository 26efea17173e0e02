"""A large download over a bad connection, in a process of its own so that its memory can be measured."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
from standin import Fault, environment

SIZE = 200_000_000
CUTS = 20

FETCH = """
import hashlib, resource, sys
from pathlib import Path
from kbench.sources.kaggle.client import kaggle
source = kaggle(slug="tiny-images", _sleep=lambda seconds: None)
source.about()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
target = Path(sys.argv[1])
source.fetch(target, files=["large.bin"], force=False, progress=lambda *_: None)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
with open(target / "large.bin", "rb") as handle:
    print(hashlib.file_digest(handle, "sha256").hexdigest(), grown)
"""


@pytest.mark.slow
def test_200_megabytes_cut_20_times_arrive_whole_in_bounded_memory(standin, client_home, tmp_path):
    import hashlib

    large, state, block = tmp_path / "large.bin", hashlib.sha256(), random.Random(0)
    with open(large, "wb") as handle:
        for _ in range(SIZE // 1_000_000):
            chunk = block.randbytes(1_000_000)
            handle.write(chunk)
            state.update(chunk)
    standin.files = {"large.bin": large}
    step = SIZE // (CUTS + 1)
    standin.plan("GET", *[Fault(cut=step) if number % 2 else Fault(close=step) for number in range(CUTS)])
    done = subprocess.run(
        [sys.executable, "-c", FETCH, str(tmp_path / "data")],
        env={**os.environ, **environment(client_home), "KBENCH_KAGGLE_URL": standin.url},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    digest, grown = done.stdout.split()
    assert digest == state.hexdigest()
    assert len(standin.calls("GET")) == CUTS + 1
    assert len({seen.path for seen in standin.calls("GET")}) == CUTS + 1
    assert int(grown) < 40_000  # kilobytes; the file has 195,000
