"""fastai's half of `bench_fastai.py`; runs in fastai's own environment.

    python fastai_side.py JOB.json          (driven by bench_fastai.py)

The learner is fastai's own `vision_learner` with its default head, optimiser and loader. What is set is what
kbench is set to as well: weights, size, batch, rates, SGDR cycles, and the lesson's side-on augmentation.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import Any

from turns import Turns

BACKBONE = "mobilenetv2_100"


def learner_of(job: dict[str, Any], fold: int) -> Any:
    """Return a frozen learner whose validation rows are a fold's."""
    import pandas as pd
    from fastai.callback.channelslast import ChannelsLast
    from fastai.vision import all as fv
    from safetensors.torch import load_file

    fv.set_seed(job["seed"] + fold)
    root = Path(job["data"])
    frame = pd.read_csv(root / "train.csv", dtype={"filename": str})
    frame["valid"] = frame["filename"].isin(job["folds"][fold])
    augment = fv.aug_transforms(max_lighting=0.1, p_lighting=1.0, max_warp=0.0)  # rotate 10, zoom 1.1, mirror
    workers = {} if job["workers"] is None else {"num_workers": job["workers"]}
    loaders = fv.ImageDataLoaders.from_df(
        frame, path=root, folder="train", fn_col="filename", label_col="label", valid_col="valid", bs=job["batch"],
        item_tfms=fv.Resize(job["size"]), y_block=fv.CategoryBlock(),
        batch_tfms=[*augment, fv.Normalize.from_stats(*fv.imagenet_stats)], device=fv.torch.device("cpu"), **workers,
    )  # fmt: skip
    learner = fv.vision_learner(
        loaders, BACKBONE, pretrained=False, metrics=fv.accuracy, pad_type="same", path=Path(job["out"]),
        train_bn="frozen_bn" not in job["fastai_options"], wd=job["weight_decay"],
    )  # fmt: skip
    weights = {key: value for key, value in load_file(job["weights"]).items() if not key.startswith("classifier.")}
    learner.model[0].model.load_state_dict(weights)
    if "channels_last" in job["fastai_options"]:
        learner.add_cb(ChannelsLast())
    learner.freeze()
    return learner


def epoch_clock(stage: str, turns: Turns) -> Any:
    """Return a callback that times epochs and lets the other side go after each."""
    from fastai.callback.core import Callback

    class Clock(Callback):
        order = 100  # before_epoch and after_epoch: when everybody else is done

        def before_epoch(self) -> None:
            self.started = time.perf_counter()

        def after_train(self) -> None:
            self.train_s = time.perf_counter() - self.started

        def after_epoch(self) -> None:
            seconds = time.perf_counter() - self.started
            train_loss, valid_loss, accuracy = (float(value) for value in self.recorder.values[-1])
            turns.done(
                stage, seconds=seconds, train_s=self.train_s, train_loss=train_loss, valid_loss=valid_loss,
                valid_accuracy=accuracy,
            )  # fmt: skip

    return Clock()


def fit(learner: Any, job: dict[str, Any], rates: list[float], clock: Any = None) -> None:
    """Train a stage of SGDR cycles."""
    with learner.no_bar(), learner.no_logging():
        learner.fit_sgdr(job["cycles"], 1, lr_max=rates, cycle_mult=2, cbs=clock)


def predict_test(learner: Any, job: dict[str, Any]) -> list[tuple[str, float]]:
    """Return (id, probability of a dog) of the test images: fastai's TTA of 4 draws and the plain view."""
    files = sorted((Path(job["data"]) / "test").glob("*.jpg"))
    with learner.no_bar(), learner.no_logging():
        probabilities, _ = learner.tta(dl=learner.dls.test_dl(files), n=4)
    dog = list(learner.dls.vocab).index(1)
    return [(file.stem, float(row[dog])) for file, row in zip(files, probabilities, strict=True)]


def main() -> None:
    turns = Turns()
    job = json.loads(Path(sys.argv[1]).read_text())
    import fastai
    import timm
    import torch

    torch.set_num_threads(job["threads"])
    learner = learner_of(job, 0)
    turns.done("start", fastai=fastai.__version__, torch=torch.__version__, timm=timm.__version__,
               threads=torch.get_num_threads(), workers=learner.dls.train.num_workers)  # fmt: skip
    frozen = [job["lr_frozen"] / 10, job["lr_frozen"]]
    fit(learner, job, frozen, epoch_clock("frozen", turns))
    learner.unfreeze()
    fit(learner, job, [job["lr_all"] / 10, job["lr_all"]], epoch_clock("unfrozen", turns))

    started = time.perf_counter()
    rows = predict_test(learner, job)
    turns.done("tta", seconds=time.perf_counter() - started, images=len(rows))
    file = Path(job["out"]) / "fastai.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([("id", "label"), *rows])
    turns.done("file", file=str(file))

    seconds, losses = [], []
    for fold in range(1, job["fastai_folds"]):
        learner = learner_of(job, fold)
        started = time.perf_counter()
        fit(learner, job, frozen)
        seconds.append(time.perf_counter() - started)
        losses.append(float(learner.recorder.values[-1][1]))
    turns.done("folds", seconds=sum(seconds), folds=seconds, valid_losses=losses)


if __name__ == "__main__":
    main()
