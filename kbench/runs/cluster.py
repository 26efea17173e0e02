"""Folds on the workers of a cluster that is there already: `dask://HOST:PORT` or `ray://HOST:PORT`.

Workers share the folders of data and runs with who starts them; that is tried before anything trains. What they are
handed is `run_fold` and a command line. Who has a fold is what its lease says (`leases.py`), whatever a scheduler
believes. `docs/adr/0016-clusters.md` says why joblib's backends are not between. To add a scheduler, write a class with
`workers`, `start` and `close` and a row in `_KINDS`.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kbench import console, files
from kbench.errors import ConfigError, DataError, KbenchError
from kbench.runs.fold_processes import FOLDER, STOP, Attempt, FoldCommand, run_fold
from kbench.runs.leases import WAIT, limit_s
from kbench.workspace import RunPaths

CLUSTER = "KBENCH_CLUSTER"
_CONNECT_S = 20.0
_AGAIN_S = 600.0  # that a scheduler may be away
_GONE = -9  # the code of an attempt whose worker is gone
_ASK_S = 1.0


@dataclass(frozen=True)
class Wanted:
    """What folds ask of workers.

    Attributes:
        threads: CPU threads of a fold; None for all of a worker's.
        gpu: whether a fold takes a GPU.
        paths: of the run.
    """

    threads: int | None
    gpu: bool
    paths: RunPaths


@contextmanager
def connected(address: str, wanted: Wanted) -> Iterator[Any]:
    """Yield the workers of a cluster, each of which sees the run's folder.

    Raises:
        ConfigError: the address is none, the library is missing, or nothing answers.
        DataError: a worker does not see what is written here, or has another clock.
    """
    kind, _, where = address.partition("://")
    if kind not in _KINDS or not where:
        raise ConfigError(
            f"the cluster '{address}' is no address", " or ".join(f"{name}://HOST:PORT" for name in _KINDS),
            "`--cluster dask://localhost:8786` for the scheduler that `dask scheduler` starts",
        )  # fmt: skip
    name = f"{socket.gethostname()}-{os.getpid()}"
    environment = {key: value for key, value in os.environ.items() if key.startswith("KBENCH_")}
    environment |= {CLUSTER: "", WAIT: "wait", FOLDER: os.getcwd(), STOP: str(wanted.paths.stop(name))}
    files.remove(wanted.paths.stop(name))
    workers = _KINDS[kind](where, wanted, environment)
    try:
        _check_shared(workers.ask, wanted.paths, name)
        yield workers
    except KeyboardInterrupt:
        files.write_text(wanted.paths.stop(name), "")
        raise
    finally:
        workers.close()


def see(folder: str, own: str, token: str) -> dict[str, Any]:
    """Return what a worker sees of a file that was written for it, and when its own file was written.

    Args:
        folder: of the run.
        own: the beginning of its own file's name.
        token: the name of the file it must see.
    """
    paths = RunPaths(Path(folder))
    said: dict[str, Any] = {"host": socket.gethostname(), "process": os.getpid(), **_versions()}
    mine = paths.seen(f"{own}-{said['host']}-{said['process']}")
    try:
        said["content"] = paths.seen(token).read_text(encoding="utf-8")
        said["time"] = files.write_text(mine, token).stat().st_mtime
        said["workspace"] = True
    except (OSError, KbenchError) as error:
        said["problem"] = str(error).splitlines()[0]
    return said


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from kbench import __version__

    return {"python": platform.python_version(), "torch": version("torch"), "kbench": __version__,
            "machine": platform.machine()}  # fmt: skip


def _check_shared(ask: Callable[..., list[Any]], paths: RunPaths, name: str) -> None:
    """Have every worker read a file of the run's folder and write one; hold content and clock against ours."""
    token = f"{name}-{os.urandom(8).hex()}"
    content = files.write_text(paths.seen(token), token)
    try:
        before = content.stat().st_mtime
        answers = ask(see, str(paths.root), token, token)
        after = files.write_text(paths.seen(f"{token}-end"), token).stat().st_mtime
        for said in answers:
            _hold_against(said, token, before, after, paths)
    finally:
        for path in paths.all_seen(token):
            files.remove(path)
    strange = {key: sorted({said[key] for said in answers} - {own}) for key, own in _versions().items()}
    if any(strange.values()):
        console.warn(
            "workers differ from this machine ("
            + "; ".join(f"{key} {', '.join(values)}" for key, values in strange.items() if values)
            + "): a fold that changes workers may not go on bit for bit"
        )
    console.note(f"{len(answers)} workers see '{paths.root}'")


