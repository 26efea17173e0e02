"""The commands against the stand-in: what the user types, sees, and finds in the ledger."""

from __future__ import annotations

import io
import json

import lookalikes
import numpy as np
import pandas as pd
import pytest
from machines import YAML, Machine, ledger, written
from places import ROOT
from standin import KEY, Fault, StandIn

from kbench.sources.service import send
from kbench.submission.ledger import Entry, update_entry
from kbench.workspace import Workspace


def scored(standin: StandIn, *, public: str = "0.55", private: str = "") -> None:
    """Let the service score what it has, in its list too."""
    for item in standin.submissions:
        item.update(status="COMPLETE", publicScore=public, privateScore=private)


# submit ----------------------------------------------------------------------------------------------------------


def test_a_submission_is_sent_with_its_run_and_cv_and_its_score_recorded(entry, images, standin, kbench):
    standin.scores.append({"status": "COMPLETE", "publicScore": "0.55"})
    found = kbench("submit", "--json").json()
    assert (found["status"], found["cv"], found["public"], found["left"]) == ("complete", 0.5, 0.55, 4)
    assert found["gap"] == pytest.approx(0.05)
    said = standin.calls("CreateSubmission")[0].json()["submissionDescription"]
    assert said == f"baseline-s0, CV log_loss 0.50000 [{ledger(images)['first'].tag}]"
    assert list(standin.uploads.values()) == [entry.file.read_bytes()]
    assert ledger(images)["first"].ref == "4000"


def test_what_is_left_is_shown(entry, kbench):
    done = kbench("submit", "--no-wait")
    assert "5 submissions left before this one" in done.err
    assert "submissions left today: 4" in done.err


@pytest.mark.parametrize(
    ("about", "limits", "says", "todo"),
    [
        ({"isKernelsSubmissionsOnly": True}, {}, "takes notebooks, no files", "kbench submit --kernel"),
        ({"submissionsDisabled": True}, {}, "takes no submissions now", "kbench score"),
        ({}, {"numToday": 5, "numAllowedNow": 0}, "no submission is left", "nothing was sent"),
    ],
    ids=["code competition", "closed", "limits at zero"],
)
def test_what_would_not_be_taken_is_not_sent(about, limits, says, todo, entry, images, standin, kbench):
    standin.about |= about
    standin.limits |= limits
    done = kbench("submit", code=1)
    assert says in done.err
    assert todo in done.err
    assert ledger(images)["first"] == entry
    assert not standin.calls("StartSubmissionUpload")


def test_a_file_that_does_not_fit_the_sample_never_meets_the_service(entry, standin, kbench):
    frame = pd.read_csv(entry.file, dtype={"id": str})
    frame.iloc[1:].to_csv(entry.file, index=False)
    assert "ids are missing" in kbench("submit", code=1).err
    assert not standin.seen


def test_a_file_changed_since_it_was_written_is_not_sent(entry, images, standin, kbench):
    frame = pd.read_csv(entry.file, dtype={"id": str})
    frame["0"] += 0.01
    frame["1"] -= 0.01
    frame.to_csv(entry.file, index=False)
    assert "is not what was written" in kbench("submit", code=1).err
    assert not standin.calls("StartSubmissionUpload")


def test_an_upload_that_fails_leaves_the_submission_unsent(entry, images, standin, kbench):
    standin.plan("CreateSubmission", Fault(400, {"code": 400, "message": "no such file type"}))
    kbench("submit", "--no-wait", code=1)
    assert ledger(images)["first"].status == "written"
    kbench("submit", "--no-wait")
    assert ledger(images)["first"].status == "sent"


@pytest.fixture
def lost(entry, images, standin, kbench, monkeypatch) -> Entry:
    """A submission whose answer was lost and which the service does not list."""
    monkeypatch.setattr(send, "LOOKS", (0.0,))
    standin.plan("CreateSubmission", Fault(reset=True))
    done = kbench("submit", code=3)
    assert "whether it counted is not known" in done.err
    found = ledger(images)["first"]
    assert (found.status, found.tag != "") == ("unknown", True)
    return found


def test_an_unknown_outcome_is_looked_for_and_never_sent_twice(lost, images, standin, kbench):
    written(images, "second")
    done = kbench("submit", code=3)
    assert lost.tag in done.err
    assert "kbench submit first --resend" in done.err
    assert len(standin.calls("CreateSubmission")) == 1
    assert (ledger(images)["first"].status, ledger(images)["second"].status) == ("unknown", "written")


