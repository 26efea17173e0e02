from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from kbench import files
from kbench.errors import Busy, FoldBusy, KbenchError
from kbench.runs import leases
from kbench.runs.leases import holding, lease_of
from kbench.workspace import FoldPaths

WORKER = """
import sys, time
from pathlib import Path
from kbench import files
from kbench.errors import KbenchError
from kbench.runs.leases import holding
from kbench.workspace import FoldPaths

place = FoldPaths(Path(sys.argv[1]))
try:
    with holding(place, todo="wait"):
        files.append_line(place.log, sys.argv[2])
        print("has it", flush=True)
        while not place.root.joinpath("go on").exists():
            time.sleep(0.02)
        files.append_line(place.log, sys.argv[2] + " again")
except KbenchError as error:
    print(type(error).__name__, error.what, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FoldPaths:
    monkeypatch.setenv(leases.LIMIT, "1")
    monkeypatch.setattr(leases, "_POLL_S", 0.02)
    return FoldPaths(tmp_path / "fold-0")


@contextmanager
def worker(place: FoldPaths, name: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the fold, until it is told to go on or stopped."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(place.root), name], text=True, stdout=subprocess.PIPE,
        env={**os.environ, **more},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def elsewhere(place: FoldPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be one of another machine, which sees no process of the owner."""
    monkeypatch.setattr("kbench.machine.this_machine", lambda: "another boot/pid:[1]")


def test_a_fold_is_one_workers_and_free_again_when_it_ends(place: FoldPaths) -> None:
    with holding(place, todo="wait"):
        lease = lease_of(place)
        assert lease is not None
        assert (lease.generation, lease.state, lease.owner["process"]) == (1, "held", os.getpid())
        with pytest.raises(FoldBusy, match="another kbench process"), holding(place, todo="wait"):
            pass
        with pytest.raises(Busy), files.lock(place.lock, waiting="wait"):  # who knows no leases
            pass
    lease = lease_of(place)
    assert lease is not None
    assert (lease.generation, lease.state) == (1, "free")
    with holding(place, todo="wait"):
        assert place.leases() == [2]


def test_a_lock_without_a_lease_keeps_others_away_too(place: FoldPaths) -> None:
    with files.lock(place.lock), pytest.raises(Busy), holding(place, todo="wait"):
        pass
    lease = lease_of(place)
    assert lease is not None
    assert lease.state == "free"


def test_a_killed_worker_on_this_machine_has_lost_its_fold_at_once(place: FoldPaths) -> None:
    with worker(place, "first", **{leases.LIMIT: "600"}) as first:
        assert line(first) == "has it"
        first.kill()
        first.wait()
        with holding(place, todo="wait"):
            assert place.leases() == [2]


def test_a_killed_worker_of_another_machine_loses_it_after_the_limit(
    place: FoldPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with worker(place, "first") as first:
        assert line(first) == "has it"
        elsewhere(place, monkeypatch)
        with pytest.raises(FoldBusy), holding(place, todo="wait"):
            pass
        first.kill()
        monkeypatch.setenv(leases.WAIT, "wait")
        with holding(place, todo="wait"):
            assert place.leases() == [2]


def test_a_stopped_worker_loses_its_fold_and_stops_before_it_writes_when_it_comes_back(place: FoldPaths) -> None:
    with worker(place, "first") as first:
        assert line(first) == "has it"
        first.send_signal(signal.SIGSTOP)
        stopped_one_comes_back(place, first)
    assert files.read_lines(place.log) == ["first", "second", "second again"]
    lease = lease_of(place)
    assert lease is not None
    assert (lease.generation, lease.state) == (2, "free")


def stopped_one_comes_back(place: FoldPaths, first: subprocess.Popen[str]) -> None:
    with worker(place, "second", **{leases.WAIT: "wait"}) as second:
        assert line(second) == "has it"
        assert files.read_lines(place.log) == ["first", "second"]
        place.root.joinpath("go on").touch()
        assert second.wait(20) == 0
        first.send_signal(signal.SIGCONT)
        assert first.wait(20) == 6
        assert line(first).startswith("FoldBusy")


def test_heartbeats_keep_a_fold_for_longer_than_the_limit(place: FoldPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    with holding(place, todo="wait"):
        elsewhere(place, monkeypatch)
        ended = time.monotonic() + 2.5
        while time.monotonic() < ended:
            lease = lease_of(place)
            assert lease is not None
            assert lease.state == "held"
            time.sleep(0.1)


def test_of_many_that_take_up_a_silent_fold_one_gets_it(place: FoldPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_json(place.lease(3), {"host": "gone", "process": 1, "machine": "gone", "started": "1"})
    os.utime(place.lease(3), (time.time() - 60, time.time() - 60))
    taken = []

    def take() -> None:
        try:
            taken.append(leases._take(place, "wait"))
        except FoldBusy:
            taken.append(0)

    threads = [Thread(target=take) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [0] * 11 + [4]
    assert place.leases() == [4]


def test_without_flock_the_lease_alone_keeps_others_away(place: FoldPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(handle: object, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with holding(place, todo="wait"), pytest.raises(FoldBusy), holding(place, todo="wait"):
        pass
    with pytest.raises(KbenchError, match="without locks"), files.lock(place.lock):
        pass


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf", "nan"])
def test_a_limit_that_is_none_is_told(place: FoldPaths, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(leases.LIMIT, text)
    with pytest.raises(KbenchError, match=leases.LIMIT), holding(place, todo="wait"):
        pass


def test_a_fold_removed_under_its_worker_is_told(place: FoldPaths) -> None:
    with holding(place, todo="wait"):
        os.rename(place.root, place.root.with_name("moved"))
        with pytest.raises(FoldBusy, match="gone or out of reach"):
            files.write_text(place.plan, "{}")
    assert json.loads(place.root.with_name("moved").joinpath("lease-1.json").read_text())["process"] == os.getpid()
