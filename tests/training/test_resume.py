from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import toy

from kbench import records
from kbench.config.stage import RangeTest
from kbench.errors import KbenchError
from kbench.models.checkpoint import read_checkpoint, read_tensors
from kbench.training.events import Note
from kbench.training.fold import begin, state_of, train_fold
from kbench.training.fold_context import TIMES
from kbench.training.resume import Progress, load_resume, save_resume
from kbench.training.stage_plan import StagePlan
from kbench.workspace import FoldPaths

TRAINING = toy.IDENTITY["training"]
pytestmark = [
    pytest.mark.usefixtures("quick_disk"),  # no power is cut: what a process wrote is there when it dies
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # fork, Python 3.12
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # two workers on one core
]


def session(folder: Path, stages: Sequence[StagePlan], *, events: int | None = None, **changes: Any) -> int:
    """Train a fold, or until it has made some events; return how many there were."""
    paths = FoldPaths(folder)
    paths.root.mkdir(parents=True, exist_ok=True)
    resumed = begin(paths, training=TRAINING)
    lines = resumed[0].log_lines if resumed else 0
    context = toy.context(folder, lines=lines, **{"checkpoint_s": 0.0, "rows": 28, **changes})
    running = train_fold(context, stages, toy.build, resumed=resumed)
    made = 0
    for event in running:
        if isinstance(event, Note) and event.text.startswith("going on"):
            continue  # who stops there has done nothing
        made += 1
        if made == events:
            running.close()
            return made
    return made


def result(folder: Path) -> dict[str, Any]:
    """Everything a fold leaves, but for times and where it was interrupted."""
    paths = FoldPaths(folder)
    found: dict[str, Any] = {}
    for path in paths.snapshots():
        checkpoint = read_checkpoint(path)
        assert checkpoint is not None
        found[path.name] = {**checkpoint.info, "files": None, "of_itself": None}
        found[f"{path.name} tensors"] = frozen(read_tensors(checkpoint.tensors))
    for path in sorted(paths.root.glob("end-*.safetensors")):
        found[path.name] = frozen(read_tensors(path))
    found["log"] = log_of(paths)
    found["plan"] = json.loads(paths.plan.read_text())
    found["files"] = sorted(path.name for path in paths.root.iterdir())
    found["state"] = state_of(paths, training=TRAINING)
    return found


def frozen(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


def log_of(paths: FoldPaths) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in paths.log.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == other[name], name


def everything(**changes: Any) -> list[StagePlan]:
    """Two stages with all that is random or remembered: dropout, batch norm, mixup, averages, momentum."""
    head = toy.stage(
        "head", groups="head", schedule=("constant", {"epochs": 1}), optimizer=("adamw", {}), lr=0.01,
        augment=("side_on", {}), batch_size=7, keep=frozenset(),
    )  # fmt: skip
    whole = toy.stage(
        "all", index=1, schedule=("sgdr", {"cycles": 2, "cycle_len": 1}), optimizer=("sgd", {"momentum": 0.9}),
        lr_decay=3.0, weight_decay=0.01, augment=("top_down", {}), mix=("mixup", {}), ema=0.8, accumulate=2,
        batch_size=5, clip=1.0, keep=frozenset({"cycles", "best"}), **changes,
    )  # fmt: skip
    return [head, whole]


def adaptive() -> list[StagePlan]:
    """Stages whose course depends on scores: plateau, early stopping, a warm start by name, a fresh model."""
    first = toy.stage(
        "first", schedule=("plateau", {"epochs": 6, "patience": 0, "factor": 0.5}), lr=0.3, early_stop=2,
        optimizer=("adamw", {}), batch_size=9, keep=frozenset({"best", "last"}),
    )  # fmt: skip
    second = toy.stage(
        "second", index=1, start="fresh", schedule=("one_cycle", {"epochs": 1, "momenta": (0.95, 0.85)}), accumulate=2,
        batch_size=8, mix=("cutmix", {}), augment=("side_on", {}),
    )  # fmt: skip
    third = toy.stage("third", index=2, start="first", schedule=("constant", {"epochs": 1}), ema=0.5, subset="full")
    return [first, second, third]


def finding() -> list[StagePlan]:
    """A stage that finds its rate."""
    stage = toy.stage(
        "found", lr="find", range_test=RangeTest(steps=60), batch_size=8, augment=("basic", {}),
        keep=frozenset({"last"}), schedule=("constant", {"epochs": 1}),
    )  # fmt: skip
    return [stage]


RECIPES: dict[str, Callable[[], list[StagePlan]]] = {"everything": everything, "adaptive": adaptive, "finding": finding}


def until_done(folder: Path, stages: Sequence[StagePlan], *, events: int, **changes: Any) -> int:
    """Train a fold in sessions that are stopped after some events; return how many sessions it took."""
    for sessions in range(1, 200):
        if session(folder, stages, events=events, **changes) < events:
            return sessions
    raise AssertionError("the fold does not get on")


# -- stopped between two events ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "every"),
    [("everything", 1), ("finding", 1), ("adaptive", 4), pytest.param("adaptive", 1, marks=pytest.mark.slow)],
)
def test_a_fold_stopped_at_an_event_ends_as_if_it_had_not_been(tmp_path: Path, name: str, every: int) -> None:
    stages = RECIPES[name]()
    total = session(tmp_path / "whole", stages)
    expected = result(tmp_path / "whole")
    for event in range(1, total + 1, every):
        folder = tmp_path / f"stopped-{event}"
        session(folder, stages, events=event)
        session(folder, stages)
        assert_same(result(folder), expected)


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("events", [3, 5])
def test_a_fold_stopped_again_and_again_ends_as_if_it_had_not_been(tmp_path: Path, name: str, events: int) -> None:
    stages = RECIPES[name]()
    session(tmp_path / "whole", stages)
    assert until_done(tmp_path / "stopped", stages, events=events) > 1
    assert_same(result(tmp_path / "stopped"), result(tmp_path / "whole"))


