"""This kbench as a wheel, made from the files it runs from: what a notebook without network installs."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import kbench
from kbench import files

_TAG = "py3-none-any"
_TIME = (1980, 1, 1, 0, 0, 0)  # the same files give the same wheel


def write_wheel(folder: Path) -> Path:
    """Write kbench's wheel into a folder and return it; it names no dependencies, as it is installed without them."""
    root = Path(kbench.__file__).parent
    name = f"kaggle_kbench-{kbench.__version__}"
    contents = {
        f"kbench/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    info = f"{name}.dist-info"
    contents |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: kaggle-kbench\nVersion: {kbench.__version__}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: kbench\nRoot-Is-Purelib: true\nTag: {_TAG}\n".encode(),
        f"{info}/entry_points.txt": b"[console_scripts]\nkbench = kbench.cli:script\n",
    }
    record = "".join(f"{path},sha256={_digest(content)},{len(content)}\n" for path, content in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = files.make_folder(folder) / f"{name}-{_TAG}.whl"
    with files.replacing(wheel) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            archive.writestr(zipfile.ZipInfo(path, _TIME), content, zipfile.ZIP_DEFLATED)
    return wheel


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
