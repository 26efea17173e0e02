"""A stand-in for Kaggle and its storage on 127.0.0.1, for tests that run the real client.

`StandIn` holds one competition and answers the calls that kbench makes, as recorded from the real client: requests
are `POST .../<Method>` with JSON, files come through a redirect to a signed address under another host name
(`localhost`), uploads go there with PUT. `plan(route, Fault(...))` makes the next answer of a route go wrong; a
route is a method (`CreateSubmission`), or `GET` and `PUT` of storage. Every request is kept in `seen`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import socket
import struct
import sys
import threading
import zipfile
from base64 import b64encode
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

Blob = bytes | Path
KEY = "key-0123456789abcdef"
TOKEN = "KGAT_0123456789abcdef"
SIGNATURE = "signed-0123456789"
SUBMISSION = {"status": "PENDING", "publicScore": "", "privateScore": ""}


class Gate:
    """Holds a request back: `reached` is set when one has come, `open` lets it go on."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        self.open.wait(120)


@dataclass
class Fault:
    """How one answer goes wrong.

    Attributes:
        status: answer with this status and `body` instead.
        body: its body; a mapping is sent as JSON.
        headers: added to the answer, or replacing a header of it; None removes one.
        reset: reset the connection instead of answering.
        cut: reset the connection after so many bytes of the body.
        close: end the connection after so many bytes, without a word.
        stall: send so many bytes of the body, then nothing.
        flip: change one bit of the body.
        gzip: compress the body and say so.
        chunked: send the body in chunks, without a length.
        done: do what was asked before going wrong.
        gate: wait for it; with `done` after what was asked was done, else before.
    """

    status: int = 0
    body: bytes | Mapping[str, Any] = b""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    reset: bool = False
    cut: int | None = None
    close: int | None = None
    stall: int | None = None
    flip: bool = False
    gzip: bool = False
    chunked: bool = False
    done: bool = False
    gate: Gate | None = None


