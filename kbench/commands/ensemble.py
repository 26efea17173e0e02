"""`kbench ensemble`: folds x snapshots x views of one run or several become one checked submission."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kbench import files
from kbench.errors import ConfigError, counted, first_names
from kbench.runs.blend import MIXED, Blend, EnsembleOptions, blend
from kbench.runs.opening import commit, open_run
from kbench.runs.results import Result, Rows
from kbench.submission.ledger import Lineage, reserve
from kbench.tasks import SEGMENTATION
from kbench.workspace import Choice, check_name


def ensemble(choice: Choice, runs: Sequence[str], options: EnsembleOptions) -> dict[str, Any]:
    """Predict what is not predicted yet, combine, check and write a submission with its lineage.

    Args:
        choice: competition and experiment.
        runs: names of runs; the current experiment's alone when empty.
        options: how.

    Returns:
        The submission's file, the out-of-fold score with its interval (nested, if anything is fitted; then also
        `plain` and `optimism`), runs, members, `weights` and `gains` of the members, missing folds,
        and what speaks against members or the rule (`doubts`).
    """
    choices = [replace(choice, run=run) for run in runs] or [choice]
    _refuse_twice(runs)
    check_weights(options.weights, len(choices))
    opened = [open_run(one, other_folds=options.mixed_folds) for one in choices]
    name = options.name or "+".join(run.name for run in opened) + ("-full" if options.full else "")
    check_name(name, of="a submission")  # before anything is predicted
    combined = blend(opened, options)
    experiment = combined.experiment
    result = combined.predict(Rows(experiment.test, device=options.device))
    submission, notes = combined.submission(result), _notes(combined, options)
    with reserve(experiment.workspace.submissions(experiment.competition.name), name) as place:
        file = submission.write(place.file(experiment.format.suffix))
        place.record(file, _lineage(combined, result, notes))
    return {
        "file": str(file), "runs": [run.name for run in opened], "members": len(result.members),
        "missing": {share.run.name: list(share.missing) for share in combined.shares if share.missing}, "notes": notes,
        "doubts": combined.doubts, "weights": combined.weights, "gains": combined.gains, **_score(combined),
    }  # fmt: skip


def _refuse_twice(runs: Sequence[str]) -> None:
    twice = [name for name, count in Counter(runs).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{first_names(twice)} named more than once", "each run once",
            f"remove the second one, or weigh it: `kbench ensemble {' '.join(dict.fromkeys(runs))} --weight ...`",
        )  # fmt: skip


def check_weights(weights: Sequence[float] | None, count: int) -> None:
    """Refuse weights of runs that are not one for each.

    Raises:
        ConfigError: there are others, or they are no weights.
    """
    if weights is None:
        return
    if len(weights) != count or not all(math.isfinite(one) and one >= 0 for one in weights) or not sum(weights):
        raise ConfigError(
            f"the weights {', '.join(f'{one:g}' for one in weights)} for {count} run{'s' if count > 1 else ''}",
            "one number of at least 0 for each run, and one above 0",
            "say `--weight` once for each run, in their order",
        )


def _score(combined: Blend) -> dict[str, Any]:
    """Return the score as it is printed; None for what is not known."""
    if combined.score is None:
        return {"metric": combined.experiment.competition.metric.name, "score": None, "low": None, "high": None}
    return {key: value for key, value in combined.score.items() if key not in ("interval", "level")}


def _notes(combined: Blend, options: EnsembleOptions) -> list[str]:
    notes = [
        f"{share.run.name} without folds {', '.join(map(str, share.missing))}"
        for share in combined.shares
        if share.missing
    ]
    if options.full:
        notes.append("trained on all rows: what is sent is not what was scored")
    gone = combined.experiment.test.unreadable
    if gone is not None and gone.any():
        share = {"dense_regression": "the training pixels' mean"} | dict.fromkeys(SEGMENTATION, "an empty mask")
        filler = share.get(combined.experiment.competition.task, "the training rows' share")
        notes.append(f"{counted(int(gone.sum()), 'test row')} without a readable image: {filler}")
    clip = combined.experiment.competition.submission.format.params.get("clip")
    if clip:
        notes.append(f"the file's probabilities are clipped to {clip:g}..{1 - clip:g}; the score is of those before")
    if len({share.run.trained_as["folds"] for share in combined.shares}) > 1:
        notes.append(MIXED)
    origins = [(share.run.name, files.read_json(share.run.paths.manifest).get("pseudo")) for share in combined.shares]
    return [
        *notes,
        *(f"{name} trained with pseudo-labels {one['labels']} ({one['checksum']})" for name, one in origins if one),
    ]


def _lineage(combined: Blend, result: Result, notes: list[str]) -> Lineage:
    competition, runs = combined.experiment.competition, [share.run for share in combined.shares]
    score = combined.score or {}
    return Lineage(
        competition=competition.name, runs=[run.name for run in runs], members=result.members, weights=result.weights,
        mean=competition.ensemble.mean, combine={"name": combined.combiner, "weights": combined.weights},
        thresholds=combined.thresholds, views=competition.tta.model_dump(),
        format=competition.submission.format.model_dump(), folds=runs[0].trained_as["folds"],
        hashes={run.name: run.trained_as["training"] for run in runs}, commit=commit(),
        metric=competition.metric.name, maximise=bool(score.get("maximise", True)), score=score.get("score"),
        low=score.get("low"), high=score.get("high"), optimism=score.get("optimism"), notes=notes,
    )  # fmt: skip
