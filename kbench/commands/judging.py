"""What `ensemble:` fits to out-of-fold rows (weights, thresholds, cut points), and its honest score.

`judge` scores one run or an ensemble; `cv_table` shows it fold by fold and snapshot by snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from kbench import registry
from kbench.commands import parts
from kbench.commands.predict import members_of, predict_out_of_fold
from kbench.commands.setup import Setup
from kbench.config import Competition
from kbench.data.tables import Table
from kbench.ensemble.average import aligned, average, concat
from kbench.ensemble.combiners import Combiner
from kbench.ensemble.combiners import mean as plain_mean
from kbench.ensemble.decisions import Decision
from kbench.ensemble.nested import Outcome, Recipe, decided_by_part, evaluate, gains
from kbench.ensemble.stack import Stack, stack_members
from kbench.inference.predictions import Predictions
from kbench.workspace import RunPaths

Members = Mapping[int, Mapping[str, Predictions]]
"""fold -> snapshot -> predictions of the fold's rows."""


def decision_of(competition: Competition) -> Decision | None:
    """Return the decision of `ensemble.decision`."""
    part = competition.ensemble.decision
    if part is None:
        return None
    made: Decision = registry.build("decision", part.name, part.params)
    return made


def combiner_of(competition: Competition) -> Combiner:
    """Return the combiner of `ensemble.combine`."""
    part = competition.ensemble.combine
    made: Combiner = registry.build("combiner", part.name, part.params)
    return made


def snapshot_name(member: Predictions) -> str:
    """Return `stage-cycle` of a snapshot's predictions."""
    return f"{member.source['stage']}-{member.source['tag']}"


def snapshots_of(
    setup: Setup, paths: RunPaths, identity: dict[str, str], folds: Sequence[int], part: str
) -> dict[int, dict[str, Predictions]]:
    """Return fold -> `stage-cycle` -> predictions of the fold's rows; they must have been made."""
    return {fold: {snapshot_name(one): one for one in members_of(setup, paths, identity, fold, part)} for fold in folds}


def plain_snapshots(
    setup: Setup, paths: RunPaths, identity: dict[str, str], folds: Sequence[int], *, device: str
) -> dict[int, dict[str, Predictions]]:
    """Return what `snapshots_of` returns, predicted with the plain view alone; made where it is missing."""
    views = setup.competition.tta.model_validate({"name": "none"})
    plain = replace(setup, competition=setup.competition.model_copy(update={"tta": views}))
    predict_out_of_fold(plain, paths, identity, folds, device, part="oof-plain")
    return snapshots_of(plain, paths, identity, folds, "oof-plain")


def over_folds(members: Members) -> dict[str, Predictions]:
    """Return snapshot -> predictions of the rows of all folds, for the snapshots that every fold has."""
    first, *others = members.values()
    names = [name for name in first if all(name in other for other in others)]
    return {name: concat([of_fold[name] for of_fold in members.values()]) for name in names}


def what_members_add(setup: Setup, members: Members, table: Table) -> list[dict[str, Any]]:
    """Return what each snapshot adds to the mean of a run's snapshots, as `gains` does; nothing for a single one."""
    whole = over_folds(members)
    if len(whole) < 2:
        return []
    stack = stack_of(setup, whole, table, mean=setup.competition.ensemble.mean)
    recipe = Recipe(plain_mean(), decision_of(setup.competition))
    return gains(stack, recipe, evaluate(stack, recipe))


def decided(predictions: Predictions, decision: Decision | None, found: dict[str, Any] | None) -> Predictions:
    """Return predictions as they are scored and sent: decided, where something was found."""
    if decision is None or found is None:
        return predictions
    return replace(predictions, values=decision.apply(np.asarray(predictions.values), found))


def of_targets(table: Table, names: Sequence[str]) -> Table:
    """Return a table with only some of its targets, in its own order."""
    if set(table.target_names) <= set(names):
        return table
    assert table.targets is not None, "training rows have targets"
    kept = [place for place, name in enumerate(table.target_names) if name in names]
    return replace(
        table, target_names=tuple(table.target_names[place] for place in kept), targets=table.targets[:, kept]
    )


