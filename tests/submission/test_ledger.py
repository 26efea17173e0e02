from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from places import ROOT

from kbench import files
from kbench.errors import ConfigError, DataError, SubmissionError
from kbench.submission import ledger
from kbench.submission.ledger import (
    Entry,
    Lineage,
    adopt,
    free_name,
    hold,
    leaderboard_rows,
    lineage_path,
    new_entry,
    newest_unsent,
    rank_correlation,
    read_entry,
    read_ledger,
    reserve,
    update_entry,
)

LINEAGE = Lineage(
    "dogs",
    runs=["baseline-s0"],
    members=[{"run": "baseline-s0", "fold": 0, "stage": "head", "cycle": 1}],
    weights=[1.0],
    thresholds={"tags": 0.2},
    views={"name": "flip"},
    folds="f00d",
    hashes={"baseline-s0": "beef"},
    commit="abc123",
    metric="log_loss",
    maximise=False,
    score=0.05,
    low=0.04,
    high=0.06,
    notes=["folds 3 and 4 are missing"],
)


def submission(folder: Path, name: str = "a.csv", content: str = "id,p\n1,0.5\n") -> Path:
    (folder / name).write_text(content)
    return folder / name


def test_an_entry_lies_beside_its_file_and_comes_back_whole(tmp_path: Path) -> None:
    entry = new_entry(submission(tmp_path), LINEAGE)
    assert (tmp_path / "a.lineage.json").is_file()
    assert read_entry(tmp_path / "a.csv") == entry
    assert read_ledger(tmp_path) == [entry]
    assert (entry.status, entry.name, entry.sent, entry.ref) == ("written", "a", None, None)
    assert entry.sha256 == files.sha256(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.json", "a.zip"])
def test_every_kind_of_file_has_the_same_record(name: str) -> None:
    assert lineage_path(Path("x") / name) == Path("x") / "a.lineage.json"


def test_a_name_with_dots_is_kept() -> None:
    assert lineage_path(Path("resnet50.a1-s0.csv.gz")).name == "resnet50.a1-s0.lineage.json"


def test_the_record_is_plain_json_without_paths_of_this_machine(tmp_path: Path) -> None:
    new_entry(submission(tmp_path), LINEAGE)
    text = (tmp_path / "a.lineage.json").read_text()
    assert json.loads(text)["file"] == "a.csv"
    assert str(tmp_path) not in text


def test_a_submission_goes_from_written_to_complete(tmp_path: Path) -> None:
    file = submission(tmp_path)
    assert new_entry(file, LINEAGE).tag == ""
    assert update_entry(file, "uploading").unsent
    sending = update_entry(file, "sending")
    assert sending.sent is not None
    assert not sending.unsent
    tag = sending.tag
    update_entry(file, "sent", ref="4711")
    update_entry(file, "complete", public=0.051)
    done = update_entry(file, "complete", private=0.049, message="ok")
    assert done == read_entry(file)
    assert (done.ref, done.public, done.private, done.message, done.tag) == ("4711", 0.051, 0.049, "ok", tag)
    assert done.sent == sending.sent


def test_a_submission_graded_here_is_never_sent(tmp_path: Path) -> None:
    file = submission(tmp_path)
    new_entry(file, LINEAGE)
    assert update_entry(file, "complete", public=0.1, private=0.2).sent is None


def test_an_unknown_outcome_can_be_found_out(tmp_path: Path) -> None:
    for number, outcome in enumerate(("sent", "complete", "error", "written")):
        file = submission(tmp_path, f"{number}.csv")
        new_entry(file, LINEAGE)
        update_entry(file, "sending")
        update_entry(file, "unknown", message="the answer was lost")
        assert update_entry(file, outcome).status == outcome  # type: ignore[arg-type]


def test_what_never_arrived_is_unsent_again(tmp_path: Path) -> None:
    file = submission(tmp_path)
    new_entry(file, LINEAGE)
    update_entry(file, "sending")
    assert newest_unsent(tmp_path) is None
    assert update_entry(file, "written").sent is None
    assert newest_unsent(tmp_path) is not None


def test_a_refused_submission_is_sent_again_under_a_new_tag(tmp_path: Path) -> None:
    file = submission(tmp_path)
    tag = new_entry(file, LINEAGE).tag
    update_entry(file, "sending")
    update_entry(file, "error", message="too many columns")
    assert update_entry(file, "sending").tag != tag


@pytest.mark.parametrize("status", ["written", "sent", "unknown", "error"])
def test_a_status_cannot_be_skipped(tmp_path: Path, status: ledger.Status) -> None:
    file = submission(tmp_path)
    new_entry(file, LINEAGE)
    with pytest.raises(SubmissionError, match=f"is 'written' and cannot become '{status}'"):
        update_entry(file, status)


def test_two_processes_cannot_send_the_same_file(tmp_path: Path) -> None:
    file = submission(tmp_path)
    new_entry(file, LINEAGE)
    update_entry(file, "sending")
    with pytest.raises(SubmissionError, match="cannot become 'sending'"):
        update_entry(file, "sending")


def test_a_file_that_changed_is_not_sent(tmp_path: Path) -> None:
    file = submission(tmp_path)
    new_entry(file, LINEAGE)
    file.write_text("id,p\n1,0.6\n")
    with pytest.raises(SubmissionError, match="is not what was written"):
        update_entry(file, "sending")
    file.unlink()
    with pytest.raises(SubmissionError, match="is missing"):
        update_entry(file, "sending")
    assert read_entry(file).status == "written"


def test_a_file_without_a_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match=r"no record 'a\.lineage\.json'"):
        update_entry(submission(tmp_path), "sending")


