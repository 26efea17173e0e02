"""Datasets and notebooks on Kaggle: what is uploaded, what is run, and what came of it, in plain values.

What creates something is called once; where its answer is lost, Kaggle is asked whether it is there before it is called
again. Success is never taken from a status code: what lies there is listed and compared.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import requests

from kbench.errors import ServiceError, counted, first_names
from kbench.sources.kaggle.competition import Client
from kbench.sources.kaggle.storage import put_resumable
from kbench.sources.service import faults

LOST = ("network", "timeout", "server", "protocol")
"""Kinds of errors after which something may have been created."""

POLL_S = 15.0
_LOG_LINES = 25


@dataclass(frozen=True)
class Uploadable:
    """A file of a dataset: its name there and where it is here."""

    name: str
    path: Path


@dataclass(frozen=True)
class NotebookVersion:
    """A version of a notebook on Kaggle."""

    owner: str
    slug: str
    version: int
    url: str = ""


@dataclass(frozen=True)
class Output:
    """What a notebook left: the end of its log, and its files by name with where they can be had."""

    log: str
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class KaggleNotebooks:
    """An account's datasets and notebooks.

    Attributes:
        client: makes the calls.
        owner: the account's name.
        tell: told of every step, for people.
    """

    client: Client
    owner: str
    tell: Callable[[str], None] = lambda text: None

    # -- quota ---------------------------------------------------------------------------------------------------

    def accelerator_hours(self) -> float | None:
        """Return the hours of GPU that are left this week; None where Kaggle does not say."""
        answer = self._ask("kernels", "get_accelerator_quota_statistics", "ApiGetAcceleratorQuotaStatisticsRequest",
                           {}, doing="ask for the GPU quota")  # fmt: skip
        quota = answer.gpu_quota
        if quota is None or quota.total_time_allowed is None:
            return None
        used = (quota.time_used or timedelta()) + (quota.time_reserved or timedelta())
        return float((quota.total_time_allowed - used).total_seconds() / 3600)

    # -- datasets ------------------------------------------------------------------------------------------------

    def dataset_version(self, slug: str) -> int:
        """Return the number of a dataset's newest version, 0 where there is no such dataset."""
        body = {"ownerSlug": self.owner, "datasetSlug": slug}
        try:
            answer = self._ask("datasets", "get_dataset", "ApiGetDatasetRequest", body, doing=f"look for '{slug}'")
        except ServiceError as error:
            if error.kind in ("not_found", "forbidden"):
                return 0
            raise
        return int(answer.current_version_number or 1)

    def upload(self, file: Uploadable) -> str:
        """Upload a file's bytes; return their token. A repeat starts over at a new address."""
        doing, status = f"upload {file.name}", file.path.stat()
        body = {"type": "DATASET", "name": file.name, "contentLength": status.st_size,
                "lastModifiedEpochSeconds": int(status.st_mtime)}  # fmt: skip

        def attempt() -> str:
            start = self._ask("blobs", "start_blob_upload", "ApiStartBlobUploadRequest", body, doing=doing, tries=1)
            put_resumable(file.path, start.create_url, doing=doing, timeouts=self.client.timeouts,
                          sleep=self.client.sleep)  # fmt: skip
            return str(start.token)

        return faults.persist(attempt, sleep=self.client.sleep)

    def save_dataset(self, slug: str, title: str, tokens: Sequence[str], notes: str) -> int:
        """Create a private dataset, or a version of it, of uploaded files; return the version's number.

        Raises:
            ServiceError: Kaggle refused it, also where it says so under a status of success.
        """
        before = self.dataset_version(slug)
        files = [{"token": token} for token in tokens]
        if before:
            method, request = "create_dataset_version", "ApiCreateDatasetVersionRequest"
            body: dict[str, Any] = {
                "ownerSlug": self.owner,
                "datasetSlug": slug,
                "body": {"versionNotes": notes, "files": files, "deleteOldVersions": False},
            }
        else:
            method, request = "create_dataset", "ApiCreateDatasetRequest"
            body = {"ownerSlug": self.owner, "slug": slug, "title": title, "licenseName": "other", "isPrivate": True,
                    "files": files}  # fmt: skip
        doing = f"save the dataset '{self.owner}/{slug}'"
        try:
            answer = self._ask("datasets", method, request, body, doing=doing, tries=1)
        except ServiceError as error:
            if error.kind not in LOST or self.dataset_version(slug) <= before:
                raise
            self.tell(f"the answer was lost; '{slug}' has the new version")
            return before + 1
        if (answer.status or "").lower() not in ("ok", "") or answer.error:
            raise ServiceError(
                f"{doing}: Kaggle says '{answer.status}': {answer.error or 'no reason given'}",
                "a dataset that is saved", f"see {faults.SITE}/{self.owner}/{slug}; then `kbench push` again",
                kind="rejected",
            )  # fmt: skip
        return before + 1

    def await_dataset(self, slug: str, *, limit: float) -> None:
        """Wait until a dataset can be mounted.

        Raises:
            ServiceError: it failed, or it took longer than `limit` seconds.
        """
        doing, started = f"wait for the dataset '{slug}'", self.client.clock()
        body = {"ownerSlug": self.owner, "datasetSlug": slug}
        while True:
            answer = self._ask("datasets", "get_dataset_status", "ApiGetDatasetStatusRequest", body, doing=doing)
            state = answer.status.name
            if state == "READY":
                return
            if state in ("FAILED", "DELETED") or self.client.clock() - started > limit:
                raise ServiceError(
                    f"{doing}: it is {state}", "READY",
                    f"look at {faults.SITE}/datasets/{self.owner}/{slug}; `kbench push` uploads it anew",
                    kind="rejected",
                )  # fmt: skip
            self.client.sleep(POLL_S)

    def check_dataset(self, slug: str, files: Sequence[Uploadable]) -> None:
        """Hold the files that a dataset has against those that were uploaded.

        Raises:
            ServiceError: one is missing, or has another size.
        """
        listed = dict(self._dataset_files(slug))
        wrong = [file.name for file in files if listed.get(file.name) != file.path.stat().st_size]
        if wrong:
            missing = [name for name in wrong if name not in listed]
            raise ServiceError(
                f"the dataset '{slug}' lacks {first_names(missing)}" if missing
                else f"the dataset '{slug}' has {first_names(wrong)} with another size",
                f"all {counted(len(files), 'file')} of the bundle", "`kbench push` uploads them anew", kind="corrupt",
            )  # fmt: skip

    def _dataset_files(self, slug: str) -> Iterator[tuple[str, int]]:
        token, seen = "", set[str]()
        while token not in seen:
            seen.add(token)
            body = {"ownerSlug": self.owner, "datasetSlug": slug, "pageSize": 200, "pageToken": token}
            page = self._ask("datasets", "list_dataset_files", "ApiListDatasetFilesRequest", body,
                             doing=f"list the files of '{slug}'")  # fmt: skip
            yield from ((file.name, file.total_bytes) for file in page.dataset_files)
            token = page.next_page_token or ""
            if not token:
                return

    # -- notebooks -----------------------------------------------------------------------------------------------

    def save_notebook(self, slug: str, body: Mapping[str, Any]) -> NotebookVersion:
        """Save a version of a notebook and have it run.

        Where the answer is lost, the notebook that is there is compared with the text; only if it is another one is it
        saved again.

        Raises:
            ServiceError: Kaggle refused it, or did not know one of its sources.
        """
        doing = f"save the notebook '{self.owner}/{slug}'"
        try:
            answer = self._ask("kernels", "save_kernel", "ApiSaveKernelRequest", body, doing=doing, tries=1)
        except ServiceError as error:
            if error.kind not in LOST:
                raise
            known = self._saved(slug, str(body["text"]))
            if known is not None:
                self.tell("the answer was lost; the notebook's new version is there")
                return known
            answer = self._ask("kernels", "save_kernel", "ApiSaveKernelRequest", body, doing=doing, tries=1)
        invalid = {
            what: list(getattr(answer, f"invalid_{what}_sources"))
            for what in ("dataset", "competition", "kernel", "model")
        }
        bad = [f"{what} {first_names(names)}" for what, names in invalid.items() if names]
        if answer.error or bad:
            raise ServiceError(
                f"{doing}: {answer.error or ''}{'; ' if answer.error and bad else ''}"
                f"{'Kaggle does not know the ' + ', '.join(bad) if bad else ''}",
                "a notebook that is saved with all its sources",
                f"accept the competition's rules ({faults.SITE}/competitions), then `kbench push` again",
                kind="rejected",
            )  # fmt: skip
        return NotebookVersion(self.owner, slug, int(answer.version_number or 1), answer.url or "")

    def _saved(self, slug: str, text: str) -> NotebookVersion | None:
        """Return the newest version of a notebook if it holds a text."""
        body = {"userName": self.owner, "kernelSlug": slug}
        try:
            answer = self._ask("kernels", "get_kernel", "ApiGetKernelRequest", body, doing=f"look for '{slug}'")
        except ServiceError as error:
            if error.kind in ("not_found", "forbidden"):
                return None
            raise
        if answer.blob is None or _tag_in(answer.blob.source or "") != _tag_in(text):
            return None
        return NotebookVersion(self.owner, slug, int(answer.metadata.current_version_number or 1))

    def await_notebook(self, notebook: NotebookVersion, *, limit: float) -> None:
        """Wait until a notebook has run.

        Raises:
            ServiceError: it failed, was stopped, or ran longer than `limit` seconds; the end of its log is shown.
        """
        doing, started, pause = f"run the notebook '{notebook.slug}'", self.client.clock(), POLL_S
        body = {"userName": notebook.owner, "kernelSlug": notebook.slug}
        while True:
            request = "ApiGetKernelSessionStatusRequest"
            answer = self._ask("kernels", "get_kernel_session_status", request, body, doing=doing)
            state = answer.status.name
            if state == "COMPLETE":
                return
            late = self.client.clock() - started > limit
            if state in ("ERROR", "CANCEL_ACKNOWLEDGED") or late:
                log = self.output(notebook).log if state == "ERROR" else ""
                raise ServiceError(
                    f"{doing}: it is {state}: {answer.failure_message or 'no reason given'}\n{log}".rstrip(),
                    "a notebook that runs to its end",
                    f"see {notebook.url or faults.SITE + '/code'}; correct what the log names, then `kbench push`",
                    kind="rejected",
                )  # fmt: skip
            self.client.sleep(pause)
            pause = min(pause * 1.5, 120.0)

    def output(self, notebook: NotebookVersion) -> Output:
        """Return the end of a notebook's log and the addresses of its files."""
        token, seen, log, files = "", set[str](), "", dict[str, str]()
        while token not in seen:
            seen.add(token)
            body = {"userName": notebook.owner, "kernelSlug": notebook.slug, "pageSize": 100, "pageToken": token}
            page = self._ask("kernels", "list_kernel_session_output", "ApiListKernelSessionOutputRequest", body,
                             doing=f"list the output of '{notebook.slug}'")  # fmt: skip
            log = page.log or log
            files |= {file.file_name: file.url for file in page.files}
            token = page.next_page_token or ""
            if not token:
                break
        return Output(_tail(log), files)

    def download(self, url: str, *, doing: str) -> bytes:
        """Return a file of a notebook's output."""

        def attempt() -> bytes:
            try:
                response = requests.get(url, timeout=self.client.timeouts)
            except requests.RequestException as error:
                raise faults.explain(error, doing=doing, slug="") from None
            if response.status_code != 200:
                raise faults.from_storage(response, doing=doing)
            return response.content

        return faults.persist(attempt, sleep=self.client.sleep)

    def _ask(self, service: str, method: str, request: str, body: Mapping[str, Any], **how: Any) -> Any:
        return self.client.ask(service, method, request, body, **how)


def _tag_in(text: str) -> str:
    """Return the line of a notebook that tells its version from all others."""
    return next((line for line in text.splitlines() if "kbench push" in line), text)


def _tail(log: str) -> str:
    """Return the last lines of a log, which Kaggle keeps as a JSON list of what was printed."""
    with contextlib.suppress(ValueError, AttributeError, TypeError):
        log = "".join(str(one.get("data", "")) for one in json.loads(log))
    return "\n".join(log.splitlines()[-_LOG_LINES:])