def test_without_resume_points_inside_an_epoch_it_goes_on_from_the_last_epoch(tmp_path: Path) -> None:
    stages = everything()
    total = session(tmp_path / "whole", stages, checkpoint_s=1000.0)
    for event in range(1, total + 1, 3):
        session(tmp_path / f"stopped-{event}", stages, events=event, checkpoint_s=1000.0)
        session(tmp_path / f"stopped-{event}", stages, checkpoint_s=1000.0)
        assert_same(result(tmp_path / f"stopped-{event}"), result(tmp_path / "whole"))


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"channels_last": False}], ids=["bf16", "contiguous"])
def test_other_precisions_and_layouts_are_resumed_to_the_bit_too(tmp_path: Path, changes: dict[str, Any]) -> None:
    stages = everything(**changes)
    session(tmp_path / "whole", stages)
    until_done(tmp_path / "stopped", stages, events=4)
    assert_same(result(tmp_path / "stopped"), result(tmp_path / "whole"))


def test_the_number_of_loader_workers_changes_nothing(tmp_path: Path) -> None:
    for workers in (0, 2):
        session(tmp_path / str(workers), everything(), workers=workers)
        assert not multiprocessing.active_children()  # left to the garbage collector, each costs 5 s
    assert_same(result(tmp_path / "2"), result(tmp_path / "0"))


def test_the_number_of_loader_workers_may_change_when_a_fold_goes_on(tmp_path: Path) -> None:
    session(tmp_path / "whole", everything())
    session(tmp_path / "stopped", everything(), events=5)
    session(tmp_path / "stopped", everything(), workers=2)
    assert_same(result(tmp_path / "stopped"), result(tmp_path / "whole"))


def test_another_seed_or_fold_ends_elsewhere(tmp_path: Path) -> None:
    session(tmp_path / "a", everything())
    session(tmp_path / "b", everything(), seed=1)
    session(tmp_path / "c", everything(), number=1)
    ends = [result(tmp_path / name)["snapshot-all-1.json tensors"]["fc.weight"] for name in "abc"]
    assert len(set(ends)) == 3


def test_a_micro_batch_found_when_memory_ran_out_is_remembered(tmp_path: Path) -> None:
    attempts: list[int] = []

    def hungry(model, images, target, loss):
        attempts.append(len(images))
        found = loss(model(images), target)
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    stages = [toy.stage(step=hungry, batch_size=8)]
    session(tmp_path / "whole", stages)
    session(tmp_path / "stopped", stages, events=5)
    attempts.clear()
    session(tmp_path / "stopped", stages)
    assert max(attempts) <= 3
    assert_same(result(tmp_path / "stopped"), result(tmp_path / "whole"))
    assert sum(line["event"] == "note" for line in result(tmp_path / "whole")["log"]) == 2


# -- killed by the system ------------------------------------------------------------------------------------------


def child(work: Callable[[], None]) -> int:
    """Run something in a forked process with one thread; return its wait status."""
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def count_operations(folder: Path, *, kill_at: int | None) -> list[int]:
    """Count the files opened for writing, renamed and removed below a folder; die before one of them."""
    count = [0]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in ("os.rename", "os.remove")) and str(args[0]).startswith(str(folder)):
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1

    sys.addaudithook(hook)
    return count


def killed_before(operation: int, folder: Path, stages: Sequence[StagePlan]) -> bool:
    """Train until a file operation and be killed there; return whether there was one."""

    def work() -> None:
        count_operations(folder, kill_at=operation)
        session(folder, stages)

    status = child(work)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    return status != 0