def test_an_unsent_submission_may_be_written_anew(tmp_path: Path) -> None:
    file = submission(tmp_path)
    first = new_entry(file, LINEAGE)
    second = new_entry(submission(tmp_path, content="id,p\n1,0.7\n"), replace(LINEAGE, score=0.04))
    assert read_ledger(tmp_path) == [second]
    assert second.sha256 != first.sha256


def test_the_record_of_a_sent_submission_is_never_replaced(tmp_path: Path) -> None:
    file = submission(tmp_path)
    new_entry(file, LINEAGE)
    sent = update_entry(file, "sending")
    with pytest.raises(SubmissionError, match="'a' is the name of a submission") as caught:
        new_entry(file, LINEAGE)
    assert "'a-2'" in caught.value.todo
    assert read_ledger(tmp_path) == [sent]


def test_a_free_name_is_the_first_that_was_never_sent(tmp_path: Path) -> None:
    assert free_name(tmp_path / "absent", "a") == "a"
    for name in ("a.csv", "a-2.csv.gz"):
        new_entry(submission(tmp_path, name), LINEAGE)
        assert free_name(tmp_path, "a") == name.split(".")[0]
        update_entry(tmp_path / name, "sending")
    assert free_name(tmp_path, "a") == "a-3"
    assert free_name(tmp_path, "b") == "b"


def test_the_newest_unsent_submission_is_found(tmp_path: Path) -> None:
    assert newest_unsent(tmp_path / "absent") is None
    for name in ("b.csv", "a.csv", "c.csv"):
        new_entry(submission(tmp_path, name), LINEAGE)
    update_entry(tmp_path / "c.csv", "sending")
    found = newest_unsent(tmp_path)
    assert found is not None
    assert found.name == "a"


