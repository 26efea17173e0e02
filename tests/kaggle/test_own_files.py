"""Files of the user's own, edited files, damaged records: what is sent is known, and what was sent is kept."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from lookalikes import table
from machines import YAML, Done, ledger, typed, written
from standin import StandIn

from kbench.submission.ledger import Entry, lineage_path
from kbench.workspace import Workspace

pytestmark = pytest.mark.slow  # the real client against the stand-in

Kbench = Callable[..., Done]


def edited(file: Path, *, rows: int | None = None) -> Path:
    """Change a submission so that it still fits the sample, or leave out rows."""
    frame = pd.read_csv(file, dtype={"id": str}).iloc[slice(rows)]
    frame["0"] += 0.01
    frame["1"] -= 0.01
    frame.to_csv(file, index=False)
    return file


def own(workspace: Workspace, name: str = "mine.csv") -> Path:
    """Put a file of the user's own into the workspace."""
    content = (workspace.data("tiny") / "sample_submission.csv").read_bytes()
    (workspace.root / name).write_bytes(content)
    return edited(workspace.root / name)


def words(command: str) -> list[str]:
    """Return what is typed after `kbench`."""
    first, *rest = shlex.split(command)
    assert first == "kbench"
    return rest


# --file ----------------------------------------------------------------------------------------------------------


def test_a_file_of_the_users_own_is_checked_kept_and_sent_without_a_score(
    images: Workspace, standin: StandIn, kbench: Kbench
) -> None:
    file = own(images)
    standin.scores.append({"status": "COMPLETE", "publicScore": "0.55"})
    found = kbench("submit", "--file", "mine.csv", "--json").json()
    assert (found["status"], found["cv"], found["public"], found["gap"]) == ("complete", None, 0.55, None)
    assert list(standin.uploads.values()) == [file.read_bytes()]
    entry = ledger(images)["mine"]
    assert entry.file == images.submissions("tiny") / "mine.csv"
    assert entry.file.read_bytes() == file.read_bytes()
    assert entry.lineage.score is None
    assert (entry.lineage.runs, entry.lineage.metric, entry.lineage.maximise) == ([], "log_loss", False)
    assert standin.calls("CreateSubmission")[0].json()["submissionDescription"] == f"mine [{entry.tag}]"
    (row,) = kbench("leaderboard", "--json").json()["rows"]
    assert (row["name"], row["cv"], row["public"]) == ("mine", None, 0.55)
    assert row["notes"] == ["a file of the user's own, 'mine.csv': nothing is known of its making"]


def test_the_same_rows_are_not_sent_twice_under_another_name(
    images: Workspace, standin: StandIn, kbench: Kbench
) -> None:
    own(images)
    own(images, "copy.csv")
    standin.scores.append({"status": "COMPLETE", "publicScore": "0.55"})
    kbench("submit", "--file", "mine.csv")
    done = kbench("submit", "--file", "copy.csv", code=1)
    assert "'mine' is sent and scored: 0.55" in done.err
    assert len(standin.submissions) == 1


def test_a_file_of_its_own_never_takes_the_name_of_another(images: Workspace, standin: StandIn, kbench: Kbench) -> None:
    written(images, "first")
    kbench("submit", "--no-wait")
    own(images, "first.csv")
    kbench("submit", "--file", "first.csv", "--no-wait")
    assert {name: entry.status for name, entry in ledger(images).items()} == {"first": "sent", "first-2": "sent"}


def test_a_file_that_lies_among_the_submissions_stays_where_it_is(
    images: Workspace, standin: StandIn, kbench: Kbench
) -> None:
    file = own(images)
    place = images.submissions("tiny") / "placed.csv"
    place.parent.mkdir(parents=True)
    file.rename(place)
    done = kbench("submit", "submissions/tiny/placed.csv", code=1)
    assert "has no record 'placed.lineage.json'" in done.err
    kbench(*words(typed(done.err)), "--no-wait")
    assert [path.name for path in place.parent.glob("*.csv")] == ["placed.csv"]
    assert ledger(images)["placed"].status == "sent"


@pytest.mark.parametrize(
    ("name", "says"),
    [("short.csv", "ids are missing"), ("mine.txt", "does not end in .csv or .csv.gz"), ("none.csv", "no such file")],
)
def test_a_file_that_would_be_refused_is_neither_kept_nor_sent(
    name: str, says: str, images: Workspace, standin: StandIn, kbench: Kbench
) -> None:
    edited(own(images, "short.csv"), rows=2)
    own(images, "mine.txt")
    done = kbench("submit", "--file", name, code=1)
    assert says in done.err
    assert ledger(images) == {}
    assert not standin.seen


