"""What a fold tells while it trains; `commands/train.py` shows it."""

from __future__ import annotations

from dataclasses import dataclass

from kbench.training.loop import Update


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    Attributes:
        stage: name of the stage.
        epoch: number in the stage, from 0.
        epochs: how many the stage has.
        step: updates made in the stage.
        lr: rate of the last layer group at the last update.
        train_loss: mean over valid targets.
        valid_loss: mean over valid targets, or None without validation rows.
        score: value of the monitored metric; None without validation rows, or where it has no value on them.
        best: whether it is the best of the stage so far.
        images_per_s: training images per second.
        waiting: share of the time spent waiting for data.
        seconds: of training and judging.
        loss_scale: of the fp16 gradient scaler at the end of the epoch, or None in other precisions.
        verdict: what slows the stage down, in words, at the end of the first epoch it does.
        positive: share of the training patches that showed a class that is looked for, or None where none is.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    lr: float
    train_loss: float
    valid_loss: float | None
    score: float | None
    best: bool
    images_per_s: float
    waiting: float
    seconds: float
    loss_scale: float | None = None
    verdict: str | None = None
    positive: float | None = None


@dataclass(frozen=True)
class Note:
    """Something the user should know."""

    text: str


Event = Epoch | Update | Note
