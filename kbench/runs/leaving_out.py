"""Models that are left out where there is no time for them: which ones, and what an ensemble is without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kbench.runs.members import checkpoints
from kbench.runs.results import Share

_UNKNOWN = 1.0


@dataclass(frozen=True)
class Model:
    """One trained network of an ensemble.

    Attributes:
        run: its run.
        place: its fold, or `full`.
        member: `stage-cycle`.
        checksum: of its weights.
        gain: what its member adds out of fold, larger is better; the same for all where it was not measured, as of
            maps; None where it is the only member of a target.
        count: how many models its member has: one for each fold.
    """

    run: str
    place: int | str
    member: str
    checksum: str
    gain: float | None
    count: int

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.run}/{self.member} of " + ("all rows" if self.place == "full" else f"fold {self.place}")


def models_of(
    shares: Sequence[Share], weights: Mapping[str, float] | None, gains: Sequence[Mapping[str, Any]]
) -> list[Model]:
    """Return the models that predict rows: those whose member has a weight.

    Args:
        shares: the runs.
        weights: member (`run/stage-cycle`) -> weight; None: all count.
        gains: of `Blend`: what a member, or a whole run, `adds`.
    """
    adds = {one["member"]: one["adds"] for one in gains}
    models = []
    for share in shares:
        name = share.run.name
        own = [
            (place, one)
            for place in share.places
            for one in checkpoints(share.run, place, subset=share.subset)
            if weights is None or weights.get(f"{name}/{one.member}", 0) > 0
        ]
        for place, one in own:
            count = sum(other.member == one.member for _, other in own)
            gain = adds.get(f"{name}/{one.member}", adds.get(name, _UNKNOWN))
            models.append(Model(name, place, one.member, one.checksum, gain, count))
    return models


def order(models: Sequence[Model], seconds: Mapping[str, float]) -> list[Model]:
    """Return the models in the order in which they are left out: the least gain for each second first.

    The gain of a member is shared by its models; of those of one member the last fold goes first. What may be all that
    a target has goes last.

    Args:
        models: the models.
        seconds: checksum -> seconds of an image.
    """

    def worth(place: int) -> tuple[bool, float, int]:
        model = models[place]
        gain = (model.gain or 0.0) / (model.count * max(seconds.get(model.checksum, 0.0), 1e-9))
        return model.gain is None, gain, -place

    return [models[place] for place in sorted(range(len(models)), key=worth)]


def may_go(model: Model, kept: Sequence[Model]) -> bool:
    """Return whether a model may be left out of those that are kept: something must stay, of each target too."""
    if len(kept) == 1:
        return False
    same = [one for one in kept if (one.run, one.member) == (model.run, model.member)]
    return model.gain is not None or len(same) > 1


def lessened(
    shares: Sequence[Share], weights: Mapping[str, float] | None, left_out: frozenset[str]
) -> tuple[list[Share], dict[str, float] | None]:
    """Return shares and weights without some models; those that stay keep their weights relative to each other.

    Args:
        shares: the runs.
        weights: member -> weight, or None.
        left_out: checksums.
    """
    if not left_out:
        return list(shares), None if weights is None else dict(weights)
    fewer = []
    for share in shares:
        run = replace(share.run, left_out=share.run.left_out | left_out)
        places = tuple(place for place in share.places if checkpoints(run, place, subset=share.subset))
        if places:
            fewer.append(replace(share, run=run, places=places))
    if weights is None:
        return fewer, None
    there = {
        f"{share.run.name}/{one.member}"
        for share in fewer
        for place in share.places
        for one in checkpoints(share.run, place, subset=share.subset)
    }
    return fewer, {name: weight for name, weight in weights.items() if name in there}
