"""Run one stage of one fold: find the rate, train epoch by epoch, judge, keep, checkpoint, stop.

Everything that happens between two updates or two epochs happens here, in the order it is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from kbench.data import seeds
from kbench.data.dataset import ImageDataset, Loader, Normalise
from kbench.errors import first_names
from kbench.inference.activations import Activations, Drawn, FrozenBody, RowLoader, Seen
from kbench.metrics.metric import Undefined
from kbench.models.block_checkpoints import checkpoint_blocks
from kbench.models.checkpoint import Tensors
from kbench.models.device import Precision, choose_precision, free_memory, place, usable_precision
from kbench.models.layer_groups import chosen, freeze_but, layer_groups, train_mode, trains_head_alone
from kbench.training.batches import REFIT_EPOCH, Draws
from kbench.training.events import Epoch, Event, Note
from kbench.training.fold_context import FoldContext
from kbench.training.loop import Feed, Meter, Update, diverged, train_epoch
from kbench.training.lr_finder import LRCurve, find_lr, level_note
from kbench.training.optimizers import normalised, per_group, spread
from kbench.training.resume import Progress
from kbench.training.snapshots import Keeper, weight_mean
from kbench.training.stage_notes import announce, loader_verdict
from kbench.training.stage_plan import StagePlan
from kbench.training.update import Learner, Rules, average_of
from kbench.training.validation import Judged, Judging, evaluate, judge_maps

_SMOKE_LR = 1e-4  # a smoke run has too few batches to find one
_SMALL_HEAD = 1_000_000  # parameters; below it, threads wait for one another longer than they compute
_DISK = 100e6  # bytes that a slow disk writes in a second
_EPOCHS_S = 10.0  # between resume points of a stage on activations, whose epochs take less than writing one


def run_stage(
    context: FoldContext, plan: StagePlan, model: nn.Module, *, progress: Progress, tensors: Tensors | None
) -> Iterator[Event]:
    """Train one stage; the model is changed in place and ends in the state the next stage starts from.

    Args:
        context: what a fold is made of.
        plan: what to do.
        model: on its device.
        progress: where the fold is; changed in place.
        tensors: of a resume point inside this stage, or None.
    """
    with ExitStack() as until_done:
        runner = _Runner(context, plan, model, progress, until_done)
        if tensors is not None:
            runner.keeper.restore(tensors)
        else:
            yield from announce(
                context, plan, rows=len(runner.draws.rows), epochs=runner.epochs, steps=runner.schedule.steps,
                lr=runner.lr, precision=runner.rules.precision, activations=runner.activations,
            )  # fmt: skip
        while progress.epoch < runner.epochs and not runner.stopped_early():
            yield from runner.run_epoch()
        runner.keeper.hand_over()


def range_test(context: FoldContext, plan: StagePlan, model: nn.Module, *, progress: Progress) -> LRCurve:
    """Return the learning-rate range test of a stage, whatever its `lr`; the model is not changed."""
    with ExitStack() as until_done:
        return _Runner(context, plan.with_settings(lr=0.0), model, progress, until_done).range_test()


class _Runner:
    """A stage being run: what stays the same from epoch to epoch.

    Args:
        context: what a fold is made of.
        plan: what to do.
        model: on its device.
        progress: where the fold is; changed in place.
        until_done: ends loaders, and sets threads back, when the stage is left.
    """

    def __init__(
        self, context: FoldContext, plan: StagePlan, model: nn.Module, progress: Progress, until_done: ExitStack
    ) -> None:
        self.context, self.model, self.progress = context, model, progress
        stage = plan.stage
        self.plan, self.stage = plan, stage
        self.until_done = until_done
        self.draws = Draws(context, plan)
        self.judges = stage.subset != "full" and len(context.valid_rows) > 0
        self.channels_last = stage.channels_last is not False
        precision, self.judged_in = self._precisions()
        place(model, context.device, channels_last=self.channels_last)
        train_images = context.images_for(plan.show)
        self.scale = context.scale_for(train_images)
        self.normalise = Normalise(**self.scale).to(context.device)
        self.dense = context.masks is not None
        self.units = context.units()
        precomputed = stage.precompute and not context.limit  # a smoke run looks at a few rows only
        self.activations = self._activations() if precomputed else None
        layers = layer_groups(model)
        freeze_but(model, layers, chosen(stage.groups, len(layers)))
        train_mode(model)
        checkpoint_blocks(model, on=stage.checkpoint_blocks)
        whole = self.dense or (stage.step.name != "supervised" and self.activations is None)
        self.head_alone = trains_head_alone(model) and not whole
        self.learned: nn.Module = getattr(model, "head") if self.head_alone else model  # noqa: B009
        if self.activations is not None:
            self.valid_feed = self._rows(self.activations)
            self.feed = self.valid_feed if stage.draws == 1 else self._rows(self._activations(drawn=True), stage.draws)
            self.feed = replace(self.feed, ranks=context.ranks)
            if sum(parameter.numel() for parameter in self.learned.parameters()) < _SMALL_HEAD:
                until_done.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(1)
        else:
            body = FrozenBody(model, context.device, self.judged_in) if self.head_alone else None
            self.feed = replace(self._feed(train_images, plan.show, mix=plan.mix, body=body), ranks=context.ranks)
            if not self.dense:  # judged on whole images, by `judge_maps`
                images = context.images_for(plan.valid_show)
                self.valid_feed = self._feed(images, plan.valid_show, mix=None, body=body)
        self.schedule = plan.schedule_of(-(-len(self.draws.epoch(0)) // stage.accumulate))
        self.epochs = min(plan.stop_after or self.schedule.epochs, self.schedule.epochs)
        self.rules = Rules(
            step=plan.step,
            loss=plan.loss(*context.balance(self.draws.rows), self.units),
            device=context.device,
            precision=precision,
            stage=stage,
            ranks=context.ranks,
        )
        self.n_groups = len(layers)
        self.lr = self._rates()
        self.learner = Learner(
            model=self.learned,
            optimizer=self._optimizer(layers, self.lr),
            scaler=torch.amp.GradScaler(context.device.type, enabled=precision == "fp16"),
            averaged=None if stage.ema is None else average_of(self.learned, stage.ema),
            micro_batch=stage.batch_size + 1,  # a last batch may have one more
        )
        self.keeper = Keeper(
            context, plan, self.schedule, model, self.learner, progress, self.rules, judged_in=self.judged_in,
            channels_last=self.channels_last, head_alone=self.head_alone,
            precomputed=self.activations is not None, refit_inputs=self._refit_inputs,
            mean=weight_mean(self.learner.judged) if "average" in stage.keep else None,
        )  # fmt: skip
        size = sum(value.nbytes for value in self.learned.state_dict().values())
        context.deadline.took("saving", 3 * size / _DISK)  # weights and two moments, until it is known
        self.saved = time.monotonic()
        self.slow = False  # whether it was said that the loader is the bottleneck

    def _activations(self, *, drawn: bool = False) -> Activations:
        """Return what the frozen body says about all rows as they are judged, or about augmented draws (F-22)."""
        context, plan, stage = self.context, self.plan, self.stage
        assert context.activations is not None, "a fold is made with its activations"
        seen = Seen(plan.valid_show, context.scale_for(None), self.judged_in, self.channels_last)
        if drawn:
            how = [stage.crop.model_dump(), stage.augment.model_dump()]
            seen = replace(seen, show=plan.show, drawn=Drawn(stage.draws, context.seed, how))
        return context.activations(self.model, seen)

    def _rows(self, activations: Activations, looks: int = 1) -> Feed:
        room = free_memory(torch.device("cpu"))
        rows = RowLoader(activations.values, self.context.table.targets, room=room, looks=looks)
        return Feed(rows, nn.Identity(), self.context.device, units=self.units)

    def _precisions(self) -> tuple[Precision, Precision]:
        """Return the precisions of training and judging; what a device type began with, it goes on with."""
        plan, device, key = self.context.plan, self.context.device, f"precision/{self.plan.name}"
        known = plan.get(key)
        if known is None or known["device"] != device.type:
            training, judging = (choose_precision(self.stage.precision, device, training=way) for way in (True, False))
            known = {"device": device.type, "training": training, "judging": judging}
            plan.set(key, known)
        return known["training"], usable_precision(known["judging"], device)

    def _feed(self, images: Any, show: Any, *, mix: Any, body: FrozenBody | None) -> Feed:
        context = self.context
        dataset = ImageDataset([images], [show], context.table.targets, context.masks_for(show), scale=self.scale)
        loader = Loader(dataset, workers=context.workers, pin=context.device.type == "cuda")
        self.until_done.callback(loader.close)
        table = context.table
        return Feed(
            loader, self.normalise, context.device, mix, len(table.target_names), table.task, body, self.units,
            self.plan.positive,
        )  # fmt: skip

    def _refit_inputs(self) -> Iterator[torch.Tensor]:
        """Yield the inputs that batch norm of mean weights is refitted with: an epoch of its own."""
        key = (seeds.MIX, *self.draws.key, REFIT_EPOCH)
        batches = self.draws.epoch(REFIT_EPOCH)
        for number, (draws, batch) in enumerate(zip(batches, self.feed.parts(batches), strict=True)):
            images, _ = self.feed.ready(batch, (*key, number), rows=len(draws))
            if len(images) or self.rules.whole_batches is not None:
                yield images

    def _optimizer(self, layers: Any, rates: Sequence[float]) -> torch.optim.Optimizer:
        decays = per_group(self.stage.weight_decay, self.n_groups, what="weight_decay")
        optimizer = self.plan.optimizer(layers, list(rates), decays[-len(layers) :])  # of the head alone, the last
        return normalised(optimizer) if self.stage.normalise_decay else optimizer

    # -- learning rate ---------------------------------------------------------------------------------------

    def _rates(self) -> list[float]:
        """Return the highest rate of each layer group; one that is to be found is found, and kept in the plan."""
        stage, context, name = self.stage, self.context, self.plan.name
        if stage.lr != "find":
            if isinstance(stage.lr, float | int):
                return spread(float(stage.lr), stage.lr_decay, self.n_groups)
            return per_group(list(stage.lr), self.n_groups, what="lr")
        known = context.plan.get(f"lr/{name}")
        if known is None:
            rate, level = (_SMOKE_LR, False) if context.limit else context.ranks.decided(self._found_rate())
            if level:
                self.rules.said.append(level_note(name, rate))
                context.plan.set(f"level/{name}", True)
            context.plan.set(f"lr/{name}", rate)
            return spread(rate, stage.lr_decay, self.n_groups)
        return spread(float(known), stage.lr_decay, self.n_groups)

    def _found_rate(self) -> tuple[float, bool]:
        """Return the rate another stage or fold found, or this one's range test, and whether the loss was level."""
        elsewhere = self.context.rate_found_elsewhere(self.plan)
        if elsewhere is not None:
            return elsewhere
        judged = self.range_test().judged
        return judged.rate, judged.level

    def range_test(self) -> LRCurve:
        """Run the learning-rate range test on a copy of the model; write and return its curve."""
        groups, what = len(layer_groups(self.learned)), f"range test of stage {self.plan.name}"
        curve = find_lr(
            self.learned,
            self.feed,
            self.draws.range_test(self.stage.range_test.steps * self.stage.accumulate),
            optimizer=self._optimizer,
            ratios=spread(1.0, self.stage.lr_decay, groups),
            rise=self.stage.range_test,
            rules=replace(self.rules, said=[]),  # what it says is no part of the log: a resumed run does not repeat it
            micro_batch=self.stage.batch_size + 1,
            accumulate=self.stage.accumulate,
            key=(*self.draws.key, seeds.FIND),
            valid=self._held_out() if self.stage.range_test.valid and self.judges else None,
            tell=lambda done, total: self.context.tell(what, done, total),
        )
        self.context.keep_curve(self.plan.name, curve)
        return curve

    def _held_out(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield batches of the rows held out, in an order of their own, over and over."""
        images, show = self.context.images_for(self.plan.valid_show), self.plan.valid_show
        feed = self._feed(images, show, mix=None, body=None) if self.dense else self.valid_feed  # every rank judges all
        plan, key = self.draws.held_out(), (*self.draws.key, seeds.FIND)
        while True:
            for batch in feed.load(plan):
                yield feed.ready(batch, key, rows=len(batch.rows))

    # -- epochs ----------------------------------------------------------------------------------------------

    def run_epoch(self) -> Iterator[Event]:
        """Train what is left of the epoch, judge it, keep what is to be kept, checkpoint."""
        progress, started = self.progress, time.perf_counter()
        total, count, images, *shown = progress.meter
        meter = Meter(total, count, int(images), sum(shown))
        resumed_images = int(images)
        batches = self.draws.epoch(progress.epoch)
        saved, last_rate = time.monotonic(), 0.0
        for update in train_epoch(
            self.learner, self.feed, batches[progress.batch :], rules=self.rules, schedule=self.schedule,
            history=progress.history, first_step=progress.step, accumulate=self.stage.accumulate, key=self.draws.key,
        ):  # fmt: skip
            meter.add(update)
            last_rate = update.rate
            progress.step = update.step + 1
            progress.batch = min(progress.batch + self.stage.accumulate, len(batches))
            yield from self._said()
            self._tell(update)
            yield update
            ending = progress.batch < len(batches) and self._ends(update, len(batches) - progress.batch)
            if ending or (time.monotonic() - saved > self.context.checkpoint_s and progress.batch < len(batches)):
                meter.flush()
                progress.meter = [meter.total, meter.count, meter.images, meter.positive]
                self._checkpoint()
                saved = time.monotonic()
            if ending:
                self.context.deadline.stop()
        meter.flush()  # a loss that is not finite is told by its own step, before the model is judged
        self.context.ranks.hold_alike(self.learned)
        speed, waiting = (value / max(meter.seconds, 1e-9) for value in (meter.images - resumed_images, meter.waited))
        judging = time.monotonic()
        valid_loss, score, better, constant = self._judge(last_rate)
        self.context.deadline.took("judging", time.monotonic() - judging)
        verdict = None if self.slow or self.activations is not None else loader_verdict(waiting)
        self.slow |= verdict is not None
        made_epoch = Epoch(
            self.plan.name, progress.epoch, self.epochs, progress.step, last_rate, meter.loss, valid_loss, score,
            better, speed, waiting, time.perf_counter() - started, self.learner.loss_scale, verdict,
            meter.positive / max(1, meter.images) if self.plan.positive else None,
        )  # fmt: skip
        self.context.log.epoch(made_epoch)
        progress.epoch += 1
        progress.batch, progress.meter = 0, [0.0, 0.0, 0.0]
        done = progress.epoch >= self.epochs or self.stopped_early()
        self.keeper.keep(made_epoch, done=done, constant=constant)
        yield from self._said()
        pause = 0.0 if self.activations is None else min(_EPOCHS_S, self.context.checkpoint_s)
        ending = self.context.ranks.decided(self.context.deadline.lacks("update", "saving"))
        if done or ending or time.monotonic() - self.saved >= pause:
            self._checkpoint()
            self.saved = time.monotonic()
        yield made_epoch
        if made_epoch.positive is not None and progress.epoch == 1:
            share, names = made_epoch.positive, self.plan.stage.sampler.params.get("classes", [])
            yield Note(f"{share:.0%} of {meter.images:,} patches show {first_names(names)}")
        if ending:
            self.context.deadline.stop()
        if self.activations is not None and progress.epoch == 1:
            body = self.activations.images_per_s
            yield Note(f"an epoch of the head goes {speed / body:,.0f} times as fast as one pass of the frozen body")
        if verdict is not None:
            yield Note(verdict)

    def _checkpoint(self) -> None:
        started = time.monotonic()
        self.keeper.checkpoint()
        self.context.deadline.took("saving", time.monotonic() - started)

    def _ends(self, update: Update, batches: int) -> bool:
        """Return whether there is time for one update less than another: the last one has the judging behind it."""
        deadline, ranks = self.context.deadline, self.context.ranks
        deadline.took("update", update.seconds)
        if batches > self.stage.accumulate:
            return ranks.decided(deadline.lacks("update", "saving"))
        rows = len(self.context.valid_rows) if self.judges else 0
        unknown = 0.0 if self.progress.epoch else rows * update.seconds / max(1, update.images)
        return ranks.decided(deadline.lacks("update", "judging", "saving", more=unknown))

    def _tell(self, update: Update) -> None:
        """Say how far the stage is; it ends earlier where it stops early."""
        speed, epoch = update.images / max(update.seconds, 1e-9), f"{self.progress.epoch + 1}/{self.epochs}"
        what = f"{self.plan.name} {epoch}  lr {update.rate:.1e}  {speed:.0f} images/s"
        self.context.tell(what, update.step + 1, self.schedule.steps // self.schedule.epochs * self.epochs)

    def _said(self) -> Iterator[Note]:
        while self.rules.said:
            text = self.rules.said.pop(0)
            self.context.log.add({"event": "note", "stage": self.plan.name, "step": self.progress.step, "text": text})
            yield Note(text)

    def _judge(self, rate: float) -> tuple[float | None, float | None, bool, float | None]:
        progress = self.progress
        if not self.judges:
            return None, None, False, None
        judged = self._judged_rows()
        valid_loss = judged.loss
        if not math.isfinite(valid_loss):
            raise diverged(f"the validation loss is {valid_loss}", step=progress.step - 1, rate=rate)
        score, signed = self._score(judged)
        score, signed, progress.by_loss = self.context.ranks.decided((score, signed, progress.by_loss))
        better = progress.best is None or signed > progress.best + self.stage.min_delta
        better |= signed == progress.best and progress.best_loss is not None and valid_loss < progress.best_loss
        if better:
            progress.best, progress.best_epoch, progress.best_loss = signed, progress.epoch, valid_loss
        progress.history.append(signed)
        return valid_loss, score, better, judged.constant

    def _score(self, judged: Judged) -> tuple[float | None, float]:
        """Return the score of an epoch, None where the metric has no value, and what epochs are compared by.

        A metric without a value in the first epoch leaves the stage to be judged by its loss; a later epoch without one
        is as good as the one before.
        """
        monitor, progress = self.plan.monitor, self.progress
        if monitor is None or self.context.limit:  # the few rows of a smoke run may lack what a metric needs
            return judged.loss, -judged.loss
        rows = self.context.table.select(self.context.valid_rows)
        try:
            score: float | None = monitor(judged.targets, judged.values, rows)
        except Undefined as error:
            score = None
            if not progress.history:
                progress.by_loss = True
                self.rules.said.append(
                    f"{error.what}: epochs are judged by their loss, and this fold's score is '-'; the score of all "
                    "folds' rows together counts"
                )
        if progress.by_loss:
            return score, -judged.loss
        if score is None:
            return None, progress.history[-1]
        return score, score if monitor.maximise else -score

    def _judged_rows(self) -> Judged:
        """Return the validation loss, and the targets and predictions a metric takes."""
        context = self.context
        size = context.valid_batch_size or 2 * self.stage.batch_size
        if self.dense:
            judging = Judging(self.normalise, self.rules.loss, self.judged_in, size, self.units)
            return judge_maps(context, self.learner.judged, judging)
        valid_loss, values = evaluate(
            self.learner.judged, self.valid_feed, self.draws.valid(size), loss=self.rules.loss,
            precision=self.judged_in, task=context.table.task, ranks=context.ranks,
        )  # fmt: skip
        targets = context.table.targets
        truth = None if targets is None else targets[context.valid_rows]
        return Judged(valid_loss, truth, values, self._loss_of_constant(truth))

    def _loss_of_constant(self, truth: np.ndarray | None) -> float | None:
        """Return the loss of saying the training rows' mean of each target, where targets are standardised."""
        if self.units is None or truth is None:
            return None
        target = self.units.standardised(torch.as_tensor(truth, device=self.context.device))
        return float(self.rules.loss(torch.zeros_like(target), target).mean())

    def stopped_early(self) -> bool:
        """Return whether the score has not improved for `early_stop` epochs."""
        progress = self.progress
        if self.stage.early_stop is None or progress.best_epoch is None:
            return False
        return progress.epoch - 1 - progress.best_epoch >= self.stage.early_stop
