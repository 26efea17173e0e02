"""What a stage says of itself: at its beginning, and where something slows it down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kbench.inference.activations import Activations
from kbench.models.device import Precision, emulates_bfloat16
from kbench.training.events import Note
from kbench.training.fold_context import FoldContext
from kbench.training.stage_plan import StagePlan

_WAITING = 0.3  # share of the time spent waiting for data, above which the loader is the bottleneck


def announce(
    context: FoldContext,
    plan: StagePlan,
    *,
    rows: int,
    epochs: int,
    steps: int,
    lr: Sequence[float],
    precision: Precision,
    activations: Activations | None,
) -> Iterator[Note]:
    """Log the start of a stage and say it.

    Args:
        context: the fold.
        plan: the stage that begins.
        rows: training images.
        epochs: at most.
        steps: updates in the schedule.
        lr: highest rate of each layer group.
        precision: of the forward pass.
        activations: what the head trains on, or None where the stage sees images.
    """
    context.log.add(
        {"event": "stage", "stage": plan.name, "rows": rows, "epochs": epochs, "steps": steps, "lr": list(lr),
         "precision": precision, "size": list(plan.size)}
    )  # fmt: skip
    if activations is not None:
        shape = activations.values.shape
        context.log.add({"event": "activations", "stage": plan.name, "rows": shape[0], "features": shape[1],
                         "images_per_s": activations.images_per_s})  # fmt: skip
        yield Note(f"activations: {shape[0]:,} images x {shape[1]:,} features, made at "
                   f"{activations.images_per_s:.0f} images/s{'' if activations.fresh else ' before'}")  # fmt: skip
    if precision == "bf16" and emulates_bfloat16(context.device):
        yield Note(
            "this processor has no bfloat16 instructions: torch emulates them, about ten times slower than fp32; "
            "set `precision: auto`"
        )
    shown = ", ".join(f"{rate:.3g}" for rate in lr)
    origin = "found" if plan.stage.lr == "find" else "set"
    yield Note(f"stage {plan.name}: {rows:,} images, {epochs} epochs, lr {shown} ({origin}), {precision}")


def loader_verdict(waiting: float) -> str | None:
    """Return what to do where loading images is the bottleneck, or None.

    Args:
        waiting: share of an epoch spent waiting for data.
    """
    if waiting <= _WAITING:
        return None
    return (
        f"{waiting:.0%} of the time is spent waiting for data: raise `loader: {{workers: N}}`, use the image cache, or "
        "lighten the augmentation"
    )
