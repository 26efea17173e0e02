"""Write and execute `docs/notebook.ipynb`: the Python API on the embedded digits, in a workspace of its own.

    python docs/make_notebook.py [FILE]

The cells stand below; the outputs come from running them. Nothing is written when a cell fails, or when an output
holds a path of this machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from kbench import files
from kbench.commands.workspace import init

LARGEST = 300_000  # bytes

CELLS = (
    ("markdown", """\
# kbench from Python

The commands do the work; this page shows the same objects in a notebook: a run with its table, folds,
out-of-fold predictions, datasets and models. It trains one short fold of the embedded digits, in a minute or less."""),
    ("code", """\
%matplotlib inline
import os

import kbench

os.environ["FORCE_COLOR"] = ""  # plain text in the log of the commands
os.makedirs("competitions/digits", exist_ok=True)
!(kbench download digits && kbench folds) > kbench.log 2>&1
run = kbench.open_run(competition="digits")
run"""),
    ("markdown", """\
Nothing is trained yet, but the data is there. A table holds ids, image paths, targets and metadata; folds say which
rows validate which model."""),
    ("code", """\
import numpy as np

table, folds = run.table, run.folds
print(table.ids[:5], table.target_names, table.targets[:5])
print(np.bincount(folds.fold), folds.manifest["strategy"], folds.hash)"""),
    ("markdown", """\
The first images fold 0 trains on, with training's own random numbers: crop, rotation, zoom and light of its first
epoch."""),
    ("code", "run.show_batch(fold=0, n=16)"),
    ("markdown", """\
A dataset is a torch `Dataset` of normalised tensors; with `training=True` the augmented rows a fold trains on, else
the rows it is judged on."""),
    ("code", """\
from torch.utils.data import DataLoader

dataset = run.dataset(0, training=True)
images, targets = next(iter(DataLoader(dataset, batch_size=64)))
images.shape, images.dtype, round(float(images.mean()), 2), targets[:8]"""),
    ("markdown", """\
An experiment is a second YAML that says what differs: here a recipe of three epochs. Train one fold of it in the
shell; killed at any moment, the same command goes on where it was."""),
    ("code", """\
%%writefile competitions/digits/short.yaml
stages:
  start: {lr: 5e-3, schedule: {epochs: 1}}
  cycles: {schedule: {cycles: 2, cycle_len: 1}}"""),
    ("code", """\
!kbench train -e short --fold 0 >> kbench.log 2>&1
run = kbench.open_run(competition="digits", experiment="short")
score = run.score()
print(run.trained, run.members(0))
print(f"{score['metric']} {score['score']:.3f}, 95% interval {score['low']:.3f} to {score['high']:.3f}")"""),
    ("markdown", """\
Out-of-fold predictions carry their ids and target names. Here are the rows the fold is least sure of."""),
    ("code", """\
oof = run.oof()
rows = np.isin(table.ids, oof.ids)
sure = oof.values[np.arange(len(oof)), table.targets[rows]]
order = np.argsort(sure)[:5]
for place in order:
    said = oof.names[oof.values[place].argmax()]
    print(f"id {oof.ids[place]}: true {table.targets[rows][place]}, said {said}, p(true) {sure[place]:.3f}")"""),
    ("markdown", "New images, paths or arrays, are predicted as a submission is, by all folds, snapshots and views."),
    ("code", """\
test = run.test
run.predict([test.root / paths[0] for paths in test.images[:4]]).round(3)"""),
    ("markdown", """\
A snapshot is an ordinary torch module, for whatever else you want to ask it."""),
    ("code", """\
import torch

model = run.model(0, device="cpu")
image, target = run.dataset(0)[0]
with torch.inference_mode():
    said = model(image[None]).softmax(1)[0]
int(said.argmax()), int(target)"""),
    ("markdown", "`kbench report -e short` draws the rest: losses, confusion, the most incorrect images."),
)  # fmt: skip


def made() -> Any:
    """Return the notebook, not executed."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    makers = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    notebook.cells = [makers[kind](text) for kind, text in CELLS]
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


def executed(notebook: Any) -> Any:
    """Run a notebook in a new workspace and return it with its outputs."""
    for name in [name for name in os.environ if name.startswith("KBENCH_")]:
        del os.environ[name]
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm, where ipywidgets is not installed
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with tempfile.TemporaryDirectory() as folder:
        init(folder)
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=900, resources=resources, record_timing=False)
        client.execute()
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def checked(notebook: Any) -> str:
    """Return the notebook's text.

    Raises:
        SystemExit: an output holds a path of this machine or an error, or the file is too large.
    """
    text = str(nbformat.writes(notebook)) + "\n"
    outputs = "".join(str(output) for cell in notebook.cells for output in cell.get("outputs", ()))
    for path in {tempfile.gettempdir(), str(Path.home()), sys.prefix, str(Path(__file__).parents[1])}:
        if f"{path}/" in outputs:
            raise SystemExit(f"an output of the notebook holds the path '{path}'")
    if "'output_type': 'stream', 'name': 'stderr'" in outputs or "Traceback" in outputs:
        raise SystemExit(f"the notebook has an error among its outputs: {outputs[:2000]}")
    if len(text) > LARGEST:
        raise SystemExit(f"the notebook has {len(text):,} bytes; at most {LARGEST:,}")
    return text


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("notebook.ipynb")
    files.write_text(target, checked(executed(made())))
    print(f"wrote {target.name}")
