"""What kbench relies on in the real client: when a new version breaks one of these, `client.py` must follow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from standin import environment

from kbench.sources.kaggle import signin

LOCAL_HTTP = {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "NO_PROXY": "", "HTTPS_PROXY": "http://127.0.0.1:9"}

# call of kbench -> the requests it makes: method and body, as recorded
RECORDED = {
    "about": [("competitions.CompetitionApiService/GetCompetition", {"competitionName": "tiny-images"})],
    "pages": [("competitions.CompetitionApiService/ListCompetitionPages", {"competitionName": "tiny-images"})],
    "files": [
        (
            "competitions.CompetitionApiService/ListDataFiles",
            {"competitionName": "tiny-images", "pageSize": 200, "pageToken": ""},
        )
    ],
    "limits": [("competitions.CompetitionApiService/GetSubmissionLimits", {"competitionName": "tiny-images"})],
    "submissions": [
        (
            "competitions.CompetitionApiService/ListSubmissions",
            {"competitionName": "tiny-images", "page": 1, "pageSize": 200, "pageToken": ""},
        )
    ],
    "status": [("competitions.CompetitionApiService/GetSubmission", {"ref": 7})],
    "download a file": [
        (
            "competitions.CompetitionApiService/DownloadDataFile",
            {"competitionName": "tiny-images", "fileName": "train.csv"},
        )
    ],
    "download all": [("competitions.CompetitionApiService/DownloadDataFiles", {"competitionName": "tiny-images"})],
    "upload": [
        (
            "competitions.CompetitionApiService/StartSubmissionUpload",
            {
                "competitionName": "tiny-images",
                "contentLength": 3,
                "lastModifiedEpochSeconds": 5,
                "fileName": "submission.csv",
            },
        )
    ],
    "create": [
        (
            "competitions.CompetitionApiService/CreateSubmission",
            {"competitionName": "tiny-images", "blobFileTokens": "token-1", "submissionDescription": "text"},
        )
    ],
}


@pytest.fixture
def calls(source, tmp_path):
    def drain(connect):
        with connect({}) as response:
            response.raw.read()

    def upload():
        file = tmp_path / "submission.csv"
        file.write_bytes(b"id\n")
        os.utime(file, (5, 5))
        source.upload(file, lambda *_: None)

    return {
        "about": source.about,
        "pages": source.pages,
        "files": source.files,
        "limits": source.limits,
        "submissions": lambda: list(source.submissions()),
        "status": lambda: source.status("7"),
        "download a file": lambda: drain(source.open_file("train.csv")),
        "download all": lambda: drain(source.open_bundle()),
        "upload": upload,
        "create": lambda: source.create("token-1", "text"),
    }


@pytest.mark.parametrize("name", RECORDED)
def test_requests_are_as_recorded(name, calls, standin):
    standin.uploads["token-1"] = b""
    calls[name]()
    made = [(seen.path, seen.json()) for seen in standin.seen if seen.method == "POST"]
    assert made == [(f"/api/v1/{path}", body) for path, body in RECORDED[name]]


def test_the_endpoint_table_is_read_when_a_client_is_made(monkeypatch):
    from kagglesdk import KaggleClient, KaggleEnv, kaggle_env

    monkeypatch.setitem(kaggle_env._env_to_endpoint, KaggleEnv.LOCAL, "http://127.0.0.1:1")
    assert KaggleClient(env=KaggleEnv.LOCAL).http_client()._endpoint == "http://127.0.0.1:1"
    assert kaggle_env._env_to_endpoint[KaggleEnv.PROD] == "https://api.kaggle.com"


def test_an_entered_client_has_a_session_and_no_time_limit_of_its_own():
    import requests
    from kagglesdk import KaggleClient, KaggleEnv

    with KaggleClient(env=KaggleEnv.LOCAL) as client:
        assert isinstance(client.http_client()._session, requests.Session)


def test_an_enum_value_the_client_does_not_know_is_a_key_error():
    from kagglesdk.competitions.types.competition_api_service import ApiSubmission

    with pytest.raises(KeyError):
        ApiSubmission.from_dict({"status": "SHINY"})


def test_the_client_is_one_that_does_not_lose_data():
    from importlib.metadata import version

    assert signin.version_tuple(version("kaggle")) >= signin.NEEDED


def test_the_client_says_how_it_signed_in_under_the_names_used_here(standin, source):
    source.about()
    values = sys.modules["kaggle"].api.config_values
    assert "LEGACY" in values["auth_method"]
    assert values["username"] == "tester"
    assert set(values) >= {"username", "key", "auth_method"}


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [(["files", "tiny-images"], "train.csv"), (["submit", "tiny-images", "-f", "FILE", "-m", "text"], "")],
    ids=["files", "submit"],
)
def test_the_stand_in_serves_the_clients_own_command_line(arguments, answer, standin, client_home, tmp_path):
    """The command is not changed at all: it reaches the stand-in as its proxy."""
    file = tmp_path / "submission.csv"
    file.write_bytes(b"id\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kaggle",
            "competitions",
            *[str(file) if word == "FILE" else word for word in arguments],
        ],
        env={**os.environ, **environment(client_home), **LOCAL_HTTP, "HTTP_PROXY": standin.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert answer in done.stdout
    assert [item["description"] for item in standin.submissions] == (["text"] if arguments[0] == "submit" else [])


def test_the_client_is_not_imported_before_it_is_needed():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from kbench.sources.kaggle.client import kaggle; kaggle(slug='a');"
            "sys.exit(any(name.split('.')[0] in ('kaggle', 'kagglesdk') for name in sys.modules))",
        ],
        check=False,
    )
    assert done.returncode == 0
