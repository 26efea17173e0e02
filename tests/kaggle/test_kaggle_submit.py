from __future__ import annotations

from dataclasses import replace

import pytest
from standin import SUBMISSION, Fault

from kbench.errors import ConfigError, ServiceError, SubmissionError, UnknownOutcome
from kbench.sources import Receipt

pytestmark = pytest.mark.slow  # the real client against the stand-in, a second and more for a few of them

TAG = "kbench-7f3a"


@pytest.fixture
def submission(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_bytes(b"id,label\n" + b"a,0.5\n" * 20_000)
    return path


@pytest.fixture
def send(source, submission):
    """Upload and submit, as `kbench submit` does."""
    return lambda: source.send(source.upload(submission, lambda *_: None), message="baseline", tag=TAG)


def test_a_file_is_uploaded_and_created_once(standin, send, submission):
    assert send() == Receipt("4000", "pending", message="Successfully submitted")
    (upload,) = standin.calls("PUT")
    (create,) = standin.calls("CreateSubmission")
    assert upload.body == submission.read_bytes()
    assert create.json()["submissionDescription"] == f"baseline [{TAG}]"


def test_progress_tells_the_bytes_sent(source, submission):
    told = []
    source.upload(submission, lambda *row: told.append(row))
    size = submission.stat().st_size
    assert told[-1] == ("upload submission.csv", size, size)


def test_the_tag_survives_a_long_message(source, standin, submission):
    source.send(source.upload(submission, lambda *_: None), message="long\n" * 400, tag=TAG)
    described = standin.calls("CreateSubmission")[0].json()["submissionDescription"]
    assert described.endswith(f"[{TAG}]")
    assert len(described) < 450


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        ("StartSubmissionUpload", Fault(500, {"code": 500})),
        ("StartSubmissionUpload", Fault(429, {"code": 429}, {"Retry-After": "2"})),
        ("PUT", Fault(500)),
        ("PUT", Fault(403)),
        ("PUT", Fault(308)),
        ("PUT", Fault(302, headers={"Location": "/bundle/1/tiny-images.zip"})),
        ("PUT", Fault(503, b"", {"Retry-After": "9"})),
        ("PUT", Fault(reset=True)),
    ],
)
def test_an_upload_that_fails_starts_over_at_a_new_address(route, fault, standin, send, submission):
    standin.plan(route, fault)
    assert send().ref == "4000"
    assert list(standin.uploads.values()) == [submission.read_bytes()]
    assert len(standin.calls("StartSubmissionUpload")) == 2
    assert len(standin.calls("CreateSubmission")) == 1


