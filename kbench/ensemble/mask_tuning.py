"""Choose the numbers of a post-process on out-of-fold maps, and say honestly what that gains.

In the YAML a parameter of `standard` says `tuned` (one number for all classes) or `tuned_per_class`:

    maps:
      postprocess: {name: standard, min_object: tuned, threshold: tuned_per_class, grid: {min_object: [0, 20, 80]}}

Every candidate is counted on some images, one image in memory at a time; then each fold, or each fifth of the only one,
is scored with what was best on the others (nested), and what is sent is what was best on all of them. The gain of the
nested choice over the post-process without tuned parameters is the one to believe.

Candidates are counted image by image; what picks alike picks once for all. To make another parameter tunable, add it to
`mask_rules.NEUTRAL` and `GRID`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from kbench import registry
from kbench.data.table.table import Table
from kbench.ensemble.bootstrap import Interval, interval, paired
from kbench.ensemble.mask_rules import NEUTRAL, PICKING, Rule
from kbench.ensemble.nested import Outcome, crossfit, parts_of
from kbench.errors import ConfigError, first_names
from kbench.metrics.maps import image_counts
from kbench.metrics.metric import Metric
from kbench.tasks import exclusive

Params = dict[str, Any]
Maps = Callable[[np.ndarray], Iterable[tuple[int, np.ndarray]]]
"""Row numbers -> each with its [K, H, W] float32 probabilities, in any order."""
Alike = list[tuple[Rule, list[int]]]
"""Rules that pick alike, each with the numbers of the candidates it stands for."""


def area(truth: Callable[[int], np.ndarray], n_rows: int) -> int:
    """Return the pixels of an image, the mean of a few evenly drawn."""
    drawn = np.unique(np.linspace(0, n_rows - 1, 16).astype(int)).tolist()
    return max(1, int(np.mean([truth(row)[:, :, 0].size for row in drawn])))


def alike(candidates: Sequence[Params], table: Table) -> list[Alike]:
    """Return the rules of candidates, those that pick alike together."""
    picks: dict[str, dict[str, list[int]]] = {}
    for number, one in enumerate(candidates):
        picking = repr([one.get(key) for key in PICKING])
        picks.setdefault(picking, {}).setdefault(repr(one), []).append(number)
    return [[(_rule(candidates[numbers[0]], table), numbers) for numbers in rules.values()] for rules in picks.values()]


def count(
    alike_of: Callable[[int], list[Alike]],
    n_candidates: int,
    rows: np.ndarray,
    *,
    maps: Maps,
    truth: Callable[[int], np.ndarray],
    table: Table,
    advance: Callable[[int], None],
) -> np.ndarray:
    """Return [C, N, K, 3] int32 counts of candidates on some rows; one image is in memory at a time.

    Args:
        alike_of: row -> the rules of its candidates.
        n_candidates: C.
        rows: N row numbers.
        maps: yields the maps of rows.
        truth: row -> the true mask as a `MaskKind` reads it.
        table: of the rows.
        advance: is told how many images are done.
    """
    k = len(table.target_names)
    place_of = {row: place for place, row in enumerate(rows.tolist())}
    counts = np.zeros((n_candidates, len(rows), k, 3), dtype=np.int32)
    done = 0
    for row, values in maps(rows):
        real = truth(row)
        for together in alike_of(row):
            picked = together[0][0].pick(values)
            for rule, numbers in together:
                counts[numbers, place_of[row]] = image_counts(rule.clean(picked), real, n_classes=k)
        done += 1
        advance(done)
    assert done == len(rows), f"{done} maps for {len(rows)} rows"
    return counts


def _rule(params: Params, table: Table) -> Rule:
    rule: Rule = registry.build("postprocess", "standard", params, _names=table.target_names, _task=table.task)
    return rule


Advance = Callable[[int, int], None]
GRID: dict[str, tuple[float | bool, ...]] = {
    "threshold": (0.5, 0.3, 0.35, 0.4, 0.45, 0.55, 0.6, 0.65, 0.7),
    "bias": (0.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0),
    "open": (0, 3, 5, 9),
    "close": (0, 3, 5, 9),
    "min_object": (0, 10, 30, 100, 300),
    "min_hole": (0, 10, 30, 100, 300),
    "largest": (False, True),
    "empty": (0, 10, 30, 100, 300),
}
"""Values that are tried where the YAML names none; areas in pixels."""
_MOST = 600  # candidates
_ROUNDS = 3  # of the search over classes


@dataclass(frozen=True)
class Tuned:
    """What was chosen and what it is worth.

    Attributes:
        outcome: the parameters of the rule, numbers only, with their plain and nested score and the [N, K, 3] counts
            of each row with the parameters of its part.
        before: score without the tuned parameters.
        gain: nested score minus that one with its interval, turned so that more is better; None where nothing could be
            nested.
        candidates: how many were tried.
    """

    outcome: Outcome[Params]
    before: float
    gain: Interval | None
    candidates: int

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for a lineage or a score file."""
        outcome = self.outcome
        return {
            "params": outcome.fit, "by_fold": {str(fold): params for fold, params in outcome.by_part.items()},
            "plain": self.before, "chosen": asdict(outcome.plain),
            "nested": outcome.nested.value if outcome.by_part else None,
            "gain": None if self.gain is None else asdict(self.gain), "candidates": self.candidates,
        }  # fmt: skip


