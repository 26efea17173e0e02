"""Real processes that send: killed at any moment, two at once, on a disk that fills up. One slot, whatever is typed."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from machines import Done, Machine, ledger, typed, written
from places import ROOT
from processes import Running
from standin import Fault, Gate, StandIn

from kbench.submission.ledger import lineage_path
from kbench.workspace import Workspace

pytestmark = pytest.mark.slow  # a process of kbench for each command

INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL}
SIGNALS = pytest.mark.parametrize("how", INTERRUPTED, ids=[one.name for one in INTERRUPTED])
Start = Callable[[str], Running]


@pytest.fixture
def mine(machine_of_mine: Machine) -> Workspace:
    """A workspace with one submission that was not sent."""
    workspace = machine_of_mine.compete()
    written(workspace, "first")
    return workspace


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Holds one request of the first sender back."""
    held = Gate()
    yield held
    held.open.set()


@pytest.fixture
def start(machine_of_mine: Machine, mine: Workspace) -> Iterator[Start]:
    """Start a command; whatever is left of it in the end is killed."""
    started: list[Running] = []

    def begin(line: str) -> Running:
        started.append(machine_of_mine.start(line))
        return started[-1]

    yield begin
    for running in started:
        if running.open:
            running.process.kill()
            running.ended()


@pytest.fixture
def held(standin: StandIn, gate: Gate, start: Start) -> Callable[..., Running]:
    """Start a command and wait until one of its requests is held back."""

    def begin(line: str, route: str, **fault: bool) -> Running:
        standin.plan(route, Fault(gate=gate, **fault))
        running = start(line)
        while not gate.reached.wait(0.1):
            assert running.code is None, running.ended()
        return running

    return begin


def end(machine: Machine, running: Running, how: signal.Signals) -> str:
    """Send a signal, wait for the end, and return what was said."""
    os.kill(running.pid, how)
    return machine.ended(running, INTERRUPTED[how]).err


def then(machine: Machine, command: str, code: int = 0) -> Done:
    """Type a command that a message names."""
    assert command.startswith("kbench ")
    return machine.kbench(command.removeprefix("kbench "), code)


# submit-stopped-in-upload ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "how"),
    [
        ("GetSubmissionLimits", signal.SIGINT),
        ("StartSubmissionUpload", signal.SIGKILL),
        *(("PUT", how) for how in INTERRUPTED),
    ],
)
def test_a_submission_stopped_before_it_counts_goes_on_by_itself(
    route, how, held, mine, standin, gate, machine_of_mine
):
    """Trial submit-stopped-in-upload: nothing was submitted, and the same command sends it, once."""
    said = end(machine_of_mine, held("submit --no-wait", route), how)
    gate.open.set()
    assert ledger(mine)["first"].status == ("uploading" if route in ("StartSubmissionUpload", "PUT") else "written")
    again = "kbench submit --no-wait"
    if how is signal.SIGINT:
        assert "stopped; nothing of 'first' was submitted" in said
        again = typed(said)
        assert again == "kbench submit first"
        standin.scores.append({"status": "COMPLETE", "publicScore": "0.5"})
    then(machine_of_mine, again)
    assert len(standin.calls("CreateSubmission")) == len(standin.submissions) == 1
    assert ledger(mine)["first"].ref == "4000"


@SIGNALS
def test_a_submission_stopped_while_it_may_count_is_not_sent_twice_unasked(
    how, held, mine, standin, gate, machine_of_mine
):
    """Trial submit-stopped-in-upload: cut in the call that counts, which did not arrive."""
    said = end(machine_of_mine, held("submit --no-wait", "CreateSubmission", reset=True), how)
    gate.open.set()
    assert ledger(mine)["first"].status == "sending"
    if how is signal.SIGINT:
        assert "it may have counted" in said
        assert typed(said) == "kbench submit first"
    done = machine_of_mine.kbench("submit first --no-wait", code=3)
    assert "was being sent before, and the service does not list it" in done.err
    assert not standin.submissions
    then(machine_of_mine, f"{typed(done.err)} --no-wait")
    assert len(standin.submissions) == 1
    assert ledger(mine)["first"].tag in standin.submissions[0]["description"]


@SIGNALS
def test_a_submission_that_counted_before_it_was_stopped_is_found(how, held, mine, standin, gate, machine_of_mine):
    """Trial submit-stopped-in-upload: cut before the answer arrived."""
    end(machine_of_mine, held("submit --no-wait", "CreateSubmission", done=True), how)
    gate.open.set()
    assert ledger(mine)["first"].status == "sending"
    machine_of_mine.kbench("submit --no-wait")
    assert len(standin.calls("CreateSubmission")) == 1
    assert (ledger(mine)["first"].status, ledger(mine)["first"].ref) == ("sent", "4000")