def _hold_against(said: Mapping[str, Any], token: str, before: float, after: float, paths: RunPaths) -> None:
    who = f"worker {said['process']} of {said['host']}"
    if said.get("content") != token or "time" not in said:
        raise DataError(
            f"{who} does not see '{paths.root}' as this machine does: {said.get('problem', 'another content')}",
            "one folder that all workers share, under the same path, writable",
            "mount it on every worker, or name the shared one with KBENCH_RUNS and KBENCH_DATA",
        )
    allowed = limit_s() / 4
    late = max(before - said["time"], said["time"] - after)
    if late > allowed:
        raise DataError(
            f"files that {who} writes have a time that is {late:.0f} s from this machine's",
            f"clocks within {allowed:g} s: a fold's heartbeat is the time of a file",
            "set the clocks (NTP), or raise KBENCH_LEASE_LIMIT",
        )


# -- Dask ----------------------------------------------------------------------------------------------------------


@dataclass
class DaskWorkers:
    """Workers of a Dask scheduler.

    One takes as many folds at once as it declares of the resource `GPU` (where folds want one), else as often as its
    threads hold those of a fold; by default one.
    """

    where: str
    wanted: Wanted
    environment: dict[str, str]
    elsewhere: bool = True
    _client: Any = None
    _attempts: list[_DaskAttempt] = field(default_factory=list)
    _known: dict[str, Any] = field(default_factory=dict)
    _asked: float = 0.0

    def __post_init__(self) -> None:
        self._connect(_CONNECT_S)

    def _connect(self, seconds: float) -> None:
        try:
            import distributed
        except ImportError as error:
            raise _missing("dask", error) from error
        try:
            library: Any = distributed
            self._client = library.Client(f"tcp://{self.where}", timeout=seconds, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise _silent(f"dask://{self.where}", "dask scheduler", error) from error

    def ask(self, function: Callable[..., Any], *words: Any) -> list[Any]:
        """Return what each worker says to a function."""
        self._client.wait_for_workers(1, timeout=_CONNECT_S)
        return list(self._client.run(function, *words).values())

    def workers(self) -> dict[str, Any]:
        """Return what is known of the workers that are there, by address; asked for once in a while."""
        if time.monotonic() - self._asked > _ASK_S:
            self._asked = time.monotonic()
            if self._client.status != "running":
                self._reconnect()
            with suppress(OSError, TimeoutError):
                self._known = dict(self._client.scheduler_info(n_workers=-1)["workers"])
        return self._known

    def _reconnect(self) -> None:
        console.warn(f"the scheduler dask://{self.where} is gone: waiting for it")
        self._client.close(timeout=1)
        ended = time.monotonic() + _AGAIN_S
        while True:
            try:
                return self._connect(_CONNECT_S)
            except ConfigError:
                if time.monotonic() > ended:
                    raise
                time.sleep(_ASK_S)

    def start(self, command: FoldCommand, log: Path) -> Attempt | None:
        """Hand a fold to a worker that has room."""
        known = self.workers()
        self._attempts = [attempt for attempt in self._attempts if attempt.poll() is None]
        for address, worker in known.items():
            taken = {attempt.slot for attempt in self._attempts if attempt.address == address}
            room, threads = _room(worker, self.wanted)
            for slot in sorted(set(range(room)) - taken):
                words = _on_gpu(command.words, slot, room) if self.wanted.gpu else command.words
                future = self._client.submit(
                    run_fold, words, {**self.environment, **_threads(threads)}, str(log), workers=[address],
                    allow_other_workers=False, pure=False, retries=0, key=f"fold-{command.fold}-{os.urandom(4).hex()}",
                )  # fmt: skip
                attempt = _DaskAttempt(self, future, address, slot)
                self._attempts.append(attempt)
                return attempt
        return None

    def close(self) -> None:
        """Leave the scheduler."""
        with suppress(Exception):  # it may be gone already; the folds are what counts
            self._client.close(timeout=5)


@dataclass
class _DaskAttempt:
    pool: DaskWorkers
    future: Any
    address: str
    slot: int
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is not None:
            return self.code
        status = self.future.status
        if status == "finished":
            self.code = int(self.future.result())
        elif status == "error":
            _say(self.future.exception())
            self.code = _GONE
        elif status in ("cancelled", "lost") or self.address not in self.pool.workers():
            self.code = _GONE
            with suppress(Exception):  # of a scheduler that is gone
                self.future.cancel()
        return self.code

    def stop(self, *, gently: bool) -> None:
        files.write_text(Path(self.pool.environment[STOP]), "")


def _room(worker: Mapping[str, Any], wanted: Wanted) -> tuple[int, int]:
    """Return how many folds a Dask worker takes at once, and the threads of each."""
    threads, gpus = int(worker["nthreads"]), int(worker.get("resources", {}).get("GPU", 1))
    room = gpus if wanted.gpu else max(1, threads // (wanted.threads or threads))
    return room, wanted.threads or max(1, threads // room)


def _on_gpu(words: tuple[str, ...], slot: int, room: int) -> tuple[str, ...]:
    """Return a command with the GPU of a slot, where a worker has several."""
    return tuple(f"cuda:{slot}" if room > 1 and word == "cuda" else word for word in words)


def _threads(count: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(count), "MKL_NUM_THREADS": str(count)}


# -- Ray -----------------------------------------------------------------------------------------------------------


@dataclass
class RayWorkers:
    """Nodes of a Ray cluster, one of which is this machine. Ray itself keeps folds waiting for room."""

    where: str
    wanted: Wanted
    environment: dict[str, str]
    elsewhere: bool = True
    _ray: Any = None

    def __post_init__(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise _missing("ray", error) from error
        self._ray = ray
        try:
            ray.init(self.where, log_to_driver=False, logging_level=logging.ERROR, namespace="kbench")
        except (OSError, ValueError, RuntimeError) as error:  # a port without a cluster, or no node on this machine
            raise _silent(f"ray://{self.where}", "ray start --head", error) from error

    def workers(self) -> list[dict[str, Any]]:
        """Return what is known of the nodes that live."""
        return [node for node in self._ray.nodes() if node["Alive"]]

    def ask(self, function: Callable[..., Any], *words: Any) -> list[Any]:
        """Return what each node says to a function."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self._ray.remote(num_cpus=0, max_retries=0)(function)
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in self.workers()]
        return list(self._ray.get([remote.options(scheduling_strategy=node).remote(*words) for node in there]))

    def start(self, command: FoldCommand, log: Path) -> Attempt | None:
        """Hand a fold to Ray, which waits for a node with room."""
        nodes = [node["Resources"] for node in self.workers()]
        gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
        some = gpus if self.wanted.gpu else nodes
        if self.wanted.gpu and not gpus:
            raise ConfigError("no node of the Ray cluster has a GPU", "nodes with GPUs", "`--device cpu`, or add one")
        each = min((node.get("CPU", 1) / (node["GPU"] if self.wanted.gpu else 1) for node in some), default=1)
        threads = self.wanted.threads or max(1, int(each))
        remote = self._ray.remote(num_cpus=threads, num_gpus=int(self.wanted.gpu), max_retries=0)(run_fold)
        return _RayAttempt(self, remote.remote(command.words, {**self.environment, **_threads(threads)}, str(log)))

    def close(self) -> None:
        """Leave the cluster."""
        with suppress(Exception):  # it may be gone already; the folds are what counts
            self._ray.shutdown()


@dataclass
class _RayAttempt:
    pool: RayWorkers
    reference: Any
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            ray = self.pool._ray
            ready, _ = ray.wait([self.reference], timeout=0)
            if ready:
                try:
                    self.code = int(ray.get(self.reference))
                except ray.exceptions.RayError as error:
                    _say(error)
                    self.code = _GONE
        return self.code

    def stop(self, *, gently: bool) -> None:
        files.write_text(Path(self.pool.environment[STOP]), "")


# -- both ----------------------------------------------------------------------------------------------------------


def _say(error: Any) -> None:
    console.note(f"a worker is gone, its fold goes on elsewhere: {type(error).__name__}")


def _missing(extra: str, error: ImportError) -> ConfigError:
    return ConfigError(
        f"{extra} is not installed: {error}", f"the libraries of `--cluster {extra}://...`",
        f"pip install 'kaggle-kbench[{extra}]'",
    )  # fmt: skip


def _silent(address: str, program: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"nothing answers at {address}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
        "the address of a scheduler that runs", f"`{program}` starts one; then its workers, with the shared folder",
    )  # fmt: skip


_KINDS: dict[str, Callable[[str, Wanted, dict[str, str]], Any]] = {"dask": DaskWorkers, "ray": RayWorkers}