def test_a_file_with_another_ending_is_renamed_as_the_message_says(
    images: Workspace, standin: StandIn, kbench: Kbench
) -> None:
    own(images, "my file.txt")
    done = kbench("submit", "--file", "my file.txt", code=1)
    subprocess.run(typed(done.err), shell=True, check=True)
    done = kbench("submit", "--file", "my file.csv", code=1)
    assert "such as 'my-file'" in done.err
    Path("my file.csv").rename("my-file.csv")
    kbench("submit", "--file", "my-file.csv", "--no-wait")
    assert len(standin.submissions) == 1


def test_a_name_and_a_file_of_ones_own_exclude_each_other(images: Workspace, kbench: Kbench) -> None:
    assert "a submission with --file" in kbench("submit", "first", "--file", "mine.csv", code=1).err


# edits -----------------------------------------------------------------------------------------------------------


def test_a_valid_edit_is_noticed_and_sent_as_the_message_says(
    entry: Entry, images: Workspace, standin: StandIn, kbench: Kbench
) -> None:
    edited(entry.file)
    done = kbench("submit", code=1)
    assert "is not what was written" in done.err
    assert not standin.calls("StartSubmissionUpload")
    commands = [part for part in done.err.split("`") if part.startswith("kbench submit")]
    kbench(*words(commands[0]), "--no-wait")
    assert ledger(images)["first-2"].lineage.score is None
    assert list(standin.uploads.values()) == [entry.file.read_bytes()]
    assert (ledger(images)["first"].status, ledger(images)["first"].lineage.score) == ("written", 0.5)


@pytest.fixture
def here(workspace: Workspace, standin: StandIn, images: Workspace) -> Workspace:
    """The same competition with its solution at hand: it is graded on this machine."""
    sample = pd.read_csv(workspace.data("tiny") / "sample_submission.csv", dtype=str)
    (workspace.root / "solution.csv").write_bytes(table(["id", "label"], [(name, 0) for name in sample["id"]]))
    source = "source: {name: local, path: data/tiny, solution: solution.csv}"
    text = YAML.replace("source: {name: kaggle, slug: tiny-images}", source)
    workspace.competition("tiny").write_text(text)
    return workspace


def test_a_valid_edit_is_noticed_where_it_is_graded_here(here: Workspace, kbench: Kbench) -> None:
    entry = written(here, "first")
    kbench("submit")
    scored = ledger(here)["first"]
    assert scored.status == "complete"
    edited(entry.file)
    done = kbench("submit", "first", code=1)
    assert "is not what was written" in done.err
    assert ledger(here)["first"] == scored
    commands = [part for part in done.err.split("`") if part.startswith("kbench submit")]
    found = kbench(*words(commands[0]), "--json").json()
    assert found["public"] < scored.public
    assert (found["cv"], ledger(here)["first"]) == (None, scored)


def test_a_submission_whose_file_is_gone_says_so(entry: Entry, images: Workspace, kbench: Kbench) -> None:
    kbench("submit", "--no-wait")
    entry.file.unlink()
    assert kbench("submit", "first", "--no-wait", "--json").json()["status"] == "sent"  # it needs no file any more


# records ---------------------------------------------------------------------------------------------------------


def test_a_damaged_record_of_what_was_sent_is_put_aside_and_nothing_is_lost(
    entry: Entry, images: Workspace, standin: StandIn, kbench: Kbench
) -> None:
    kbench("submit", "--no-wait")
    record = lineage_path(entry.file)
    text = record.read_text().replace('"status"', '"status", ')
    record.write_text(text)
    sent = entry.file.read_bytes()
    for command in ("submit", "leaderboard"):
        done = kbench(command, code=1)
        assert "is not a submission's record" in done.err
        assert "delete" not in done.err
    subprocess.run(typed(done.err), shell=True, check=True)
    assert kbench("leaderboard", "--json").json()["rows"] == []
    assert record.with_name(f"{record.name}.damaged").read_text() == text
    own(images, "first.csv")
    kbench("submit", "--file", "first.csv", "--no-wait")
    assert entry.file.read_bytes() == sent
    assert list(ledger(images)) == ["first-2"]