@SIGNALS
def test_a_submission_stopped_while_its_score_is_awaited_is_sent(how, held, mine, standin, gate, machine_of_mine):
    """Trial submit-stopped-in-upload: stopped after it was answered."""
    said = end(machine_of_mine, held("submit", "GetSubmission"), how)
    gate.open.set()
    assert ledger(mine)["first"].status == "sent"
    if how is signal.SIGINT:
        assert typed(said) == "kbench leaderboard"
    standin.submissions[0] |= {"status": "COMPLETE", "publicScore": "0.5"}
    assert "0.5" in machine_of_mine.kbench("leaderboard").out
    assert len(standin.calls("CreateSubmission")) == 1


@pytest.mark.parametrize("signals", [1, 2])
def test_an_upload_interrupted_twice_is_still_whole(signals, held, mine, standin, gate, machine_of_mine):
    """Trial submit-stopped-in-upload: an impatient user; the resend is the first one all the same."""
    running = held("submit --no-wait", "PUT")
    for _ in range(signals):
        os.kill(running.pid, signal.SIGINT)
    assert running.ended(60).returncode in (130, -signal.SIGINT)
    gate.open.set()
    machine_of_mine.kbench("submit --no-wait")
    assert len(standin.submissions) == 1


@pytest.mark.parametrize(
    ("route", "fault", "status", "code"),
    [("PUT", {}, "uploading", 1), ("CreateSubmission", {"done": True}, "sending", 1)],
    ids=["before the call that counts", "after it"],
)
def test_a_disk_that_fills_up_loses_no_submission(
    route, fault, status, code, held, mine, standin, gate, machine_of_mine
):
    """Trial submit-stopped-in-upload: what the ledger cannot say is not done, and what was done is found again."""
    running = held("submit --no-wait", route, **fault)
    full = lineage_path(ledger(mine)["first"].file).stat().st_size - 100  # no record fits, a message does
    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (full, full))
    gate.open.set()
    done = machine_of_mine.ended(running, code)
    assert "cannot write" in done.err
    assert len(standin.submissions) == (1 if fault else 0)
    assert ledger(mine)["first"].status == status
    machine_of_mine.kbench("submit --no-wait")
    assert len(standin.submissions) == 1
    assert ledger(mine)["first"].ref == "4000"


# submit-twice-at-once --------------------------------------------------------------------------------------------

SECOND = [
    "submit",
    "submit first",
    "submit --resend",
    "submit first --resend",
    "submit --file submissions/tiny/first.csv",
]


@pytest.mark.parametrize("route", ["PUT", "CreateSubmission"])
def test_one_slot_whatever_is_typed_in_the_second_shell(route, held, mine, standin, gate, machine_of_mine):
    """Trial submit-twice-at-once: a slow upload, or a slow answer, and a second shell."""
    first = held("submit --no-wait", route)
    for line in SECOND:
        done = machine_of_mine.kbench(f"{line} --no-wait", code=1)
        assert f"'first' is being sent or written now by process {first.pid}" in done.err
    row = machine_of_mine.kbench("leaderboard --json").json()["rows"][0]
    assert row["status"] == ("uploading" if route == "PUT" else "sending")
    gate.open.set()
    machine_of_mine.ended(first)
    assert len(standin.calls("CreateSubmission")) == len(standin.submissions) == 1
    assert (ledger(mine)["first"].status, ledger(mine)["first"].ref) == ("sent", "4000")
    assert "has no submission that was not sent yet" in machine_of_mine.kbench("submit", code=1).err


def test_a_sender_is_seen_through_another_folder(held, mine, standin, gate, machine_of_mine, tmp_path):
    """Trial submit-twice-at-once: a second workspace, linked to the same files."""
    other = Workspace(tmp_path / "other")
    (other.root / "competitions").mkdir(parents=True)
    for name in ("submissions", "data"):
        (other.root / name).symlink_to(mine.root / name)
    other.competition("tiny").symlink_to(mine.competition("tiny"))
    first = held("submit --no-wait", "PUT")
    done = machine_of_mine.kbench("submit --no-wait", code=1, cwd=other.root)
    assert f"now by process {first.pid}" in done.err
    gate.open.set()
    machine_of_mine.ended(first)
    assert len(standin.submissions) == 1


def test_a_sender_that_hangs_is_ended_as_the_message_says(held, mine, standin, gate, machine_of_mine):
    """Trial submit-twice-at-once: the remedy is typed."""
    first = held("submit --no-wait", "PUT")
    done = machine_of_mine.kbench("submit --no-wait", code=1)
    assert typed(done.err) == f"kill {first.pid}"
    machine_of_mine.run(typed(done.err))
    machine_of_mine.ended(first, -signal.SIGTERM)
    gate.open.set()
    machine_of_mine.kbench("submit --no-wait")
    assert len(standin.submissions) == 1