def test_a_submission_that_turns_up_later_is_adopted(lost, images, standin, kbench):
    described = {"ref": 4711, "date": "2026-01-02T03:04:05Z", "description": f"baseline [{lost.tag}]"}
    standin.submissions = [{"publicScore": "0.6", "privateScore": "", "status": "COMPLETE", **described}]
    found = kbench("submit", "--json").json()
    assert (found["status"], found["public"]) == ("complete", 0.6)
    assert ledger(images)["first"].ref == "4711"
    assert len(standin.calls("CreateSubmission")) == 1


def test_one_the_user_did_not_find_either_is_sent_again_on_demand(lost, images, standin, kbench):
    assert kbench("submit", "first", "--resend", "--no-wait", "--json").json()["status"] == "sent"
    again = ledger(images)["first"]
    assert [again.tag in item["description"] for item in standin.submissions] == [True]
    assert again.tag != lost.tag
    assert [(one["tag"], one["status"]) for one in again.earlier] == [(lost.tag, "unknown")]


def test_two_sendings_of_one_file_are_never_taken_for_one(lost, images, standin, kbench):
    """Trial submit-twice-at-once: the first sending turns up after the second; both are in the ledger."""
    kbench("submit", "first", "--resend", "--no-wait")
    described = {"ref": 4711, "date": "2026-01-02T03:04:05Z", "description": f"baseline [{lost.tag}]"}
    standin.submissions.append({"publicScore": "0.6", "privateScore": "", "status": "COMPLETE", **described})
    done = kbench("leaderboard", "--json")
    assert "'first' was received twice: as 4711, too" in done.err
    assert done.json()["rows"][0]["ref"] == "4000"
    assert (ledger(images)["first"].status, ledger(images)["first"].earlier[0]["ref"]) == ("sent", "4711")
    assert "received twice" not in kbench("leaderboard").err


def test_a_list_that_cannot_be_read_does_not_keep_what_is_asked_for_again(lost, images, standin, kbench):
    """Trial submit-limits-500: without the list nothing is sent twice unasked, and what is asked is done."""
    standin.plan("ListSubmissions", *[Fault(400, {"code": 400, "message": "oops"}) for _ in range(2)])
    done = kbench("submit", code=3)
    assert "the service's list cannot be read now" in done.err
    done = kbench("submit", "first", "--resend", "--no-wait")
    assert "the service's list cannot be read now" in done.err
    assert len(standin.submissions) == 1


@pytest.mark.parametrize("route", ["GetSubmissionLimits", "GetCompetition"])
def test_limits_nobody_knows_are_a_warning_and_the_submission_is_sent(route, entry, images, standin, kbench):
    """Trial submit-limits-500."""
    standin.plan(route, *[Fault(500, {"code": 500, "message": "oops"}) for _ in range(99)])
    done = kbench("submit", "--no-wait")
    assert "warning: " in done.err
    assert "a problem of its own (500" in done.err
    assert (len(standin.submissions), ledger(images)["first"].status) == (1, "sent")


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_score_nobody_can_be_asked_for_is_a_warning(status, entry, images, standin, kbench):
    """Trial submit-limits-500: it was sent, and that is what counts."""
    fault = Fault(status, {"code": status, "message": "no"})
    standin.plan("GetSubmission", *[fault for _ in range(99)])
    done = kbench("submit", "--wait-seconds", "0")
    assert "`kbench leaderboard` asks again" in done.err
    assert ledger(images)["first"].ref == "4000"


def test_sending_again_looks_first(lost, images, standin, kbench):
    described = {"ref": 4711, "date": "2026-01-02T03:04:05Z", "description": f"baseline [{lost.tag}]"}
    standin.submissions = [{"publicScore": "", "privateScore": "", "status": "PENDING", **described}]
    kbench("submit", "first", "--resend", "--no-wait")
    assert ledger(images)["first"].ref == "4711"
    assert len(standin.calls("CreateSubmission")) == 1


def test_a_lost_answer_that_was_accepted_is_found_at_once(entry, images, standin, kbench, monkeypatch):
    monkeypatch.setattr(send, "LOOKS", (0.0,))
    standin.plan("CreateSubmission", Fault(reset=True, done=True))
    kbench("submit", "--no-wait")
    assert (ledger(images)["first"].status, ledger(images)["first"].ref) == ("sent", "4000")
    assert len(standin.submissions) == 1


