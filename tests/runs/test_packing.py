from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from small_runs import written

from kbench import files
from kbench.commands.pack import pack, unpack
from kbench.commands.status import status
from kbench.commands.train import train
from kbench.errors import ConfigError, DataError, FoldBusy
from kbench.runs import packing
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.leases import holding
from kbench.training.deadline import Deadline, Stopped
from kbench.workspace import Choice, FoldPaths, RunPaths

pytestmark = pytest.mark.slow
CPU = TrainOptions(device="cpu")


def stopped(root: Path) -> RunPaths:
    """A run whose first fold was stopped after its first update."""
    with pytest.raises(Stopped):
        train(open_experiment(Choice("labels", workspace=root)), "0",
              TrainOptions(device="cpu", deadline=Deadline(why="told to stop")))  # fmt: skip
    return RunPaths(root / "runs" / "labels" / "baseline-s0")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = written(tmp_path_factory.mktemp("begun"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("KBENCH_RUNS", raising=False)
        stopped(root)
    return root


@pytest.fixture
def packed(begun: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.zip"
    assert pack(Choice("labels", workspace=begun), str(path))["run"] == "baseline-s0"
    return path


def other_workspace(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same competition and folds without runs, and the current folder in it."""
    root = tmp_path / "other"
    for name in ("competitions", "folds", "source"):
        shutil.copytree(begun / name, root / name)
    (root / "data").mkdir()
    for name in ("classes", "labels", "numbers"):
        (root / "data" / name).symlink_to(root / "source" / name, target_is_directory=True)
    monkeypatch.chdir(root)
    return root


def weights(place: FoldPaths) -> dict[str, bytes]:
    return {f"{path.name}/{name}": value.tobytes() for path in sorted(place.root.glob("snapshot-*.safetensors"))
            for name, value in load_file(path).items()}  # fmt: skip


def test_a_fold_stopped_here_goes_on_elsewhere_as_if_it_had_stayed(
    begun: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = status(Choice("labels", workspace=begun))
    assert (shown["trained"], shown["running"], shown["failed"], shown["left"]) == ([], [], [], [0, 1])
    assert [fold["state"] for fold in shown["folds"]] == ["started", "none"]
    root = other_workspace(begun, tmp_path, monkeypatch)
    said = unpack(str(packed))
    assert (said["competition"], said["run"], said["differs"]) == ("labels", "baseline-s0", [])
    undisturbed = written(tmp_path / "undisturbed")
    for workspace in (root, undisturbed):
        assert train(open_experiment(Choice("labels", workspace=workspace)), "0", CPU)["trained"] == [0]
    places = [RunPaths(one / "runs" / "labels" / "baseline-s0").fold(0) for one in (root, undisturbed)]
    assert weights(places[0]) == weights(places[1])
    assert len(weights(places[0])) > 0
    shown = status(Choice("labels", workspace=root))
    assert (shown["trained"], shown["left"]) == ([0], [1])
    assert (shown["folds"][0]["stage"], shown["folds"][0]["epoch"], shown["folds"][0]["epochs"]) == ("all", 2, 2)
    with holding(places[0], todo="wait"):
        shown = status(Choice("labels", workspace=root))
        assert shown["running"] == [0]
        assert shown["folds"][0]["worker"]["process"] == os.getpid()
        with pytest.raises(FoldBusy):
            pack(Choice("labels", workspace=root), str(tmp_path / "busy.zip"))


def test_a_pack_has_no_locks_and_says_what_it_holds(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
        said = json.loads(archive.read(packing.PACK))
    assert names[0] == packing.PACK
    assert sorted(said["files"]) == sorted(names[1:])
    assert {"run.json", "config.yaml", "fold-0/last.json", "fold-0/log.jsonl"} <= set(names)
    assert not [name for name in names if "lock" in name or "lease" in name]


def test_a_run_that_is_there_is_not_written_over(
    begun: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = other_workspace(begun, tmp_path, monkeypatch)
    unpack(str(packed))
    with pytest.raises(DataError, match="is there already"):
        unpack(str(packed))
    assert unpack(str(packed), name="second")["run"] == "second"
    with pytest.raises(ConfigError, match="cannot be the name"):
        unpack(str(packed), name="../out")
    assert sorted(path.name for path in (root / "runs" / "labels").iterdir()) == ["baseline-s0", "second"]


def test_another_machine_is_named(
    begun: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other_workspace(begun, tmp_path, monkeypatch)
    monkeypatch.setattr("kbench.machine.processor", lambda: "Another One 3000")
    said = unpack(str(packed))
    assert len(said["differs"]) == 1
    assert said["differs"][0].endswith("and is Another One 3000")
    assert "not bit for bit" in capsys.readouterr().err


# -- what is no pack -----------------------------------------------------------------------------------------------


def forged(packed: Path, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> Path:
    """A pack whose description and entries were changed."""
    with zipfile.ZipFile(packed) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    said = json.loads(entries.pop(packing.PACK))
    change(said, entries)
    path = packed.with_name("forged.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(packing.PACK, json.dumps(said))
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "a//b", "./a", ".lock", "a\\b", "c:a", "fold-0/.x"]
)
def test_a_place_outside_of_the_run_is_refused(
    begun: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    root = other_workspace(begun, tmp_path, monkeypatch)

    def change(said: dict[str, Any], entries: dict[str, bytes]) -> None:
        entries[name] = b"x"
        said["files"][name] = {"size": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}

    with pytest.raises(DataError, match="a place outside"):
        unpack(str(forged(packed, change)))
    assert not (root / "runs").exists()


def test_what_was_changed_added_or_cut_off_is_refused(
    begun: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = other_workspace(begun, tmp_path, monkeypatch)

    def content(said: dict[str, Any], entries: dict[str, bytes]) -> None:
        entries["run.json"] = entries["run.json"].replace(b"labels", b"lapels")

    def longer(said: dict[str, Any], entries: dict[str, bytes]) -> None:
        entries["run.json"] += b" " * 10_000_000

    def more(said: dict[str, Any], entries: dict[str, bytes]) -> None:
        entries["more"] = b""

    def less(said: dict[str, Any], entries: dict[str, bytes]) -> None:
        del entries["run.json"]

    def later(said: dict[str, Any], entries: dict[str, bytes]) -> None:
        said["format"] = 9

    for change, message in ((content, "not what was packed"), (longer, "not what was packed"), (more, "not those"),
                            (less, "not those"), (later, "format 9")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            unpack(str(forged(packed, change)))
    half = packed.with_name("half.zip")
    half.write_bytes(packed.read_bytes()[: packed.stat().st_size // 2])
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(str(half))
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(str(root / "competitions" / "labels.yaml"))
    assert not [path for path in (root / "runs").rglob("*") if path.is_file()]


def test_a_link_in_a_pack_is_no_link_here(
    begun: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = other_workspace(begun, tmp_path, monkeypatch)
    target = b"/etc/passwd"
    path = forged(packed, lambda said, entries: said["files"].update(
        {"link": {"size": len(target), "sha256": files.hashlib.sha256(target).hexdigest()}}
    ))  # fmt: skip
    link = zipfile.ZipInfo("link")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, target)
    unpack(str(path))
    there = root / "runs" / "labels" / "baseline-s0" / "link"
    assert not there.is_symlink()
    assert there.read_bytes() == target
