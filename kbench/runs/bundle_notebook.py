"""The notebook that runs a bundle where it is scored: it finds the data, installs what lies beside it, and predicts."""

from __future__ import annotations

import json
from typing import Any

_INSTALL = """\
import glob, os, subprocess, sys

INPUT = os.environ.get("KBENCH_INPUT", "/kaggle/input")
WORKING = os.environ.get("KBENCH_WORKING", "/kaggle/working")
def first(patterns, what):
    hits = [hit for pattern in patterns for hit in sorted(glob.glob(os.path.join(INPUT, pattern)))]
    if not hits:
        raise SystemExit(f"there is no {what} under {INPUT}: {os.listdir(INPUT)}")
    return hits[0]

bundle = os.path.dirname(first(["*/bundle.json", "*/*/bundle.json", "*/*/*/bundle.json"], "bundle"))
data = first(["@SLUG@", "competitions/@SLUG@"], "data of '@SLUG@'")
wheels = sorted(glob.glob(os.path.join(bundle, "*.whl")) + glob.glob(os.path.join(bundle, "wheels", "*.whl")))
target = os.path.join(WORKING, ".packages")
if wheels:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", target,
                    *wheels], check=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([target, os.environ.get("PYTHONPATH", "")])
"""
_PREDICT = """\
started = subprocess.run([sys.executable, "-m", "kbench", "infer", bundle, "--data", data,
                          "--out", os.path.join(WORKING, "@FILE@"), "--work", os.path.join(WORKING, ".kbench-work")],
                         check=False, capture_output=True, text=True)
print(started.stdout[-4000:], started.stderr[-4000:], sep="\\n")
if started.returncode:
    raise SystemExit(f"kbench infer ended with {started.returncode}: {started.stderr[-2000:]}")
"""
_TIDY = """\
import shutil
for folder in (".packages", ".kbench-work"):
    shutil.rmtree(os.path.join(WORKING, folder), ignore_errors=True)
print(os.listdir(WORKING))
"""
_CELLS = {"install": _INSTALL, "predict": _PREDICT, "tidy": _TIDY}


def notebook_text(slug: str, file: str, *, tag: str = "") -> str:
    """Return a notebook as its JSON.

    Args:
        slug: the competition's, under which its data is mounted.
        file: name of the submission's file.
        tag: what tells this version of the notebook from others.
    """
    cells = [_words(f"`kbench infer` of a bundle for '{slug}' (kbench push {tag})".replace(" )", ")")),
             *(_code(name, text, slug, file) for name, text in _CELLS.items())]  # fmt: skip
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
              "language_info": {"name": "python"}}  # fmt: skip
    return json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1)


def _code(name: str, text: str, slug: str, file: str) -> dict[str, Any]:
    source = text.replace("@SLUG@", slug).replace("@FILE@", file)
    return {"cell_type": "code", "execution_count": None, "id": name, "metadata": {},
            "outputs": [], "source": source.splitlines(keepends=True)}  # fmt: skip


def _words(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": "words", "metadata": {}, "source": [text]}