def test_two_that_start_at_the_same_moment_spend_one_slot(start, mine, standin, gate, machine_of_mine):
    """Trial submit-twice-at-once: nobody was first; the upload is slow for whoever is."""
    standin.plan("PUT", Fault(gate=gate))
    both = [start("submit --no-wait"), start("submit first --no-wait")]
    assert gate.reached.wait(120)
    while all(running.code is None for running in both):
        time.sleep(0.05)
    refused = next(running for running in both if running.code is not None)
    gate.open.set()
    sender = both[1 - both.index(refused)]
    machine_of_mine.ended(sender)
    assert f"now by process {sender.pid}" in machine_of_mine.ended(refused, 1).err
    assert len(standin.calls("CreateSubmission")) == len(standin.submissions) == 1
    assert ledger(mine)["first"].ref == "4000"


def test_one_file_of_the_users_own_sent_twice_at_once_is_one_submission(start, mine, standin, gate, machine_of_mine):
    """Trial submit-twice-at-once: the same rows, under any name."""
    text = (mine.submissions("tiny") / "first.csv").read_text().replace("0.1", "0.2", 1).replace("0.1", "0.0", 1)
    for name in ("mine.csv", "copy.csv"):
        (mine.root / name).write_text(text)
    standin.plan("PUT", Fault(gate=gate))
    first = start("submit --file mine.csv --no-wait")
    assert gate.reached.wait(120)
    for name in ("mine.csv", "copy.csv"):
        done = machine_of_mine.kbench(f"submit --file {name} --no-wait", code=1)
        assert f"'mine' is being sent or written now by process {first.pid}" in done.err
    gate.open.set()
    machine_of_mine.ended(first)
    assert len(standin.submissions) == 1
    assert {name: entry.status for name, entry in ledger(mine).items()} == {"first": "written", "mine": "sent"}


WRITE = """
import sys
from pathlib import Path
from kbench.submission.ledger import Lineage, reserve
with reserve(Path(sys.argv[1]), sys.argv[2]) as place:
    file = place.file(".csv")
    file.write_text("id,p\\n1,0.25\\n")
    place.record(file, Lineage("tiny"))
    print(place.name)
"""


def test_a_file_that_is_being_sent_is_never_written_over(held, mine, standin, gate, machine_of_mine):
    """Trial submit-twice-at-once: `kbench ensemble` beside a sender takes another name."""
    before = (mine.submissions("tiny") / "first.csv").read_bytes()
    first = held("submit --no-wait", "PUT")
    words = [sys.executable, "-c", WRITE, str(mine.submissions("tiny")), "first"]
    wrote = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=machine_of_mine.variables)
    assert wrote.stdout == "first-2\n"
    gate.open.set()
    machine_of_mine.ended(first)
    assert list(standin.uploads.values()) == [before]
    assert {name: entry.status for name, entry in ledger(mine).items()} == {"first": "sent", "first-2": "written"}


def test_what_the_leaderboard_learns_while_a_sender_waits_is_kept(held, mine, standin, gate, machine_of_mine):
    """Trial submit-twice-at-once: another command writes the score first."""
    first = held("submit --no-wait", "CreateSubmission", done=True)
    standin.submissions[0] |= {"status": "COMPLETE", "publicScore": "0.5"}
    assert machine_of_mine.kbench("leaderboard --json").json()["rows"][0]["status"] == "complete"
    gate.open.set()
    machine_of_mine.ended(first)
    assert (ledger(mine)["first"].status, ledger(mine)["first"].public) == ("complete", 0.5)


def test_no_lock_is_in_the_way_of_version_control(held, mine, gate, machine_of_mine):
    """Only the file and its record are seen beside each other; locks are hidden and ignored."""
    machine_of_mine.ended(start_and_open(held, gate))
    ignored = re.findall(r"^submissions/.*$", (ROOT / ".gitignore").read_text(), re.MULTILINE)
    hidden = [path.name for path in mine.submissions("tiny").iterdir() if path.name.startswith(".")]
    assert ignored == ["submissions/*/.*lock"]
    assert sorted(hidden) == [".first.lock", ".lock"]
    assert all(Path(f"submissions/tiny/{name}").match(ignored[0]) for name in hidden)


def start_and_open(held: Callable[..., Running], gate: Gate) -> Running:
    """Start a sending and let it go on."""
    running = held("submit --no-wait", "PUT")
    gate.open.set()
    return running