@dataclass(frozen=True)
class _Search:
    """The candidates of a grid.

    Attributes:
        params: C sets of parameters; the first one is that without tuned ones.
        blocks: numbers of candidates: each block has, first, one with all classes alike, then those that differ from
            it in one class, as (class, value, number).
    """

    params: list[Params]
    blocks: list[tuple[int, list[tuple[int, Any, int]]]]


def tunes(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters that are to be tuned, and how."""
    return {key: value for key, value in params.items() if value in ("tuned", "tuned_per_class")}


def neutral(params: Mapping[str, Any]) -> Params:
    """Return parameters where those that are to be tuned change nothing: for what is judged before."""
    return {key: NEUTRAL[key] if key in tunes(params) else value for key, value in params.items() if key != "grid"}


def tune(
    maps: Maps,
    truth: Callable[[int], np.ndarray],
    *,
    fold_of: np.ndarray,
    metric: Metric,
    table: Table,
    params: Mapping[str, Any],
    groups: np.ndarray | None = None,
    most: int = 400,
    pixels: int = 1 << 28,
    advance: Advance = lambda done, total: None,
) -> Tuned:
    """Choose the tuned parameters of `standard` and score the choice nested.

    Args:
        maps: row numbers -> each with its [K, H, W] float32 out-of-fold probabilities, in any order; asked for
            two or three times.
        truth: row -> the true mask as a `MaskKind` reads it.
        fold_of: [N] fold of each row.
        metric: the competition's, of counts.
        table: the N rows.
        params: those of the YAML, `tuned` where it says so.
        groups: [N] labels of what the interval resamples.
        most: candidates are tried on so many rows at most, evenly drawn from each fold; scores are those of all rows.
        pixels: and on about so many pixels at most, 2^28 being 114 frames of 1936 x 1216; a row of each fold always.
        advance: is told how many of how many images are done.

    Raises:
        ConfigError: the grid is too large, or a value is wrong.
    """
    names, n_rows = table.target_names, len(table)
    apart = exclusive(table.task, len(names))
    search = _candidates(params, names, apart=apart)
    parts = parts_of(fold_of, groups)
    rows = _some(parts, min(most, pixels // area(truth, n_rows)))
    joint = apart and "tuned_per_class" in tunes(params).values()
    passes = 2 if joint else 1
    total = passes * len(rows) + n_rows

    def tried(candidates: list[Params], before: int) -> np.ndarray:
        """Return the [C, N, K, 3] counts of candidates on the rows."""
        every_one = alike(candidates, table)
        return count(lambda row: every_one, len(candidates), rows, maps=maps, truth=truth, table=table,
                     advance=lambda done: advance(before + done, total))  # fmt: skip

    first = tried(search.params, 0)
    turned = _turned(metric)
    judge = _scorer(turned, table, undefined=-np.inf)
    before: list[np.ndarray] = []

    def fit(rows_of: Mapping[int, np.ndarray]) -> dict[int, Params]:
        inside = {part: chosen[rows] for part, chosen in rows_of.items()}  # of the rows that candidates were tried on
        score_on = {part: partial(_judged, judge, rows[some]) for part, some in inside.items()}
        if not joint:
            return {part: _choose(search, first[:, some], score_on[part], params, names)
                    for part, some in inside.items()}  # fmt: skip
        ways = {part: _sets_of_changes(search, first[:, some], score_on[part], names) for part, some in inside.items()}
        together = [way for of_part in ways.values() for way in of_part]
        again = tried(together, len(rows))
        return {
            part: max(ways[part], key=lambda way: score_on[part](again[together.index(way)][some]))
            for part, some in inside.items()
        }

    def apply(whole: Params, by_part: Mapping[int, Params]) -> tuple[np.ndarray, np.ndarray]:
        numbers = map(int, np.unique(parts))
        finals = {part: alike([search.params[0], whole, by_part.get(part, whole)], table) for part in numbers}
        untuned, plain, nested = count(
            lambda row: finals[int(parts[row])], 3, np.arange(n_rows), maps=maps, truth=truth, table=table,
            advance=lambda done: advance(passes * len(rows) + done, total),
        )  # fmt: skip
        before.append(untuned)
        return plain, nested

    outcome = crossfit(
        parts, fit=fit, apply=apply,
        score=lambda counts: interval(metric, _real(counts), counts, table, groups=groups),
    )  # fmt: skip
    untuned = before[0]
    gain = paired(turned, _real(untuned), outcome.values, untuned, table, groups=groups) if outcome.by_part else None
    return Tuned(outcome, _scorer(metric, table)(untuned, np.arange(n_rows)), gain, len(search.params))


def _judged(judge: Callable[[np.ndarray, np.ndarray], float], rows: np.ndarray, counts: np.ndarray) -> float:
    return judge(counts, rows)


def _turned(metric: Metric) -> Metric:
    """Return the metric with more for better."""
    if metric.maximise:
        return metric
    per_row = metric.per_row
    return Metric(
        metric.name, True, metric.tasks, lambda *given: -metric.function(*given),
        None if per_row is None else lambda *given: -per_row(*given),
    )  # fmt: skip


def _candidates(params: Mapping[str, Any], names: Sequence[str], *, apart: bool) -> _Search:
    wanted = tunes(params)
    grid = params.get("grid") or {}
    fixed = neutral(params)
    idle = [key for key in grid if key not in wanted]
    if idle:
        raise ConfigError(
            f"maps.postprocess.grid for {first_names(idle)}", f"parameters that are tuned: {first_names(list(wanted))}",
            f"write `{idle[0]}: tuned`, or remove it from the grid",
        )  # fmt: skip
    grids = {key: [NEUTRAL[key], *(v for v in grid.get(key, GRID[key]) if v != NEUTRAL[key])] for key in wanted}
    alone = [key for key, how in wanted.items() if how == "tuned_per_class" and apart]
    shared = [key for key in wanted if key not in alone]
    candidates: list[Params] = []
    blocks: list[tuple[int, list[tuple[int, Any, int]]]] = []
    for values in itertools.product(*(grids[key] for key in shared)):
        base = {**fixed, **dict(zip(shared, values, strict=True))}
        candidates.append(base)
        deviations: list[tuple[int, Any, int]] = []
        blocks.append((len(candidates) - 1, deviations))
        for key in alone:
            for k, value in itertools.product(range(len(names)), grids[key][1:]):
                deviations.append((k, (key, value), len(candidates)))
                candidates.append({**base, key: {names[k]: value}})
    if len(candidates) > _MOST:
        raise ConfigError(
            f"{len(candidates):,} candidates for maps.postprocess with {', '.join(wanted)} tuned",
            f"at most {_MOST}", "tune fewer parameters at once, or name fewer values in maps.postprocess.grid",
        )  # fmt: skip
    return _Search(candidates, blocks)


def _some(fold_of: np.ndarray, most: int) -> np.ndarray:
    """Return row numbers, evenly drawn from each fold, at most so many in all."""
    folds = np.unique(fold_of)
    if len(fold_of) <= most:
        return np.arange(len(fold_of))
    share = max(1, most // len(folds))
    picked = [np.flatnonzero(fold_of == fold) for fold in folds]
    return np.sort(np.concatenate([own[np.unique(np.linspace(0, len(own) - 1, share).astype(int))] for own in picked]))


def _real(counts: np.ndarray) -> np.ndarray:
    """Return [N, K] pixels of each class in the truth."""
    return np.asarray(counts[..., 0].astype(np.int64) + counts[..., 2])


def _scorer(
    metric: Metric, table: Table, *, undefined: float | None = None
) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return the function from counts of some rows to their score, or to `undefined` where there is none."""

    def score(counts: np.ndarray, rows: np.ndarray) -> float:
        if undefined is None:
            return metric(_real(counts), counts, table.select(rows))
        value = metric.or_none(_real(counts), counts, table.select(rows))
        return undefined if value is None else value

    return score


def _choose(
    search: _Search,
    counts: np.ndarray,
    score: Callable[[np.ndarray], float],
    params: Mapping[str, Any],
    names: Sequence[str],
) -> Params:
    """Return the best parameters on the rows of [C, N, K, 3] counts; of equals the first, which changes less."""
    values = [score(part) for part in counts]
    best = int(np.argmax(values))
    single = [key for key, how in tunes(params).items() if how == "tuned_per_class"]
    if not single:
        return search.params[best]
    shared = [key for key in tunes(params) if key not in single]
    allowed = [number for number, one in enumerate(search.params)
               if all(one[key] == search.params[best][key] for key in shared)]  # fmt: skip
    picked = [best] * len(names)
    for _, k in itertools.product(range(_ROUNDS), range(len(names))):
        trials = {number: _mixed(counts, [*picked[:k], number, *picked[k + 1 :]]) for number in [picked[k], *allowed]}
        results = {number: score(mixed) for number, mixed in trials.items()}
        picked[k] = max(results, key=lambda number: results[number])
    chosen = dict(search.params[best])
    for key in single:
        chosen[key] = {name: search.params[number][key] for name, number in zip(names, picked, strict=True)}
    return chosen


def _mixed(counts: np.ndarray, picked: Sequence[int]) -> np.ndarray:
    """Return [N, K, 3] counts where each class is that of its own candidate: exact, since classes stand alone."""
    return np.stack([counts[number, :, k] for k, number in enumerate(picked)], axis=1)


def _sets_of_changes(
    search: _Search, counts: np.ndarray, score: Callable[[np.ndarray], float], names: Sequence[str]
) -> list[Params]:
    """Return what to try for classes that exclude each other: no change, the one that helps most alone, and so on.

    Changes of such classes do not add up: to raise one class is to lower the others. So they are joined one by one, in
    the order of what each gains alone, and every set is to be counted.
    """
    starts: list[tuple[float, Params, list[tuple[float, str, int, Any]]]] = []
    for base, deviations in search.blocks:
        start = score(counts[base])
        gains: dict[tuple[str, int], tuple[float, Any]] = {}
        for k, (key, value), number in deviations:
            gain = score(counts[number]) - start
            if gain > gains.get((key, k), (0.0, None))[0]:
                gains[key, k] = gain, value
        changes = sorted(((gain, key, k, value) for (key, k), (gain, value) in gains.items()),
                         key=lambda change: (-change[0], change[1:3]))  # fmt: skip
        starts.append((start + (changes[0][0] if changes else 0.0), search.params[base], changes))
    _, chosen, changes = max(starts, key=lambda one: one[0])
    sets = [chosen]
    for _, key, k, value in changes:
        before = sets[-1].get(key)
        sets.append({**sets[-1], key: {**(before if isinstance(before, dict) else {}), names[k]: value}})
    return sets