def test_a_killed_sending_is_looked_for(entry, images, standin, kbench):
    update_entry(entry.file, "sending")
    kbench("submit", code=3)
    assert ledger(images)["first"].status == "unknown"
    assert not standin.calls("StartSubmissionUpload")


def test_a_file_the_service_cannot_score_says_why_and_may_be_sent_again_under_a_new_tag(entry, images, standin, kbench):
    standin.scores.append({"status": "ERROR", "errorDescription": "Submission must have 4 rows"})
    assert "Submission must have 4 rows" in kbench("submit", code=1).err
    assert ledger(images)["first"].status == "error"
    kbench("submit", "first", "--no-wait")
    again = ledger(images)["first"]
    assert again.status == "sent"
    assert again.tag in standin.submissions[1]["description"]
    assert again.tag not in standin.submissions[0]["description"]
    assert [(one["status"], one["ref"]) for one in again.earlier] == [("error", "4000")]


def test_one_that_was_sent_waits_for_its_score_and_is_not_sent_twice(entry, images, standin, kbench):
    kbench("submit", "--no-wait")
    standin.scores.append({"status": "COMPLETE", "publicScore": "0.55"})
    assert kbench("submit", "first", "--json").json()["public"] == 0.55
    assert len(standin.calls("CreateSubmission")) == 1
    assert "'first' is sent and scored: 0.55" in kbench("submit", "first", code=1).err


# leaderboard -----------------------------------------------------------------------------------------------------


def test_the_leaderboard_asks_for_scores_first_the_public_then_the_private(entry, images, standin, kbench):
    kbench("submit", "--no-wait")
    row = kbench("leaderboard", "--json").json()["rows"][0]
    assert (row["status"], row["public"]) == ("sent", None)
    scored(standin)
    row = kbench("leaderboard", "--json").json()["rows"][0]
    assert (row["status"], row["cv"], row["public"], row["private"]) == ("complete", 0.5, 0.55, None)
    assert row["gap"] == pytest.approx(0.05)
    scored(standin, private="0.57")
    assert kbench("leaderboard", "--json").json()["rows"][0]["private"] == 0.57
    standin.seen.clear()
    kbench("leaderboard")
    assert not standin.seen


def test_the_leaderboard_asks_once_for_all_and_ranks_cv_against_public(images, standin, kbench):
    for number, cv in enumerate((0.5, 0.4, 0.3)):
        written(images, f"sub{number}", shift=number / 100, cv=cv)
        kbench("submit", "--no-wait")
        standin.submissions[number].update(status="COMPLETE", publicScore=str(cv + 0.1))
    standin.page_size = 200
    standin.seen.clear()
    found = kbench("leaderboard", "--json").json()
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert [seen.route for seen in standin.seen] == ["ListSubmissions"]
    lines = kbench("leaderboard", "--csv").out.splitlines()
    assert lines[0].startswith("name,run,members,metric,cv,")
    assert [line.partition(",")[0] for line in lines[1:]] == ["sub2", "sub1", "sub0"]
    assert "rank correlation of CV and public score: 1.00" in kbench("leaderboard").out


def test_the_leaderboard_finds_a_lost_submission(lost, images, standin, kbench):
    assert kbench("leaderboard", "--json").json()["rows"][0]["status"] == "unknown"
    described = {"ref": 4711, "date": "2026-01-02T03:04:05Z", "description": f"baseline [{lost.tag}]"}
    standin.submissions = [{"publicScore": "0.6", "privateScore": "", "status": "COMPLETE", **described}]
    assert kbench("leaderboard", "--json").json()["rows"][0]["public"] == 0.6


def test_the_leaderboard_is_shown_as_known_where_the_service_cannot_be_asked(entry, standin, kbench):
    kbench("submit", "--no-wait")
    standin.plan("ListSubmissions", *[Fault(403, {"code": 403, "message": "no"}) for _ in range(9)])
    done = kbench("leaderboard", "--json")
    assert "the scores are those known before" in done.err
    assert done.json()["fresh"] is False
    assert done.json()["rows"][0]["status"] == "sent"


# new -------------------------------------------------------------------------------------------------------------


def drafted(workspace: Workspace, name: str = "tiny-images") -> str:
    return workspace.competition(name).read_text()


@pytest.fixture
def offered(workspace: Workspace, standin: StandIn) -> StandIn:
    """The stand-in with a small competition nobody has a YAML of."""
    standin.files, _ = lookalikes.digits(train=20, test=4)
    standin.zip()
    return standin


