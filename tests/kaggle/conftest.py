"""The real Kaggle client against a stand-in on this machine; nothing leaves 127.0.0.1.

Every test here runs with a home folder of its own, with a proxy that refuses (so that a request to anywhere else
fails at once), and with a record of every connection.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lookalikes
import pytest
from machines import SECRETS, YAML, Done, Machine, written
from standin import StandIn, environment

from kbench import cli
from kbench.sources.kaggle.client import kaggle
from kbench.sources.kaggle.competition import KaggleCompetition
from kbench.submission.ledger import Entry
from kbench.workspace import Workspace

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@pytest.fixture(scope="session")
def client_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder the client sees; it remembers the one of its first import."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def isolated(client_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Keep the client off this machine's own sign-in and off the network; return the hosts connected to."""
    for name in list(os.environ):
        if name.upper().startswith(("KAGGLE_", "VERBOSE", "KBENCH_KAGGLE")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in environment(client_home).items():
        monkeypatch.setenv(name, value)
    if "kaggle" in sys.modules:
        sys.modules["kaggle"].api.config_values = {}
    hosts: list[str] = []
    connect = socket.socket.connect

    def recorded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            hosts.append(address[0])
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", recorded)
    yield hosts
    assert not set(hosts) - set(LOOPBACK), f"a connection left this machine: {hosts}"


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A stand-in with one small competition, chosen by KBENCH_KAGGLE_URL."""
    server = StandIn()
    server.files = {"train.csv": b"id,label\na,0\nb,1\n" * 50, "images/a.png": b"\x89PNG" + bytes(3000)}
    server.zip()
    monkeypatch.setenv("KBENCH_KAGGLE_URL", server.url)
    yield server
    server.close()
    assert not server.errors
    outside = {seen.host for seen in server.seen if seen.host.partition(":")[0] not in LOOPBACK}
    assert not outside, f"a request named another host: {outside}"
    for seen in server.seen:
        if seen.method in ("GET", "PUT"):
            assert "Authorization" not in seen.headers, "storage was shown the sign-in"


@pytest.fixture
def machine_of_mine(tmp_path: Path, standin: StandIn) -> Machine:
    """A workspace of its own and the processes that run in it."""
    return Machine(tmp_path / "mine", tmp_path / "home", standin.url)


@pytest.fixture
def clock() -> SimpleNamespace:
    """Time that passes only by sleeping; `slept` lists how long."""
    state = SimpleNamespace(now=1_767_323_045.0, slept=[])

    def sleep(seconds: float) -> None:
        state.slept.append(seconds)
        state.now += seconds

    state.sleep, state.time = sleep, lambda: state.now
    return state


@pytest.fixture
def source(standin: StandIn, clock: SimpleNamespace, tmp_path: Path) -> KaggleCompetition:
    """The competition of the stand-in, through the real client."""
    return kaggle(
        slug=standin.slug, _sleep=clock.sleep, _clock=clock.time, _timeouts=(5.0, 10.0), _mounted=tmp_path / "input"
    )


@pytest.fixture
def fetch(source: KaggleCompetition, tmp_path: Path) -> Callable[..., Any]:
    """Fetch files into `tmp_path/data` and return what was done; `patience` is for what never comes."""

    def run(*files: str, force: bool = False, patience: float = 10.0) -> Any:
        hasty = replace(source, client=replace(source.client, timeouts=(5.0, patience)))
        return hasty.fetch(tmp_path / "data", files=files, force=force, progress=lambda *_: None)

    return run


@pytest.fixture
def kbench(
    workspace: Workspace, standin: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run a command in this process and return how it ended."""

    def run(*words: str, code: int = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["kbench", *words])
        ended: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            ended = stop.code
        captured = capsys.readouterr()
        done = Done(int(ended or 0), captured.out, captured.err)
        assert done.code == code, f"kbench {' '.join(words)} -> {done}"
        assert "Traceback" not in done.err
        for secret in SECRETS:
            assert secret not in done.out + done.err
        return done

    return run


@pytest.fixture
def images(workspace: Workspace, standin: StandIn, kbench: Callable[..., Done]) -> Workspace:
    """A workspace with a small competition of the stand-in, downloaded."""
    standin.files, _ = lookalikes.digits(train=20, test=4)
    standin.zip()
    workspace.competition("tiny").write_text(YAML)
    kbench("download", "tiny")
    standin.seen.clear()
    return workspace


@pytest.fixture
def entry(images: Workspace) -> Entry:
    """One submission that was not sent."""
    return written(images, "first")
