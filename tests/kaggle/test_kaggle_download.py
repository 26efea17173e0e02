from __future__ import annotations

import json
import random

import pytest
from standin import Fault

from kbench.errors import DataError, ServiceError

pytestmark = pytest.mark.slow  # the real client against the stand-in, a second and more for a few of them

BIG = random.Random(0).randbytes(3_000_000)
HALF = 1_500_000

# what Kaggle answers to the call itself -> kind, a word of the message, a word of the remedy; final, asked once
REFUSALS = {
    "401": (Fault(401, {"code": 401, "message": "Unauthenticated"}), "auth", "sign-in", "kbench doctor"),
    "403 rules": (
        Fault(403, {"code": 403, "message": "You must accept this competition's rules before downloading"}),
        "forbidden",
        "rules are not accepted",
        "/competitions/tiny-images/rules",
    ),
    "403 typo": (
        Fault(403, {"code": 403, "message": "Permission 'competitions.get' was denied"}),
        "forbidden",
        "misspelt",
        "compare the name",
    ),
    "403 phone": (
        Fault(403, {"code": 403, "message": "Please verify your phone number"}),
        "forbidden",
        "not verified",
        "/settings",
    ),
    "404": (Fault(404, {"code": 404, "message": "Not found"}), "not_found", "knows nothing", "look the name up"),
    "404 page": (Fault(404, b"<html>nothing</html>"), "not_found", "404", "look the name up"),
    "400": (Fault(400, {"code": 400, "message": "Too late"}), "rejected", "Too late", "competitions/tiny-images"),
    "400 nested": (Fault(400, {"error": {"code": 400, "message": "Too late"}}), "rejected", "Too late", "the reason"),
    "200 with a code": (Fault(200, {"code": 403, "message": "rules"}), "forbidden", "rules", "/rules"),
    "200 null": (Fault(200, b"null", {"Content-Type": "application/json"}), "protocol", "TypeError", "update"),
    "too long a wait": (
        Fault(429, {"code": 429, "message": ""}, {"Retry-After": "7200"}),
        "rate_limited",
        "7200",
        "wait",
    ),
}

# route, what goes wrong there once -> seconds waited before the next try, which succeeds;
# a list where what had arrived must be thrown away first
PASSING = {
    "429 with Retry-After": ("DownloadDataFile", Fault(429, {"code": 429}, {"Retry-After": "17"}), 17),
    "429 with a date": (
        "DownloadDataFile",
        Fault(
            429,
            {"code": 429},
            {"Date": "Fri, 02 Jan 2026 03:00:00 GMT", "Retry-After": "Fri, 02 Jan 2026 03:01:30 GMT"},
        ),
        90,
    ),
    "429 without Retry-After": ("DownloadDataFile", Fault(429, {"code": 429, "message": "slow down"}), 30),
    "429 nested": ("DownloadDataFile", Fault(429, {"error": {"code": 429, "message": "slow down"}}), 30),
    "429 of storage": ("GET", Fault(429, b"", {"Retry-After": "5"}), 5),
    "500": ("DownloadDataFile", Fault(500, {"code": 500, "message": "oops"}), 1),
    "503 page": ("DownloadDataFile", Fault(503, b"<html>busy</html>"), 1),
    "500 of storage": ("GET", Fault(500, b"oops"), 1),
    "503 with Retry-After of storage": ("GET", Fault(503, b"", {"Retry-After": "3"}), 3),
    "reset before the answer": ("DownloadDataFile", Fault(reset=True), 1),
    "reset before the body": ("GET", Fault(reset=True), 1),
    "log-in page of the network": ("DownloadDataFile", Fault(200, b"<html>log in</html>"), 1),
    "error that is no JSON": ("DownloadDataFile", Fault(500, b"<xml/>", {"Content-Type": "application/json"}), 1),
    "reset during the body": ("GET", Fault(cut=HALF), 1),
    "stall": ("GET", Fault(stall=HALF), 1),
    "truncated": ("GET", Fault(close=HALF), 1),
    "truncated, length unknown": ("GET", Fault(close=HALF, headers={"Content-Length": None}), 1),
    "truncated in chunks": ("GET", Fault(close=HALF, chunked=True), 1),
    "length too large": ("GET", Fault(headers={"Content-Length": "3000009"}), [1, 2]),
    "length too small": ("GET", Fault(headers={"Content-Length": "2999991"}), 1),
    "bit flip": ("GET", Fault(flip=True), 1),
    "bit flip while resuming": ("GET", Fault(flip=True, cut=HALF), [1, 1]),
    "expired address": ("GET", Fault(403, b"<Error>ExpiredToken</Error>"), 1),
    "storage forgot it": ("GET", Fault(404, b"<Error>NoSuchKey</Error>"), 1),
}

