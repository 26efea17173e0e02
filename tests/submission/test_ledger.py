from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kbench import files
from kbench.errors import DataError, SubmissionError
from kbench.submission import ledger
from kbench.submission.ledger import (
    Entry,
    Lineage,
    free_name,
    leaderboard_rows,
    lineage_path,
    new_entry,
    newest_unsent,
    rank_correlation,
    read_entry,
    read_ledger,
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
