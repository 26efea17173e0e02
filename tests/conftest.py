"""What holds for every test: a home folder of its own, no settings of this machine, fixed seeds."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from kbench.workspace import Workspace

settings.register_profile("kbench", deadline=None, derandomize=True, database=None)
settings.load_profile("kbench")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of the session; one for all tests, so that font and other caches are made once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide this machine's settings and sign-ins, and begin every test with the same random state."""
    for name in list(os.environ):
        if name.upper().startswith(("KBENCH_", "KAGGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write without waiting for the disk."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr("os.sync", lambda: None)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty workspace, and the current folder in it."""
    root = tmp_path / "workspace"
    (root / "competitions").mkdir(parents=True)
    monkeypatch.chdir(root)
    return Workspace(root)


@pytest.fixture(scope="session")
def small_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with three small competitions, trained; see `small_runs.py`."""
    from small_runs import trained

    return trained(tmp_path_factory.mktemp("small"))


_SLOW = (  # whole trainings, many processes, large networks or pictures; not in `make quick`
    "tests/cli/test_every_task.py",
    "tests/commands/",
    "tests/kaggle/test_kaggle_commands.py",
    "tests/models/test_classifier.py",
    "tests/models/test_batchnorm_folding.py",
    "tests/models/test_signate_unet.py",
    "tests/pictures/test_balance.py",
    "tests/pictures/test_training_pictures.py",
    "tests/test_api.py",
    "tests/training/test_fold.py",
    "tests/training/test_precompute.py",
    "tests/training/test_resume.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of some files slow."""
    for item in items:
        if any(part in item.path.as_posix() for part in _SLOW):
            item.add_marker(pytest.mark.slow)