# answers that are odd and right
HARMLESS = {
    "gzip encoding": Fault(gzip=True),
    "chunks without a length": Fault(chunked=True),
    "no length": Fault(headers={"Content-Length": None}),
    "no hash": Fault(headers={"x-goog-hash": None}),
    "unpacked on the way": Fault(headers={"x-goog-stored-content-encoding": "gzip", "x-goog-hash": "md5=AAAA"}),
    "weak validator": Fault(headers={"ETag": 'W/"1"'}),
}


@pytest.mark.parametrize("row", REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_final_and_says_what_to_do(row, standin, fetch, clock, tmp_path):
    fault, kind, word, remedy = row
    standin.plan("DownloadDataFiles", fault)
    with pytest.raises(ServiceError) as caught:
        fetch()
    assert caught.value.kind == kind
    assert word in caught.value.what
    assert remedy in caught.value.todo
    assert len(standin.calls("DownloadDataFiles")) == 1
    assert not clock.slept
    assert not list((tmp_path / "data").glob("*"))[1:]


@pytest.mark.parametrize("row", PASSING.values(), ids=PASSING)
def test_a_fault_that_passes_is_waited_out(row, standin, fetch, clock, tmp_path):
    route, fault, wait = row
    standin.files["big.bin"] = BIG
    standin.plan(route, fault)
    fetch("big.bin", patience=10.0 if fault.stall is None else 0.2)
    assert (tmp_path / "data/big.bin").read_bytes() == BIG
    assert clock.slept == (wait if isinstance(wait, list) else [wait])


@pytest.mark.parametrize("fault", HARMLESS.values(), ids=HARMLESS)
def test_an_odd_answer_is_read_right_the_first_time(fault, standin, fetch, clock, tmp_path):
    standin.files["big.bin"] = BIG
    standin.plan("GET", fault)
    fetch("big.bin")
    assert (tmp_path / "data/big.bin").read_bytes() == BIG
    assert not clock.slept


def test_a_resumed_download_asks_for_the_rest_at_a_fresh_address(standin, fetch):
    standin.files["big.bin"] = BIG
    standin.plan("GET", Fault(cut=HALF), Fault(403, b"expired"))
    fetch("big.bin")
    first, expired, last = standin.calls("GET")
    assert "Range" not in first.headers
    assert {seen.headers["Accept-Encoding"] for seen in (first, expired, last)} == {"identity"}
    begins = int(last.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    assert 0 < begins <= HALF
    assert last.headers["If-Range"].startswith('"')
    assert len({first.path, expired.path, last.path}) == 3
    assert len(standin.calls("DownloadDataFile")) == 3


def test_almost_nothing_is_lost_when_the_connection_breaks(standin, fetch):
    standin.files["big.bin"] = BIG
    standin.plan("GET", Fault(close=HALF))
    fetch("big.bin")
    assert standin.calls("GET")[1].headers["Range"] == f"bytes={HALF}-"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(reset=True), "network"),
        (Fault(500, b"oops"), "server"),
        (Fault(403, b"expired"), "server"),
        (Fault(stall=0), "timeout"),
        (Fault(flip=True), "corrupt"),
        (Fault(429, b""), "rate_limited"),
        (Fault(200, b"<html>log in</html>"), "protocol"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_that_stays_ends_in_its_own_error_and_no_file(fault, kind, standin, fetch, tmp_path):
    standin.files["big.bin"] = BIG
    standin.plan("GET", *[Fault(**vars(fault)) for _ in range(10)])
    with pytest.raises(ServiceError) as caught:
        fetch("big.bin", patience=10.0 if fault.stall is None else 0.1)
    assert caught.value.kind == kind
    assert not (tmp_path / "data/big.bin").exists()


def test_a_later_call_goes_on_where_the_last_one_gave_up(standin, fetch, tmp_path):
    standin.files["big.bin"] = BIG
    standin.plan("GET", Fault(close=HALF), *[Fault(500)] * 5)
    with pytest.raises(ServiceError):
        fetch("big.bin")
    standin.seen.clear()
    fetch("big.bin")
    assert [seen.headers["Range"] for seen in standin.calls("GET")] == [f"bytes={HALF}-"]
    assert (tmp_path / "data/big.bin").read_bytes() == BIG


def test_a_file_that_changed_meanwhile_starts_over(standin, fetch, tmp_path):
    standin.files["big.bin"] = BIG
    standin.plan("GET", Fault(close=HALF), *[Fault(500)] * 5)
    with pytest.raises(ServiceError):
        fetch("big.bin")
    standin.files["big.bin"] = BIG[::-1]
    fetch("big.bin")
    assert (tmp_path / "data/big.bin").read_bytes() == BIG[::-1]


def test_a_rest_that_does_not_continue_is_thrown_away(standin, fetch, tmp_path):
    standin.files["big.bin"] = BIG
    standin.plan("GET", Fault(close=HALF), Fault(headers={"Content-Range": "bytes 7-2999999/3000000"}))
    fetch("big.bin")
    assert (tmp_path / "data/big.bin").read_bytes() == BIG
    assert ["Range" in seen.headers for seen in standin.calls("GET")] == [False, True, False]


def test_without_a_validator_a_broken_download_starts_over(standin, fetch, tmp_path):
    standin.files["big.bin"] = BIG
    standin.hidden = {"ETag", "Last-Modified"}
    standin.plan("GET", Fault(close=HALF))
    fetch("big.bin")
    assert all("Range" not in seen.headers for seen in standin.calls("GET"))
    assert (tmp_path / "data/big.bin").read_bytes() == BIG


def test_a_download_killed_after_its_last_byte_needs_no_further_request(standin, source, tmp_path):
    standin.files["big.bin"] = BIG

    def killed(what, done, total):
        if done == len(BIG):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.fetch(tmp_path / "data", files=["big.bin"], force=False, progress=killed)
    standin.seen.clear()
    source.fetch(tmp_path / "data", files=["big.bin"], force=False, progress=lambda *_: None)
    assert not standin.calls("GET")
    assert (tmp_path / "data/big.bin").read_bytes() == BIG


def test_a_truncation_nobody_vouches_against_is_held_against_the_listing(standin, fetch, tmp_path):
    standin.files["big.bin"] = BIG
    standin.hidden = {"x-goog-hash"}
    standin.plan("GET", Fault(close=HALF, headers={"Content-Length": None}))
    fetch("big.bin")
    assert (tmp_path / "data/big.bin").read_bytes() == BIG


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b'{"code": 500, "message": "a data file"}', "application/json"),
        (b'{"a": 1}\n{"a": 2}\n', "application/json"),
        (b"42", "application/json"),
        (b"", "text/csv"),
    ],
    ids=["JSON with a code", "NDJSON", "a bare number", "empty"],
)
def test_a_data_file_is_not_taken_for_an_answer(content, content_type, standin, fetch, tmp_path):
    standin.files["data.json"] = content
    standin.content_type = content_type
    fetch("data.json")
    assert (tmp_path / "data/data.json").read_bytes() == content