def test_storage_is_not_shown_a_sign_in_of_netrc_either(standin, send, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine localhost login someone password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    send()
    assert "Authorization" not in standin.calls("PUT")[0].headers


def test_an_upload_that_keeps_failing_submits_nothing(standin, send):
    standin.plan("PUT", *[Fault(500) for _ in range(9)])
    with pytest.raises(ServiceError) as caught:
        send()
    assert caught.value.kind == "upload"
    assert not standin.calls("CreateSubmission")


LOST = {
    "reset": Fault(reset=True, done=True),
    "500": Fault(500, {"code": 500, "message": "oops"}, done=True),
    "502 page": Fault(502, b"<html>bad gateway</html>", done=True),
    "no JSON": Fault(200, b"<html>log in</html>", done=True),
    "no ref": Fault(200, {"message": "Successfully submitted"}, done=True),
    "null": Fault(200, b"null", {"Content-Type": "application/json"}, done=True),
}


@pytest.mark.parametrize("fault", LOST.values(), ids=LOST)
def test_a_lost_answer_to_a_submission_that_counted_is_found_by_its_tag(fault, standin, send):
    standin.submissions = [{**SUBMISSION, "ref": number, "description": "older"} for number in range(3)]
    standin.plan("CreateSubmission", fault)
    receipt = send()
    assert receipt.ref == "4003"
    assert len(standin.calls("CreateSubmission")) == 1


@pytest.mark.parametrize("fault", LOST.values(), ids=LOST)
def test_a_lost_answer_to_a_submission_nobody_lists_is_an_unknown_outcome(fault, standin, send, clock):
    standin.plan("CreateSubmission", Fault(**{**vars(fault), "done": False}))
    with pytest.raises(UnknownOutcome, match=rf"(?s)not known.*\[{TAG}\]") as caught:
        send()
    assert caught.value.exit_code == 3
    assert len(standin.calls("CreateSubmission")) == 1
    assert sum(clock.slept) >= 60


def test_an_answer_that_never_comes_is_an_unknown_outcome_too(standin, source, submission, clock):
    hasty = replace(source, client=replace(source.client, timeouts=(5.0, 0.2)))
    standin.plan("CreateSubmission", Fault(stall=0))
    with pytest.raises(UnknownOutcome):
        hasty.send(hasty.upload(submission, lambda *_: None), message="", tag=TAG)
    assert len(standin.calls("CreateSubmission")) == 1


def test_a_list_that_cannot_be_read_does_not_hide_the_unknown_outcome(standin, send):
    standin.plan("CreateSubmission", Fault(reset=True))
    standin.plan("ListSubmissions", *[Fault(500, {"code": 500}) for _ in range(99)])
    with pytest.raises(UnknownOutcome):
        send()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(400, {"code": 400, "message": "You have used all submissions"}), "rejected"),
        (Fault(401, {"code": 401, "message": "Unauthenticated"}), "auth"),
        (Fault(403, {"code": 403, "message": "accept the rules"}), "forbidden"),
        (Fault(404, {"code": 404, "message": "no such competition"}), "not_found"),
        (Fault(429, {"error": {"code": 429, "message": "slow down"}}), "rate_limited"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_refusal_of_the_submission_is_certain_and_never_repeated(fault, kind, standin, send, clock):
    standin.plan("CreateSubmission", fault)
    with pytest.raises(ServiceError) as caught:
        send()
    assert caught.value.kind == kind
    assert len(standin.calls("CreateSubmission")) == 1
    assert not standin.calls("ListSubmissions")
    assert not clock.slept


def test_a_submission_that_could_not_leave_is_no_unknown_outcome(standin, source):
    standin.close()
    with pytest.raises(ServiceError) as caught:
        source.create("token-1", "baseline")
    assert caught.value.kind == "network"
    assert caught.value.sent is False


@pytest.mark.parametrize("content", [b"", None], ids=["empty", "missing"])
def test_an_empty_or_missing_file_is_not_sent(content, standin, send, submission):
    submission.unlink()
    if content is not None:
        submission.write_bytes(content)
    with pytest.raises(SubmissionError, match="missing or empty"):
        send()
    assert not standin.seen


def test_what_is_left_today_is_told(source):
    assert source.check_open() == 5
    assert source.remaining() == 5


@pytest.mark.parametrize(
    ("limits", "when"),
    [
        ({"numToday": 5, "numTotal": 9}, "in 21 h"),
        ({"numToday": 0, "numTotal": 9, "limitedByTotal": True}, "total is used up"),
    ],
)
def test_limits_at_zero_refuse_before_anything_is_sent(limits, when, standin, source):
    standin.limits = limits
    with pytest.raises(SubmissionError, match="no submission is left") as caught:
        source.check_open()
    assert when in caught.value.todo
    assert not standin.calls("StartSubmissionUpload")


def test_a_service_that_does_not_tell_its_limits_does_not_stop_a_submission(standin, source):
    standin.plan("GetSubmissionLimits", Fault(404, {"code": 404, "message": "no limits"}))
    assert source.check_open() is None


# what a call that only informs is answered -> what the warning says; submit-limits-500
SILENT = {
    "500": (Fault(500, {"code": 500, "message": "oops"}), "a problem of its own (500"),
    "page": (Fault(503, b"<html>busy</html>"), "a problem of its own (503"),
    "400": (Fault(400, {"code": 400, "message": "no"}), "rejected the request"),
    "rate": (Fault(429, {"code": 429}, {"Retry-After": "600"}), "asks to wait 600 s"),
    "reset": (Fault(reset=True), "the connection failed"),
    "nonsense": (Fault(200, b"null", {"Content-Type": "application/json"}), "was not understood"),
}


@pytest.mark.parametrize("route", ["GetSubmissionLimits", "GetCompetition"])
@pytest.mark.parametrize("row", SILENT.values(), ids=SILENT)
def test_what_only_informs_warns_and_stops_nothing(row, route, standin, source, clock, capsys):
    """Trial submit-limits-500: the service fails on a call, every time; nobody is kept waiting for it."""
    fault, words = row
    standin.plan(route, *[fault for _ in range(9)])
    assert source.check_open() == (None if route == "GetSubmissionLimits" else 5)
    said = capsys.readouterr().err
    assert "warning: " in said
    assert words in said
    assert sum(clock.slept) <= 10


@pytest.mark.parametrize("route", ["GetSubmissionLimits", "GetCompetition"])
@pytest.mark.parametrize(("status", "kind"), [(401, "auth"), (403, "forbidden")])
def test_a_clear_no_to_the_question_stops_the_submission(route, status, kind, standin, source):
    """Trial submit-limits-500: what the account may not ask, it may not do."""
    standin.plan(route, Fault(status, {"code": status, "message": "no"}))
    with pytest.raises(ServiceError) as caught:
        source.check_open()
    assert caught.value.kind == kind


def test_a_competition_that_does_not_exist_takes_no_submission(standin, source):
    standin.plan("GetCompetition", Fault(404, {"code": 404, "message": "no such competition"}))
    with pytest.raises(ServiceError, match="knows nothing of this name"):
        source.check_open()


def test_a_code_competition_is_told_apart(standin, source):
    standin.about["isKernelsSubmissionsOnly"] = True
    with pytest.raises(SubmissionError, match="takes notebooks") as caught:
        source.check_open()
    assert "`kbench export` and `kbench push`, then `kbench submit --kernel`" in caught.value.todo


def test_a_closed_competition_is_told_apart(standin, source):
    standin.about["submissionsDisabled"] = True
    with pytest.raises(SubmissionError, match="takes no submissions now"):
        source.check_open()


def test_the_score_is_waited_for(standin, source, send, clock):
    standin.scores.extend([{"status": "PENDING"}, {"status": "PENDING"}, {"status": "COMPLETE", "publicScore": "0.81"}])
    told = []
    receipt = source.wait(send().ref, limit=600, progress=lambda *row: told.append(row))
    assert receipt == Receipt("4000", "complete", public=0.81)
    assert told[-1] == ("wait for the score", 5, 600)


def test_the_private_score_comes_later(standin, source, send):
    ref = send().ref
    standin.scores.append({"status": "COMPLETE", "publicScore": "0.81"})
    assert source.status(ref).private is None
    standin.scores.append({"privateScore": "0.79"})
    assert source.status(ref) == Receipt(ref, "complete", public=0.81, private=0.79)


def test_a_submission_kaggle_cannot_score_says_why(standin, source, send):
    standin.scores.append({"status": "ERROR", "errorDescription": "wrong columns"})
    assert source.wait(send().ref, limit=60, progress=lambda *_: None) == Receipt(
        "4000", "error", message="wrong columns"
    )


def test_waiting_ends_at_its_limit_and_the_submission_is_still_pending(source, send, clock):
    assert source.wait(send().ref, limit=60, progress=lambda *_: None).status == "pending"
    assert sum(clock.slept) <= 60


def test_a_passing_fault_while_waiting_is_no_failure(standin, source, send):
    ref = send().ref
    standin.plan("GetSubmission", *[Fault(503, b"busy") for _ in range(6)])
    standin.scores.append({"status": "COMPLETE", "publicScore": "0.5"})
    assert source.wait(ref, limit=600, progress=lambda *_: None).public == 0.5


def test_a_submission_not_listed_yet_is_pending(source):
    assert source.status("99") == Receipt("99", "pending", message="not listed yet")


def test_a_ref_of_something_else_is_refused(source):
    with pytest.raises(ConfigError, match="no submission of Kaggle"):
        source.status("local-1")


def test_own_submissions_are_listed_newest_first_over_all_pages(standin, source):
    standin.submissions = [
        {**SUBMISSION, "ref": number, "date": "2026-01-02T03:04:05Z", "description": f"[{number}]"}
        for number in range(5)
    ]
    standin.submissions[3] |= {"status": "COMPLETE", "publicScore": "0.5", "privateScore": "nan"}
    standin.empty_page = True
    listed = list(source.submissions())
    assert [item.ref for item in listed] == ["4", "3", "2", "1", "0"]
    assert (listed[1].status, listed[1].public, listed[1].private) == ("complete", 0.5, None)
    assert listed[0].date.isoformat() == "2026-01-02T03:04:05+00:00"
    assert source.find("2").ref == "2"
    assert source.find("nobody") is None


def test_what_kaggle_says_of_a_competition_is_read(standin, source):
    standin.about |= {
        "deadline": "2026-03-04T23:59:00Z",
        "evaluationMetric": "Log Loss",
        "maxDailySubmissions": 5,
        "userHasEntered": False,
    }
    standin.pages = [{"name": "Evaluation", "content": "log loss"}]
    about = source.about()
    assert (about.title, about.metric, about.daily, about.entered) == ("Tiny Images", "Log Loss", 5, False)
    assert about.deadline.isoformat() == "2026-03-04T23:59:00+00:00"
    assert source.pages() == {"Evaluation": "log loss"}


def test_a_status_the_client_does_not_know_is_a_protocol_error(standin, source, send):
    ref = send().ref
    standin.scores.append({"status": "SHINY"})
    with pytest.raises(ServiceError) as caught:
        source.status(ref)
    assert caught.value.kind == "protocol"
    assert "KeyError" in caught.value.what


def test_a_version_from_the_future_is_not_printed(standin, source, capfd):
    standin.plan("GetCompetition", Fault(headers={"X-Kaggle-ApiVersion": "99.0"}))
    source.about()
    assert capfd.readouterr().out == ""