@dataclass(frozen=True)
class Seen:
    """One request as it came in."""

    method: str
    route: str
    path: str
    host: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class StandIn:
    """One competition, its files and its submissions, served at `url`."""

    def __init__(self, slug: str = "tiny-images") -> None:
        self.slug = slug
        self.about: dict[str, Any] = {"id": 1, "ref": slug, "title": "Tiny Images", "userHasEntered": True}
        self.pages: list[dict[str, str]] = []
        self.files: dict[str, Blob] = {}
        self.bundle: Blob | None = None
        self.limits: dict[str, Any] = {"numToday": 0, "numTotal": 0, "numAllowedNow": 5}
        self.submissions: list[dict[str, Any]] = []
        self.scores: deque[dict[str, str]] = deque()
        self.grade: Callable[[bytes], float] | None = None
        self.uploads: dict[str, bytes] = {}
        self.arrived: dict[str, bytes] = {}
        self.page_size = 2
        self.empty_page = False
        self.content_type = "text/csv"
        self.accepts = {"Basic " + b64encode(f"tester:{KEY}".encode()).decode(), f"Bearer {TOKEN}"}
        self.hidden: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.seen: list[Seen] = []
        self.stop_stalling = threading.Event()
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._addresses = 0
        self.errors: list[BaseException] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.standin = self
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.stop_stalling.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def plan(self, route: str, *faults: Fault) -> None:
        """Make the next answers of a route go wrong, one fault each."""
        self._faults[route].extend(faults)

    def next_fault(self, route: str) -> Fault:
        queue = self._faults[route]
        return queue.popleft() if queue else Fault()

    def zip(self, **extra: bytes) -> bytes:
        """Make the bundle of all files and return it."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, blob in {**self.files, **extra}.items():
                archive.writestr(name, blob if isinstance(blob, bytes) else blob.read_bytes())
        self.bundle = buffer.getvalue()
        return self.bundle

    def calls(self, route: str) -> list[Seen]:
        """Return the requests of a route."""
        return [seen for seen in self.seen if seen.route == route]

    def address(self, kind: str, name: str) -> str:
        """Return a new signed address of storage, under the other host name."""
        self._addresses += 1
        return f"http://localhost:{self.port}/{kind}/{self._addresses}/{quote(name)}?X-Goog-Signature={SIGNATURE}"

    def answer(self, method: str, asked: dict[str, Any]) -> dict[str, Any] | str:
        """Return what a call is answered: JSON, or the address it is sent on to."""
        if method == "IntrospectToken":
            known = f"Bearer {asked['token']}" in self.accepts
            return {"active": known, "username": "tester" if known else ""}
        if asked.get("competitionName", self.slug) != self.slug:
            raise _Refusal(403, "Permission 'competitions.participate' was denied")
        return getattr(self, f"_{method}")(asked)

    def _GetCompetition(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self.about

    def _ListCompetitions(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"competitions": [self.about], "nextPageToken": ""}

    def _ListCompetitionPages(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"pages": self.pages}

    def _ListDataFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        listed = [{"name": name, "totalBytes": size(blob)} for name, blob in self.files.items()]
        return self._page("files", listed, asked)

    def _ListSubmissions(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._page("submissions", self.submissions[::-1], asked)

    def _page(self, key: str, items: list[dict[str, Any]], asked: dict[str, Any]) -> dict[str, Any]:
        """Return one page; with `empty_page` an empty one comes after the first."""
        token = asked.get("pageToken") or "0"
        if token == "empty":
            return {key: [], "nextPageToken": str(self.page_size)}
        start = int(token)
        following = str(start + self.page_size) if start + self.page_size < len(items) else ""
        if self.empty_page and start == 0 and following:
            following = "empty"
        return {key: items[start : start + self.page_size], "nextPageToken": following}

    def _DownloadDataFile(self, asked: dict[str, Any]) -> str:
        if asked["fileName"] not in self.files:
            raise _Refusal(404, "File not found")
        return self.address("file", asked["fileName"] + self.renamed.get(asked["fileName"], ""))

    def _DownloadDataFiles(self, asked: dict[str, Any]) -> str:
        return self.address("bundle", f"{self.slug}.zip")

    def _GetSubmissionLimits(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self.limits

    def _StartSubmissionUpload(self, asked: dict[str, Any]) -> dict[str, Any]:
        url = self.address("upload", asked["fileName"])
        return {"token": f"token-{self._addresses}", "createUrl": url}

    def _CreateSubmission(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["blobFileTokens"] not in self.uploads:
            raise _Refusal(400, "Unknown upload")
        ref = 4000 + len(self.submissions)
        described = {"ref": ref, "date": "2026-01-02T03:04:05.678Z", "description": asked["submissionDescription"]}
        self.submissions.append({**SUBMISSION, **described, "fileName": "submission.csv"})
        if self.grade is not None:
            score = self.grade(self.uploads[asked["blobFileTokens"]])
            self.scores.append({"status": "COMPLETE", "publicScore": f"{score:.5f}"})
        return {"message": "Successfully submitted", "ref": ref}

    def _GetSubmission(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = next((item for item in self.submissions if item["ref"] == asked["ref"]), None)
        if found is None:
            raise _Refusal(404, "Submission not found")
        if self.scores:
            found.update(self.scores.popleft())
        return found

    def blob(self, path: str) -> Blob:
        kind, _, name = path.strip("/").split("/", 2)
        name = unquote(name)
        if kind == "bundle":
            assert self.bundle is not None
            return self.bundle
        return self.files[name if name in self.files else name.removesuffix(".zip")]


@dataclass
class _Refusal(Exception):
    status: int
    message: str


def environment(home: Path) -> dict[str, str]:
    """Return the variables a test, or a process it starts, runs with."""
    return {
        "HOME": str(home),
        "TMPDIR": str(home),
        "KAGGLE_CONFIG_DIR": str(home),
        "XDG_CONFIG_HOME": str(home),
        "KAGGLE_USERNAME": "tester",
        "KAGGLE_KEY": KEY,
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
    }


def size(blob: Blob) -> int:
    return len(blob) if isinstance(blob, bytes) else blob.stat().st_size


def md5(blob: Blob) -> bytes:
    if isinstance(blob, bytes):
        return hashlib.md5(blob).digest()
    with open(blob, "rb") as handle:
        return hashlib.file_digest(handle, "md5").digest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    standin: StandIn

    def handle_error(self, *args: object) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):  # the other side may go at any time
            self.standin.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def standin(self) -> StandIn:
        assert isinstance(self.server, _Server)
        return self.server.standin

    def log_message(self, *args: object) -> None:
        pass

    def _see(self, route: str) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        seen = Seen(self.command, route, self.path, self.headers["Host"], dict(self.headers.items()), body)
        self.standin.seen.append(seen)
        return body

    def do_POST(self) -> None:
        method = urlsplit(self.path).path.rpartition("/")[2]
        body = self._see(method)
        fault = self.standin.next_fault(method)
        if fault.stall is not None:
            self.standin.stop_stalling.wait(20)
            self.close_connection = True
            return None
        if fault.gate is not None and not fault.done:
            fault.gate.wait()
        if fault.reset and not fault.done:
            return self._reset()
        if fault.status and not fault.done:
            return self._fail(fault)
        try:
            if method != "IntrospectToken" and self.headers.get("Authorization") not in self.standin.accepts:
                raise _Refusal(401, "Unauthenticated")
            answer = self.standin.answer(method, json.loads(body or b"{}"))
        except _Refusal as refusal:
            return self._json(refusal.status, {"code": refusal.status, "message": refusal.message})
        if fault.gate is not None and fault.done:
            fault.gate.wait()
        if fault.reset:
            return self._reset()
        if fault.status:
            return self._fail(fault)
        if isinstance(answer, str):
            return self._send(302, b"", {"Location": answer, "Content-Type": "text/html"})
        return self._json(200, answer, fault.headers)

    def do_PUT(self) -> None:
        asked, number = self.headers.get("Content-Range", ""), urlsplit(self.path).path.split("/")[2]
        there = self.standin.arrived
        if asked.startswith("bytes */"):  # how much has come?
            self._see("PUT")
            known = len(there.get(number, b""))
            return self._send(308, b"", {"Range": f"bytes=0-{known - 1}"} if known else {})
        fault = self.standin.next_fault("PUT")
        if fault.gate is not None:  # the bytes are under way
            fault.gate.wait()
        if fault.cut is not None:
            there[number] = self.rfile.read(fault.cut)
            return self._reset()
        body = there.pop(number, b"") + self._see("PUT")
        if fault.reset:
            return self._reset()
        if fault.status:
            return self._fail(fault)
        self.standin.uploads[f"token-{number}"] = body
        return self._send(200, b"", {})

    def do_GET(self) -> None:
        self._see("GET")
        fault = self.standin.next_fault("GET")
        if fault.reset:
            return self._reset()
        if fault.status:
            return self._fail(fault)
        self._blob(self.standin.blob(urlsplit(self.path).path), fault)

    def _blob(self, blob: Blob, fault: Fault) -> None:
        if fault.gzip:
            assert isinstance(blob, bytes)
            blob = gzip.compress(blob, mtime=0)
        digest, total = md5(blob), size(blob)
        headers: dict[str, str | None] = {
            "Content-Type": self.standin.content_type,
            "ETag": f'"{digest.hex()}"',
            "Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT",
            "Accept-Ranges": "bytes",
            "x-goog-hash": f"crc32c=AAAAAA==, md5={b64encode(digest).decode()}",
        }
        headers = {name: value for name, value in headers.items() if name not in self.standin.hidden}
        if fault.gzip:
            headers["Content-Encoding"] = "gzip"
        status, start = 200, 0
        asked, unless = self.headers.get("Range"), self.headers.get("If-Range")
        if asked and (unless is None or unless in (headers.get("ETag"), headers.get("Last-Modified"))):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= total:
                return self._send(416, b"", {"Content-Range": f"bytes */{total}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        headers["Content-Length"] = str(total - start)
        self._body(status, blob, start, total, {**headers, **fault.headers}, fault)

    def _body(
        self, status: int, blob: Blob, start: int, total: int, headers: dict[str, str | None], fault: Fault
    ) -> None:
        if fault.chunked:
            headers |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
        self._head(status, headers)
        end = min([total, *(start + n for n in (fault.cut, fault.close, fault.stall) if n is not None)])
        source = io.BytesIO(blob) if isinstance(blob, bytes) else open(blob, "rb")  # noqa: SIM115
        with source:
            source.seek(start)
            while start < end:
                chunk = source.read(min(1 << 18, end - start))
                if fault.flip:
                    chunk, fault.flip = bytes([chunk[0] ^ 1]) + chunk[1:], False
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if fault.chunked else chunk)
                start += len(chunk)
        if fault.cut is not None:
            self._reset()
        elif fault.close is not None:
            self.close_connection = True
        elif fault.stall is not None:
            self.standin.stop_stalling.wait(20)
            self.close_connection = True
        elif fault.chunked:
            self.wfile.write(b"0\r\n\r\n")
        if headers.get("Content-Length") != str(total):
            self.close_connection = True

    def _fail(self, fault: Fault) -> None:
        if isinstance(fault.body, bytes):
            return self._send(fault.status, fault.body, {"Content-Type": "text/html", **fault.headers})
        return self._json(fault.status, fault.body, fault.headers)

    def _json(self, status: int, answer: Mapping[str, Any], headers: Mapping[str, str | None] | None = None) -> None:
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str | None]) -> None:
        self._head(status, {"Content-Length": str(len(body)), **headers})
        self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str | None]) -> None:
        self.send_response_only(status)
        for name, value in {"Date": self.date_time_string(), **headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def _reset(self) -> None:
        """Close the connection so that the other side sees a reset."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
