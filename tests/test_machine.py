from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from kbench.machine import cores, wait_asleep
from kbench.runs.fold_processes import divided_environment

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="torch brings libgomp on Linux alone")
@pytest.mark.parametrize(("chosen", "seen"), [
    ({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"), ({"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'"),
], ids=str)  # fmt: skip
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(chosen: dict[str, str], seen: str) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment = {**kept, **chosen, "OMP_DISPLAY_ENV": "VERBOSE"}
    code = "import sys; sys.argv = ['kbench', 'list', 'model']; from kbench.cli import script; script()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "OMP_NUM_THREADS" in done.stderr, "torch, and with it OpenMP, was loaded"
    assert seen in done.stderr


def test_what_a_command_starts_inherits_how_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "x")  # so that it is put back
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert wait_asleep()
    assert divided_environment(0, 2)["OMP_WAIT_POLICY"] == "PASSIVE"
    assert not wait_asleep()