def fold_of(setup: Setup, table: Table) -> np.ndarray:
    """Return [N] int, the fold of each row of a table."""
    return np.asarray(setup.folds.fold[np.searchsorted(setup.folds.ids, table.ids)])


def stack_of(
    setup: Setup, members: Mapping[str, Predictions], table: Table, *, mean: Any, base: list[float] | None = None
) -> Stack:
    """Return members side by side, of the rows of a table."""
    return stack_members(
        members, table, fold=fold_of(setup, table), metric=parts.build_metric(setup.competition), mean=mean, base=base,
        groups=setup.groups(table),
    )  # fmt: skip


def judge(setup: Setup, predictions: Predictions, table: Table) -> Outcome:
    """Return what the decision of `ensemble:` gives on predictions of a table's rows."""
    stack = stack_of(setup, {"mean": predictions}, table, mean="arithmetic")
    return evaluate(stack, Recipe(plain_mean(), decision_of(setup.competition)))


def score_record(setup: Setup, outcome: Outcome, table: Table) -> dict[str, Any]:
    """Return a score as JSON: metric, direction, rows, `score` with its interval (nested, if anything is fitted).

    What is fitted adds `plain`, the score on the rows it was fitted on, `optimism`, how much better that is, and
    `decision`: what was `found` on all rows, and `nested` without each fold's.
    """
    metric = parts.build_metric(setup.competition)
    found = outcome.nested
    record: dict[str, Any] = {
        "metric": metric.name, "maximise": metric.maximise, "rows": len(table), "score": found.value,
        "low": found.low, "high": found.high, "level": found.level, "interval": asdict(found),
    }  # fmt: skip
    if outcome.by_part:
        gap = outcome.plain.value - found.value
        record["plain"] = asdict(outcome.plain)
        record["optimism"] = gap if metric.maximise else -gap
    if outcome.fit.decided is not None:
        assert setup.competition.ensemble.decision is not None, "something was decided"
        record["decision"] = {
            "name": setup.competition.ensemble.decision.name, "found": outcome.fit.decided,
            "nested": {str(part): one.decided for part, one in outcome.by_part.items()},
        }  # fmt: skip
    return record


def cv_table(setup: Setup, members: Members, outcome: Outcome, table: Table) -> list[dict[str, Any]]:
    """Return the cross-validation table, as of fast.ai's planet notebook (row F-26): one record per fold.

    `fold`, `rows`, the score of each snapshot alone and of their `mean`; with a decision they are decided by what the
    other folds found, and `threshold` (where there is only one) and `at_best` are what this fold itself would have
    liked best. Snapshots some fold lacks are None there.
    """
    metric = parts.build_metric(setup.competition)
    recipe = Recipe(plain_mean(), decision_of(setup.competition))
    names = list(dict.fromkeys(name for of_fold in members.values() for name in of_fold))
    records = []
    for fold, of_fold in members.items():
        place = np.flatnonzero(np.isin(table.ids, next(iter(of_fold.values())).ids))
        rows = table.select(np.isin(np.arange(len(table)), place))
        assert rows.targets is not None, "training rows have targets"
        mean = average(list(of_fold.values()), mean=setup.competition.ensemble.mean)
        record: dict[str, Any] = {"fold": fold, "rows": len(rows), **dict.fromkeys(names)}
        for name, one in [*of_fold.items(), ("mean", mean)]:
            values = aligned(one, ids=rows.ids, names=rows.target_names)
            record[name] = metric(rows.targets, decided_by_part(recipe, outcome, values, place), rows)
        if recipe.decision is not None:  # the values are now those of the mean
            best = recipe.decision.fit(metric, rows.targets, values, rows)
            record["threshold"] = best.get("threshold")
            record["at_best"] = metric(rows.targets, recipe.decision.apply(values, best), rows)
        records.append(record)
    return records


def cv_means(table: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return the mean over folds of each column of a table of `cv_table`; None where a fold has no value."""
    columns = [name for name in table[0] if name not in ("fold", "rows")]
    return {
        name: None if any(row[name] is None for row in table) else float(np.mean([row[name] for row in table]))
        for name in columns
    }
