"""The stand-in with datasets and notebooks: what is saved runs when it is saved, by whatever `runs` is.

`execute` is what runs them in truth: a kernel of its own without network, bundle and data where Kaggle mounts them, and
only the working folder to be written.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from standin import Blob, StandIn, _Refusal

Files = Mapping[str, bytes]
Runs = Callable[[str, Files], tuple[Files, str]]
"""(text of the notebook, files of its dataset) -> files that it wrote, its log; raises `Failed`."""


class Failed(Exception):
    """A notebook that ended with an error: its log."""


class NotebookStandIn(StandIn):
    """One code competition with an account's datasets and notebooks."""

    def __init__(self, runs: Runs) -> None:
        super().__init__()
        self.about["isKernelsSubmissionsOnly"] = True
        self.runs = runs
        self.quota = {"timeUsed": "3600s", "timeReserved": "0s", "totalTimeAllowed": "108000s"}
        self.datasets: dict[str, list[dict[str, bytes]]] = {}
        self.states: deque[str] = deque()
        self.left_out: set[str] = set()
        self.kernels: dict[str, list[str]] = {}
        self.outputs: dict[str, bytes] = {}
        self.log, self.state = "", "QUEUED"
        self._names: dict[str, str] = {}

    def _GetAcceleratorQuotaStatistics(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"gpuQuota": self.quota}

    def _StartBlobUpload(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["type"] == "DATASET"
        url = self.address("upload", asked["name"])
        self._names[f"token-{self._addresses}"] = asked["name"]
        return {"token": f"token-{self._addresses}", "createUrl": url}

    def _save(self, slug: str, files: list[dict[str, str]]) -> dict[str, Any]:
        version = {self._names[one["token"]]: self.uploads[one["token"]] for one in files}
        self.datasets.setdefault(slug, []).append({k: v for k, v in version.items() if k not in self.left_out})
        return {"ref": f"tester/{slug}", "url": "", "status": "ok", "error": ""}

    def _CreateDataset(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["isPrivate"]
        return self._save(asked["slug"], asked["files"])

    def _CreateDatasetVersion(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._save(asked["datasetSlug"], asked["body"]["files"])

    def _versions(self, asked: dict[str, Any]) -> list[dict[str, bytes]]:
        if asked["datasetSlug"] not in self.datasets:
            raise _Refusal(404, "Dataset not found")
        return self.datasets[asked["datasetSlug"]]

    def _GetDataset(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"id": 1, "ref": asked["datasetSlug"], "currentVersionNumber": len(self._versions(asked))}

    def _GetDatasetStatus(self, asked: dict[str, Any]) -> dict[str, Any]:
        self._versions(asked)
        return {"status": self.states.popleft() if self.states else "READY"}

    def _ListDatasetFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        listed = [{"name": name, "totalBytes": len(content)} for name, content in self._versions(asked)[-1].items()]
        return self._page("datasetFiles", listed, asked)

    def _SaveKernel(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["isPrivate"]
        assert not asked.get("enableInternet", False)
        slug = asked["slug"].partition("/")[2]
        unknown = [one for one in asked["datasetDataSources"] if one.partition("/")[2] not in self.datasets]
        if unknown:
            return {"ref": slug, "invalidDatasetSources": unknown}
        self.kernels.setdefault(slug, []).append(asked["text"])
        files = self.datasets[asked["datasetDataSources"][0].partition("/")[2]][-1]
        try:
            written, self.log = self.runs(asked["text"], files)
            self.outputs, self.state = dict(written), "COMPLETE"
        except Failed as error:
            self.outputs, self.state, self.log = {}, "ERROR", str(error)
        return {"ref": slug, "url": "", "versionNumber": len(self.kernels[slug]), "kernelId": 7}

    def _GetKernel(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["kernelSlug"] not in self.kernels:
            raise _Refusal(404, "Kernel not found")
        versions = self.kernels[asked["kernelSlug"]]
        return {"metadata": {"currentVersionNumber": len(versions)}, "blob": {"source": versions[-1]}}

    def _GetKernelSessionStatus(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"status": self.state, "failureMessage": "it failed" if self.state == "ERROR" else ""}

    def _ListKernelSessionOutput(self, asked: dict[str, Any]) -> dict[str, Any]:
        files = [{"fileName": name, "url": self.address("output", name)} for name in self.outputs]
        return {"log": self.log, **self._page("files", files, asked)}

    def _CreateCodeSubmission(self, asked: dict[str, Any]) -> dict[str, Any]:
        if len(self.kernels.get(asked["kernelSlug"], [])) < asked["kernelVersion"]:
            raise _Refusal(400, "No such version")
        ref = 5000 + len(self.submissions)
        self.submissions.append({"status": "PENDING", "publicScore": "", "privateScore": "", "ref": ref,
                                 "date": "2026-01-02T03:04:05.678Z", "fileName": asked["fileName"],
                                 "description": asked["submissionDescription"]})  # fmt: skip
        return {"message": "Successfully submitted", "ref": ref}

    def blob(self, path: str) -> Blob:
        if path.strip("/").startswith("output/"):
            return self.outputs[path.rpartition("/")[2]]
        return super().blob(path)


_EXECUTE = """
import sys
import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
manager = AsyncKernelManager(transport="ipc", kernel_name="python3")
client = NotebookClient(notebook, km=manager, timeout=600, resources={"metadata": {"path": sys.argv[2]}})
try:
    client.execute()
finally:
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            print(output.get("text", ""), *output.get("traceback", []), sep="\\n")
"""


def without_network() -> list[str]:
    """Return what to put before a command so that it has no network; nothing where the system does not allow that."""
    words = ["unshare", "-rn"]
    try:
        allowed = subprocess.run([*words, "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return words if allowed else []


def execute(text: str, files: Files, data: Path, root: Path, *, slug: str = "tiny-images") -> tuple[Files, str]:
    """Run a notebook as Kaggle would, and return the files it wrote and its log.

    Args:
        text: of the notebook.
        files: of its dataset, without folders.
        data: the competition's data folder.
        root: an empty folder for what is needed.
        slug: the competition's, under which its data is mounted.
    """
    bundle, working = root / "input" / "kbench-bundle", root / "working"
    for folder in (bundle, working, root / "ipc", root / "home"):
        folder.mkdir(parents=True)
    for name, content in files.items():
        (bundle / name).write_bytes(content)
        (bundle / name).chmod(0o444)
    bundle.chmod(0o555)
    (root / "input" / slug).symlink_to(data, target_is_directory=True)
    notebook = root / "notebook.ipynb"
    notebook.write_text(text)
    environ = {
        "PATH": os.environ["PATH"], "HOME": str(root / "home"), "OMP_NUM_THREADS": "1",
        "KBENCH_INPUT": str(root / "input"), "KBENCH_WORKING": str(working), "JUPYTER_RUNTIME_DIR": str(root / "ipc"),
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }  # fmt: skip
    words = [*without_network(), sys.executable, "-c", _EXECUTE, str(notebook), str(working)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=environ, cwd=working)
    if done.returncode:
        raise Failed(done.stdout + done.stderr)
    return {path.name: path.read_bytes() for path in working.iterdir() if path.is_file()}, done.stdout