@pytest.mark.parametrize(
    "words", ["tiny-images", "https://www.kaggle.com/competitions/tiny-images/overview", "kaggle.com/c/tiny-images"]
)
def test_a_new_competition_is_drafted_from_a_slug_or_a_pasted_address(words, workspace, offered, kbench):
    offered.about["evaluationMetric"] = "Multiclass Loss"
    assert "TODO" not in kbench("new", words).err
    text = drafted(workspace)
    assert "title: Tiny Images" in text
    assert "metric: log_loss  # the service says 'Multiclass Loss'" in text
    assert "source: {name: kaggle, slug: tiny-images}" in text
    assert "code competition" not in text
    assert workspace.chosen() == "tiny-images"
    kbench("check")


def test_a_metric_nobody_knows_is_left_open_and_check_says_so(workspace, offered, kbench):
    offered.about["evaluationMetric"] = "Fancy\nScore"
    assert "the service says 'Fancy Score'" in kbench("new", "tiny-images").err
    assert "metric: TODO  # TODO the service says 'Fancy Score'" in drafted(workspace)
    done = kbench("check", code=1)
    assert "unknown metric 'TODO'" in done.err


def test_a_code_competition_is_said_in_the_draft(workspace, offered, kbench):
    offered.about["isKernelsSubmissionsOnly"] = True
    kbench("new", "tiny-images")
    assert "# A code competition: no file is sent." in drafted(workspace)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tiny-imagse"], "tiny-imagse"),
        (["tiny images!"], "names no Kaggle competition"),
        (["tiny-images", "--solution", "x.csv"], "without --data"),
    ],
)
def test_what_cannot_be_drafted_leaves_nothing_behind(words, says, workspace, offered, kbench):
    assert says in kbench("new", *words, code=1).err
    assert list(workspace.competitions.iterdir()) == []


def test_a_yaml_that_exists_is_not_overwritten(images, kbench):
    images.competition("tiny-images").write_text("mine: 1\n")
    assert "kbench download tiny-images" in kbench("new", "tiny-images", code=1).err
    assert drafted(images) == "mine: 1\n"


# download --------------------------------------------------------------------------------------------------------


def test_a_second_download_fetches_nothing(images, standin, kbench):
    assert kbench("download", "--json").json()["new"] == 0
    assert not standin.calls("GET")


def test_chosen_files_alone_are_fetched(workspace, offered, kbench):
    workspace.competition("tiny").write_text(YAML)
    found = kbench("download", "tiny", "--file", "*.csv", "--json").json()
    assert found["files"] == 2
    assert sorted(path.name for path in workspace.data("tiny").glob("*.csv")) == ["sample_submission.csv", "train.csv"]


# doctor ----------------------------------------------------------------------------------------------------------


def test_the_doctor_finds_a_rejected_token_that_hides_a_good_key_and_shows_no_secret(machine_of_mine):
    more = {"KAGGLE_API_TOKEN": "wrong-token", "VERBOSE": "1", "VERBOSE_OUTPUT": "1"}
    done = machine_of_mine.run("kbench doctor", code=1, **more)
    assert "ok: device " in done.out
    assert "GB free" in done.out
    assert "refused the token of KAGGLE_API_TOKEN, which hides the key of this machine" in done.out
    assert "next: remove KAGGLE_API_TOKEN" in done.out
    assert machine_of_mine.hosts() <= {"127.0.0.1"}


def test_the_doctor_accepts_a_key_and_warns_that_others_can_read_it(machine_of_mine):
    folder = machine_of_mine.home / ".kaggle"
    folder.mkdir()
    (folder / "kaggle.json").write_text(json.dumps({"username": "tester", "key": KEY}))
    (folder / "kaggle.json").chmod(0o644)
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        del machine_of_mine.variables[name]
    rows = machine_of_mine.run("kbench doctor --json", VERBOSE="1").json()["rows"]
    assert f"Kaggle sign-in: the key of {folder / 'kaggle.json'} as 'tester'" in [row["what"] for row in rows]
    assert "Kaggle accepts the sign-in of 'tester'" in [row["what"] for row in rows]
    assert f"chmod 600 '{folder / 'kaggle.json'}'" in [row["todo"] for row in rows if row["level"] == "warning"]


# the whole job ---------------------------------------------------------------------------------------------------


