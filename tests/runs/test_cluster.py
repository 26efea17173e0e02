from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from clusters import QUIET, Dask, Ray, owner, until
from safetensors.numpy import load_file
from small_runs import written

from kbench import files
from kbench.workspace import FoldPaths, RunPaths

pytestmark = pytest.mark.slow
CYCLES = 40
WORDS = ("train", "-c", "labels", "--fold", "all", "--device", "cpu")
RECIPE = ("--set", f"stages.all.schedule.cycles={CYCLES}", "--set", "stages.all.keep=[last]")


def kbench(root: Path, *words: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kbench", *words], cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, **QUIET, "KBENCH_LEASE_LIMIT": "4", **more},
    )  # fmt: skip


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    assert "Traceback" not in err
    return out, err


def folds(root: Path) -> list[FoldPaths]:
    paths = RunPaths(root / "runs" / "labels" / "baseline-s0")
    return [paths.fold(fold) for fold in range(2)]


def content(place: FoldPaths) -> dict[str, bytes]:
    """The weights and out-of-fold predictions of a fold, bit for bit."""
    tensors = {f"{path.name}/{name}": value for path in sorted(place.root.glob("snapshot-*.safetensors"))
               for name, value in load_file(path).items()}  # fmt: skip
    values = {path.name: np.load(path) for path in sorted((place.root / "oof").glob("*.npy"))}
    assert tensors
    assert values
    return {name: np.ascontiguousarray(value).tobytes() for name, value in {**tensors, **values}.items()}


def epochs(place: FoldPaths) -> list[tuple[str, int]]:
    """The epochs a fold's log has, and those that all of its processes said they trained."""
    records = [json.loads(line) for line in files.read_lines(place.log)]
    return [(record["stage"], record["epoch"]) for record in records if record["event"] == "epoch"]


def said(place: FoldPaths) -> list[str]:
    return re.findall(r"fold \d+ +(\w+ \d+/\d+) +train", place.console.read_text())


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """What the folds are where nobody disturbs them."""
    root = written(tmp_path_factory.mktemp("local"))
    ended(kbench(root, *WORDS, "--jobs", "2", *RECIPE))
    return [content(place) for place in folds(root)]


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Dask]:
    (tmp_path / "dask").mkdir()
    cluster = Dask(tmp_path / "dask", workers=2)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    cluster = Ray(cores=2)
    yield cluster
    cluster.stop()


def children(pid: int) -> list[int]:
    return [int(word) for task in Path(f"/proc/{pid}/task").glob("*")
            for word in (task / "children").read_text().split()]  # fmt: skip


def under_way(place: FoldPaths, least: int = 4) -> bool:
    return place.last.is_file() and len(epochs(place)) >= least


def whole(root: Path, local: list[dict[str, bytes]], *, twice: int) -> None:
    """Hold the folds against the undisturbed ones; at most `twice` epochs were begun anew."""
    repeated = 0
    for place, expected in zip(folds(root), local, strict=True):
        assert content(place) == expected
        assert epochs(place) == [("first", 0), *(("all", epoch) for epoch in range(CYCLES))]
        told = set(said(place))
        assert CYCLES <= len(told) <= CYCLES + 1  # who is killed behind the log's line of an epoch prints none
        repeated += len(said(place)) - len(told)
        assert owner(place.lease(place.leases()[-1])) == 0
    assert repeated <= twice


def test_dask_trains_what_one_machine_does_while_workers_die_and_hang(
    tmp_path: Path, dask: Dask, local: list[dict[str, bytes]]
) -> None:
    root = written(tmp_path / "shared")
    process = kbench(root, *WORDS, *RECIPE, KBENCH_CLUSTER=dask.address)
    first, second = folds(root)
    until(lambda: under_way(first) and under_way(second))
    killed = next(worker for worker in dask.workers if owner(first.lease(first.leases()[-1])) in children(worker.pid))
    killed.kill()
    dask.add(2)
    stopped = owner(second.lease(second.leases()[-1]))
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: second.leases()[-1] > 1)
    os.kill(stopped, signal.SIGCONT)
    _, err = ended(process)
    assert "2 workers see" in err
    whole(root, local, twice=2)
    assert "FoldBusy" not in err


def test_a_fold_that_fails_on_a_cluster_leaves_the_others_alone(tmp_path: Path, dask: Dask) -> None:
    root = written(tmp_path / "shared")
    place = folds(root)[1]
    files.write_text(place.root / "oof", "in the way of predictions")
    process = kbench(root, *WORDS, "--cluster", dask.address, "--json")
    out, err = ended(process, code=4)
    assert json.loads(out)["trained"] == [0]
    assert json.loads(out)["failed"] == [1]
    assert "folds 1 failed" in err
    assert "error: cannot write" in place.console.read_text()


def test_ray_trains_what_one_machine_does_while_a_fold_is_killed_and_one_hangs(
    tmp_path: Path, ray: Ray, local: list[dict[str, bytes]]
) -> None:
    root = written(tmp_path / "shared")
    process = kbench(root, *WORDS, *RECIPE, "--cluster", ray.address, "--threads", "1")
    first, second = folds(root)
    until(lambda: under_way(first) and under_way(second))
    os.kill(owner(first.lease(first.leases()[-1])), signal.SIGKILL)
    stopped = owner(second.lease(second.leases()[-1]))
    os.kill(stopped, signal.SIGSTOP)
    until(lambda: second.leases()[-1] > 1)
    os.kill(stopped, signal.SIGCONT)
    _, err = ended(process)
    assert "1 workers see" in err
    whole(root, local, twice=2)


@pytest.mark.parametrize(
    ("address", "message"),
    [("slurm://x:1", "no address"), ("dask://", "no address"), ("dask://127.0.0.1:9", "nothing answers")],
)
def test_an_address_without_a_cluster_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    from kbench.errors import ConfigError
    from kbench.runs import cluster

    monkeypatch.setattr(cluster, "_CONNECT_S", 1.0)
    wanted = cluster.Wanted(1, gpu=False, paths=RunPaths(tmp_path))
    with pytest.raises(ConfigError, match=message), cluster.connected(address, wanted):
        pass
