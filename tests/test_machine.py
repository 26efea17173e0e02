from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from kbench.machine import cores

FAULTS = """
import resource
import torch
from kbench.machine import keep_freed_memory
if {keeps}:
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(1 << 24)
before = faults()
for _ in range(20):
    torch.ones(1 << 24)  # 64 MiB, written and freed
print(faults() - before)
"""


def faults(*, keeps: bool) -> int:
    command = [sys.executable, "-c", FAULTS.format(keeps=keeps)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_there_is_a_core() -> None:
    assert cores() >= 1


@pytest.mark.slow  # two processes that import torch
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    given_back, kept = faults(keeps=False), faults(keeps=True)
    assert kept < given_back / 2