def log_loss(submission: bytes, answers: dict[str, int]) -> float:
    """Return the score of a submission, computed apart from the package's own."""
    frame = pd.read_csv(io.BytesIO(submission), dtype={"id": str}).set_index("id")
    assert sorted(frame.index) == sorted(answers)
    return float(np.mean([-np.log(frame.loc[name, str(label)]) for name, label in answers.items()]))


@pytest.mark.slow
def test_the_owners_lines_work_as_they_stand(machine_of_mine, standin):
    standin.files, answers = lookalikes.digits()
    standin.zip()
    standin.grade = lambda submission: log_loss(submission, answers)
    standin.page_size = 200
    mine = machine_of_mine
    (mine.root / "competitions" / "digits.yaml").write_text(YAML)
    mine.run("kbench download")
    mine.run("kbench train --fold 3")
    done = mine.run("kbench ensemble && kbench submit")
    assert "folds 0, 1, 2, 4 of 'baseline-s0' are not trained" in done.err
    assert "submissions left today: 4" in done.err
    mine.run("kbench ensemble --require-all", code=1)
    (row,) = mine.run("kbench leaderboard --json").json()["rows"]
    graded = log_loss(next(iter(standin.uploads.values())), answers)
    assert (row["status"], row["members"], row["public"]) == ("complete", 1, pytest.approx(graded, abs=1e-5))
    assert row["gap"] == pytest.approx(row["public"] - row["cv"])
    shown = mine.run("kbench leaderboard").out
    assert f"{row['cv']:.5g}" in shown
    assert f"{row['public']:.5g}" in shown
    assert len(standin.calls("CreateSubmission")) == 1
    assert mine.hosts() <= {"127.0.0.1", "::1"}
    assert mine.leaks() == []


SMALL = "--set model.pretrained=false --set model.backbone=resnet10t --set input.size=32 --set tta=none"
LOOKALIKES = {
    "dogs-vs-cats-redux-kernels-edition": (lookalikes.dogs_vs_cats, ["head", "all"]),
    "dog-breed-identification": (lookalikes.dog_breeds, ["start", "cycles"]),
    "planet-understanding-the-amazon-from-space": (lookalikes.planet, ["head", "small", "middle", "full"]),
    "tgs-salt-identification-challenge": (lookalikes.tgs_salt, ["start", "cycles"]),
}


def small(machine: Machine, standin: StandIn, slug: str) -> str:
    """Bring the look-alike of a shipped competition here; return the options of a network that trains in seconds."""
    make, stages = LOOKALIKES[slug]
    standin.slug, standin.files = slug, make()
    standin.zip()
    shipped = ROOT / "competitions" / f"{slug}.yaml"
    (machine.root / "competitions" / shipped.name).write_text(shipped.read_text())
    machine.kbench("download")
    return " ".join([SMALL, *(f"--set stages.{name}.size=32" for name in stages)])


@pytest.mark.slow
@pytest.mark.parametrize("slug", LOOKALIKES)
def test_a_shipped_competition_passes_check_and_smoke_on_its_layout(slug, machine_of_mine, standin):
    options = small(machine_of_mine, standin, slug)
    said = machine_of_mine.kbench("check").err.splitlines()
    small_and_flat = (
        "a smaller `batch_size`",
        "near-duplicate",
        "strata have fewer",
    )  # of look-alikes alone
    assert [line for line in said if "warning" in line and not any(words in line for words in small_and_flat)] == []
    assert "every step works" in machine_of_mine.kbench(f"train --smoke {options}").out


@pytest.mark.slow
@pytest.mark.parametrize("slug", LOOKALIKES)
def test_a_shipped_competition_is_trained_and_submitted(slug, machine_of_mine, standin):
    options = small(machine_of_mine, standin, slug)
    machine_of_mine.kbench("folds")
    short = [
        f"--set stages.{name}.schedule='{{name: constant, epochs: 1}}' --set stages.{name}.lr=1e-3"
        for name in LOOKALIKES[slug][1]
    ]
    machine_of_mine.kbench(f"train --fold 0 {options} {' '.join(short)}")
    machine_of_mine.kbench("ensemble")
    machine_of_mine.kbench("submit --no-wait")
    (sent,) = standin.uploads.values()
    (sample,) = machine_of_mine.root.glob("data/*/sample_*.csv")
    assert [line.split(b",")[0] for line in sent.splitlines()] == [
        line.split(b",")[0] for line in sample.read_bytes().splitlines()
    ]
    assert machine_of_mine.leaks() == []
