"""kbench's half of `bench_fastai.py`; runs in kbench's environment, in the workspaces the driver made.

    python kbench_side.py JOB.json          (driven by bench_fastai.py)

One fold is trained by the generator that `kbench train` consumes, so that the other side can go between two epochs;
the five folds from activations are the command `kbench train` itself, its start-up included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from turns import Turns


def five_folds(workspace: Path) -> dict[str, Any]:
    """Train all folds from activations in a workspace of their own, where nothing is cached yet; score them."""
    started = time.perf_counter()
    command(workspace, "train", "--fold", "all")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "score": command(workspace, "score")}


def command(workspace: Path, *words: str) -> Any:
    """Run a command of kbench; return what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "kbench", *words, "--json"], cwd=workspace, check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout)


def main() -> None:
    turns = Turns()
    job = json.loads(Path(sys.argv[1]).read_text())
    os.chdir(job["workspace"])
    import timm
    import torch

    import kbench
    from kbench.commands.ensemble import ensemble
    from kbench.commands.predict import predict_rows
    from kbench.runs.blend import EnsembleOptions
    from kbench.runs.experiment import open_experiment
    from kbench.runs.fold_job import TrainOptions, prepare_fold
    from kbench.runs.opening import prepare_run
    from kbench.training.events import Epoch
    from kbench.training.fold import train_fold
    from kbench.workspace import Choice

    choice = Choice("dogcat")
    fold = prepare_fold(
        prepare_run(open_experiment(choice), force=False), 0, TrainOptions(device="cpu", threads=job["threads"])
    )
    events = train_fold(fold.context, fold.stages, fold.build, resumed=fold.resumed)
    next(events)  # announces the first stage: images are cached, the model stands
    turns.done("start", kbench=kbench.__version__, torch=torch.__version__, timm=timm.__version__,
               threads=torch.get_num_threads(), workers=fold.context.workers)  # fmt: skip
    for event in events:
        if isinstance(event, Epoch):
            turns.done(
                event.stage, seconds=event.seconds, train_s=len(fold.context.train_rows) / event.images_per_s,
                train_loss=event.train_loss, valid_loss=event.valid_loss,
            )  # fmt: skip
    started = time.perf_counter()
    found = predict_rows(choice, data=None, out=None, device="cpu", force=True)
    cold = time.perf_counter() - started
    predict_rows(choice, data=None, out=None, device="cpu", force=True)
    warm = time.perf_counter() - started - cold
    turns.done("tta", seconds=cold, again_s=warm, images=found["rows"])
    made = ensemble(choice, [], EnsembleOptions(device="cpu"))
    turns.done("file", file=made["file"], oof={key: made[key] for key in ("score", "low", "high")})
    turns.done("folds", **five_folds(Path(job["folds_workspace"])))


if __name__ == "__main__":
    main()