def test_a_page_among_the_data_is_data(standin, fetch, tmp_path):
    standin.files["page.html"] = b"<html>data</html>"
    standin.content_type = "text/html"
    fetch("page.html")
    assert (tmp_path / "data/page.html").read_bytes() == b"<html>data</html>"


def test_names_keep_their_spaces_letters_and_folders(standin, fetch, tmp_path):
    names = ["a b/é ü.png", "100% [x].csv", "left/same.png", "right/same.png"]
    standin.files |= {name: name.encode() for name in names}
    standin.files["everything else"] = bytes(60_000_000)
    assert fetch(*names).files == 4
    for name in names:
        assert (tmp_path / "data" / name).read_bytes() == name.encode()


def test_a_file_handed_out_as_a_zip_of_itself_is_unwrapped(standin, fetch, tmp_path):
    content = standin.files["train.csv"]
    standin.files = {"train.csv": content}
    standin.files["train.csv"] = standin.zip()
    standin.renamed["train.csv"] = ".zip"
    fetch("train.csv")
    assert (tmp_path / "data/train.csv").read_bytes() == content


def test_a_broken_download_of_the_bundle_is_resumed_too(standin, fetch, tmp_path):
    standin.files["big.bin"] = BIG
    standin.zip()
    standin.plan("GET", Fault(cut=HALF), Fault(cut=HALF // 2))
    fetch()
    assert (tmp_path / "data/big.bin").read_bytes() == BIG


def test_more_than_the_disk_holds_is_refused_before_a_byte_is_written(standin, fetch):
    standin.plan("GET", Fault(headers={"Content-Length": "9" * 16}))
    with pytest.raises(DataError, match="are free in"):
        fetch()


def test_progress_is_told_in_bytes_up_to_the_end(standin, source, tmp_path):
    told = []
    standin.files["big.bin"] = BIG
    source.fetch(tmp_path / "data", files=["big.bin"], force=False, progress=lambda *row: told.append(row))
    downloads = [(done, total) for what, done, total in told if what == "download big.bin"]
    assert downloads[-1] == (len(BIG), len(BIG))
    assert downloads == sorted(downloads)


def test_a_wait_is_told_while_it_lasts(standin, source, tmp_path):
    told = []
    standin.files["big.bin"] = BIG
    standin.plan("GET", Fault(close=HALF))
    standin.plan("DownloadDataFile", Fault(), Fault(429, {"code": 429}, {"Retry-After": "40"}))
    source.fetch(tmp_path / "data", files=["big.bin"], force=False, progress=lambda *row: told.append(row))
    assert ("download big.bin: again in 40 s", HALF, len(BIG)) in told


def test_messages_hold_no_signed_address_and_no_secret(standin, fetch, capfd, caplog):
    caplog.set_level("DEBUG")
    said = []
    for fault in (Fault(reset=True), Fault(500), Fault(stall=0)):
        standin.plan("GET", *[Fault(**vars(fault)) for _ in range(7)])
        with pytest.raises(ServiceError) as caught:
            fetch("train.csv", patience=10.0 if fault.stall is None else 0.1)
        said.append(str(caught.value))
        assert caught.value.__cause__ is None
    standin.plan("DownloadDataFile", Fault(400, {"code": 400, "message": "no key-0123456789abcdef here"}))
    with pytest.raises(ServiceError, match=r"no \*\*\* here"):
        fetch("train.csv")
    captured = capfd.readouterr()
    kept = "\n".join(
        [*said, captured.out, captured.err, *[r.getMessage() for r in caplog.records if "kbench" in r.name]]
    )
    assert "signed-0123456789" not in kept
    assert "key-0123456789abcdef" not in kept
    assert captured.out == ""


def test_the_record_says_what_vouches_for_the_files(standin, fetch, tmp_path):
    standin.hidden = {"x-goog-hash"}
    fetch()
    recorded = json.loads((tmp_path / "data/.download/manifest.json").read_text())
    assert recorded["checked"] == "length"
    assert recorded["whole"] is True