def test_a_clock_that_jumped_does_not_choose_an_older_submission(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        new_entry(submission(tmp_path, name), LINEAGE)
    record = lineage_path(tmp_path / "a.csv")
    record.write_text(record.read_text().replace('"created": "20', '"created": "21'))  # written in the year 21xx
    newest = new_entry(submission(tmp_path, "c.csv"), LINEAGE)
    assert [entry.name for entry in read_ledger(tmp_path)] == ["a", "b", "c"]
    assert newest_unsent(tmp_path) == newest
    again = new_entry(submission(tmp_path, "a.csv", "id,p\n1,0.7\n"), LINEAGE)
    assert newest_unsent(tmp_path) == again
    assert [row["name"] for row in leaderboard_rows(read_ledger(tmp_path))] == ["a", "c", "b"]


def test_records_without_a_number_come_first_in_their_own_order(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.csv"):
        new_entry(submission(tmp_path, name), LINEAGE)
        record = lineage_path(tmp_path / name)
        content = json.loads(record.read_text())
        del content["number"], content["earlier"]
        record.write_text(json.dumps(content))
    assert [entry.name for entry in read_ledger(tmp_path)] == ["b", "a", "c"]
    assert new_entry(submission(tmp_path, "d.csv"), LINEAGE).number == 1
    assert [entry.name for entry in read_ledger(tmp_path)] == ["b", "a", "c", "d"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"lineage": {}}', "null"])
def test_a_damaged_record_is_named_and_not_skipped(tmp_path: Path, text: str) -> None:
    new_entry(submission(tmp_path), LINEAGE)
    (tmp_path / "b.lineage.json").write_text(text)
    with pytest.raises(DataError, match=r"b\.lineage\.json"):
        read_ledger(tmp_path)


def test_a_record_of_an_unknown_status_is_damaged(tmp_path: Path) -> None:
    new_entry(submission(tmp_path), LINEAGE)
    path = tmp_path / "a.lineage.json"
    path.write_text(path.read_text().replace('"written"', '"lost"'))
    with pytest.raises(DataError, match="status 'lost'"):
        read_ledger(tmp_path)


# Names ---------------------------------------------------------------------------------------------------------

WRITE = """
import sys
from pathlib import Path
from kbench import files
from kbench.submission.ledger import Lineage, reserve
with reserve(Path(sys.argv[1]), "a") as place:
    print(place.name, flush=True)
    sys.stdin.readline()
    file = files.write_text(place.file(".csv"), place.name)
    place.record(file, Lineage("dogs"))
"""


def write(folder: Path) -> subprocess.Popen[str]:
    """Start a process that takes the name `a`, says which it got, and writes when it is told to."""
    words = [sys.executable, "-c", WRITE, str(folder)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_two_processes_at_once_write_two_files(tmp_path: Path) -> None:
    both = [write(tmp_path), write(tmp_path)]
    names = [process.stdout.readline().strip() for process in both if process.stdout]
    assert sorted(names) == ["a", "a-2"]
    for process in both:
        process.communicate("\n")
    assert [
        (entry.name, entry.file.read_text()) for entry in sorted(read_ledger(tmp_path), key=lambda one: one.name)
    ] == [
        ("a", "a"),
        ("a-2", "a-2"),
    ]
    assert sorted(entry.number for entry in read_ledger(tmp_path)) == [1, 2]


def test_a_killed_writer_leaves_its_name_free(tmp_path: Path) -> None:
    process = write(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "a\n"
    process.kill()
    process.communicate()
    with reserve(tmp_path, "a") as place:
        assert place.name == "a"


@pytest.mark.parametrize("status", ["sending", "sent", "unknown", "error", "complete", "resent"])
def test_a_file_that_was_sent_is_never_written_over(tmp_path: Path, status: str) -> None:
    file = submission(tmp_path)
    new_entry(file, LINEAGE)
    moves = {"sending": [], "resent": ["error", "uploading", "sending", "written"]}.get(status, [status])
    for move in ["sending", *moves]:
        update_entry(file, move)  # type: ignore[arg-type]
    with reserve(tmp_path, "a") as place:
        assert place.name == "a-2"
    with pytest.raises(SubmissionError, match="'a' is the name of a submission"):
        new_entry(file, LINEAGE)


def test_a_file_without_a_record_is_somebodys_own(tmp_path: Path) -> None:
    submission(tmp_path, "a.csv.gz")
    submission(tmp_path, "a.b.csv")
    with reserve(tmp_path, "a") as place:
        assert place.name == "a-2"
    assert free_name(tmp_path, "a") == "a-2"


def test_an_edited_file_is_not_written_over(tmp_path: Path) -> None:
    file = submission(tmp_path)
    new_entry(file, LINEAGE)
    file.write_text("id,p\n1,0.6\n")
    with reserve(tmp_path, "a") as place:
        assert place.name == "a-2"
    file.unlink()
    with reserve(tmp_path, "a") as place:
        assert place.name == "a"


def test_a_file_of_ones_own_is_known_by_its_content(tmp_path: Path) -> None:
    folder, mine = tmp_path / "tiny", submission(tmp_path, "mine.csv")
    first = adopt(folder, mine, LINEAGE)
    assert (first.name, adopt(folder, submission(tmp_path, "copy.csv"), LINEAGE)) == ("mine", first)
    first.file.write_text("edited")
    again = adopt(folder, mine, LINEAGE)
    assert (again.name, again.file.read_bytes()) == ("mine-2", mine.read_bytes())
    update_entry(again.file, "sending")
    again.file.write_text("edited")
    assert adopt(folder, mine, LINEAGE).status == "sending"


def test_an_unsent_one_gives_its_name(tmp_path: Path) -> None:
    file = submission(tmp_path)
    new_entry(file, LINEAGE)
    update_entry(file, "uploading")
    with reserve(tmp_path, "a") as place:
        assert place.file(".csv") == file
        entry = place.record(submission(tmp_path, content="id,p\n1,0.7\n"), LINEAGE)
    assert (entry.status, entry.number) == ("written", 2)


@pytest.mark.parametrize("name", ["", "../a", "a b", ".a"])
def test_a_name_that_is_no_files_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a submission"), reserve(tmp_path, name):
        pass


def test_a_damaged_ledger_is_said_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "b.lineage.json").write_text("{")
    with pytest.raises(DataError, match=r"b\.lineage\.json"), reserve(tmp_path, "a"):
        pass


def test_a_living_sender_is_named_and_another_waits_where_it_may(tmp_path: Path) -> None:
    file = submission(tmp_path)
    entry = new_entry(file, LINEAGE)
    with hold(file) as held:
        assert held == entry
        for refused in (lambda: hold(file).__enter__(), lambda: new_entry(file, LINEAGE)):
            with pytest.raises(SubmissionError, match=f"now by process {os.getpid()}"):
                refused()
        with reserve(tmp_path, "a") as place:
            assert place.name == "a-2"
    with hold(file, wait=True) as held:
        assert held == entry


# Leaderboard -----------------------------------------------------------------------------------------------------


def entry(number: int, cv: float | None, public: float | None, metric: str = "auc") -> Entry:
    return Entry(Path(f"{number}.csv"), Lineage("x", runs=["r"], metric=metric, score=cv), "", f"2026-01-{number:02}",
                 "t", public=public)  # fmt: skip


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    cv, public = [0.1, 0.4, 0.2, 0.9, 0.4], [0.2, 0.3, 0.25, 0.8, 0.7]
    entries = [entry(number + 1, *pair) for number, pair in enumerate(zip(cv, public, strict=True))]
    assert rank_correlation(entries) == pytest.approx(spearmanr(cv, public).statistic)


def test_rank_correlation_needs_three_entries_with_both_scores() -> None:
    assert rank_correlation([]) is None
    assert rank_correlation([entry(1, 0.1, 0.1), entry(2, 0.2, 0.2), entry(3, None, 0.3), entry(4, 0.4, None)]) is None


def test_rank_correlation_of_equal_scores_is_not_known() -> None:
    assert rank_correlation([entry(number, 0.5, number / 10) for number in range(1, 5)]) is None


def test_scores_of_another_metric_are_not_compared() -> None:
    old = [entry(number, 1 - number / 10, number / 10, "log_loss") for number in range(1, 5)]
    new = [entry(10 + number, number / 10, number / 10) for number in range(1, 4)]
    assert rank_correlation([*new, *old]) == pytest.approx(1)


def test_the_leaderboard_shows_the_gap_newest_first() -> None:
    rows = leaderboard_rows([entry(1, 0.5, 0.7), entry(2, 0.6, None)])
    assert [row["name"] for row in rows] == ["2", "1"]
    assert rows[1]["gap"] == pytest.approx(0.2)
    assert rows[0]["gap"] is None
    assert json.dumps(rows, allow_nan=False)