@pytest.mark.parametrize(
    ("name", "first", "every"),
    [("everything", 3, 17), ("adaptive", 5, 29), ("finding", 1, 13),
     pytest.param("everything", 0, 1, marks=pytest.mark.slow), pytest.param("adaptive", 0, 2, marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_fold_killed_at_any_file_operation_ends_as_if_it_had_not_been(
    tmp_path: Path, name: str, first: int, every: int
) -> None:
    stages = RECIPES[name]()
    assert child(lambda: session(tmp_path / "whole", stages) and None) == 0
    expected = result(tmp_path / "whole")
    operation = first
    while killed_before(operation, tmp_path / f"killed-{operation}", stages):
        folder = tmp_path / f"killed-{operation}"
        assert child(lambda folder=folder: session(folder, stages) and None) == 0
        assert_same(result(folder), expected)
        operation += every
    assert operation > first


@pytest.mark.parametrize("most", [100, 1_000, 3_000])
def test_a_full_disk_stops_a_fold_with_a_message_and_costs_nothing(tmp_path: Path, most: int) -> None:
    stages = everything()
    assert child(lambda: session(tmp_path / "whole", stages) and None) == 0

    def short_of_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        try:
            session(tmp_path / "short", stages)
        except KbenchError as error:
            os._exit(7 if "cannot write" in error.what and error.expected and error.todo else 1)

    assert os.waitstatus_to_exitcode(child(short_of_space)) == 7
    assert child(lambda: session(tmp_path / "short", stages) and None) == 0
    assert_same(result(tmp_path / "short"), result(tmp_path / "whole"))


# -- resume points -------------------------------------------------------------------------------------------------


def test_a_resume_point_is_read_back_whole(tmp_path: Path) -> None:
    paths = FoldPaths(tmp_path)
    progress = Progress(1, 2, 3, 4, 5, [0.1, -2.5], 0.1, 0, 7, [1 / 3, 12.0, 12.0])
    save_resume(paths, progress, {"model/w": torch.arange(3.0)}, training=TRAINING)
    found = load_resume(paths, training=TRAINING)
    assert found is not None
    assert found[0] == progress
    assert found[1]["model/w"].tolist() == [0, 1, 2]


def test_the_resume_point_of_another_training_does_not_count(tmp_path: Path) -> None:
    save_resume(FoldPaths(tmp_path), Progress(), {"w": torch.ones(1)}, training="other")
    assert load_resume(FoldPaths(tmp_path), training=TRAINING) is None
    assert begin(FoldPaths(tmp_path), training=TRAINING) is None
    assert not list(tmp_path.iterdir())


def test_only_the_newest_resume_point_is_kept(tmp_path: Path) -> None:
    for batch in range(5):
        save_resume(FoldPaths(tmp_path), Progress(batch=batch), {"w": torch.ones(1)}, training=TRAINING)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last-0-0-4.safetensors", "last.json"]


@pytest.mark.parametrize("damage", ["tensors", "json"])
def test_a_damaged_resume_point_is_none_and_the_fold_begins_anew(tmp_path: Path, damage: str) -> None:
    stages = everything()
    session(tmp_path / "whole", stages)
    folder = tmp_path / "damaged"
    session(folder, stages, events=9)
    (tensors,) = folder.glob("last-*.safetensors")
    (tensors if damage == "tensors" else folder / "last.json").write_bytes(b"rubbish")
    session(folder, stages)
    assert_same(result(folder), result(tmp_path / "whole"))


def test_what_killed_processes_left_is_removed_when_the_fold_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".tmp-123-0a0b0c0d-last-0-1-2.safetensors").write_bytes(b"half")
    (tmp_path / "last-9-9-9.safetensors").write_bytes(b"an orphan")
    session(tmp_path, finding())
    left = [path.name for path in tmp_path.iterdir()]
    assert not [name for name in left if name.startswith((".tmp", "last"))]


def test_a_line_half_written_is_no_line(tmp_path: Path) -> None:
    stages = finding()
    session(tmp_path / "whole", stages)
    session(tmp_path / "stopped", stages, events=4)
    with open(tmp_path / "stopped" / "log.jsonl", "a", encoding="utf-8") as log:
        log.write('{"event": "epo')
    session(tmp_path / "stopped", stages)
    assert log_of(FoldPaths(tmp_path / "stopped")) == log_of(FoldPaths(tmp_path / "whole"))


def test_a_finished_fold_leaves_no_resume_point(tmp_path: Path) -> None:
    session(tmp_path, finding())
    assert state_of(FoldPaths(tmp_path), training=TRAINING)["state"] == "done"
    assert state_of(FoldPaths(tmp_path), training="other")["state"] == "none"
    assert not records.read_seal(FoldPaths(tmp_path).last)
