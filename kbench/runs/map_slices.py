"""Maps of rows that were predicted slice by slice, read as if they had been predicted at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kbench.inference.map_store import MaskSet, NumberSet
from kbench.runs.map_parts import MapResult
from kbench.runs.results import Rows
from kbench.tasks import SEGMENTATION, exclusive


def over_slices(rows: Rows, results: Sequence[MapResult]) -> MapResult:
    """Return the result of all rows from those of their slices.

    Args:
        rows: with the rows of all slices, and those without a readable image, marked.
        results: one of each slice.
    """
    first, table = results[0], rows.table
    unreadable = table.unreadable
    gone = [] if unreadable is None else [str(name) for name in table.ids[unreadable]]
    ids = np.sort(np.concatenate([one.ids for one in results]))

    def read(wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        for one in results:
            own = np.searchsorted(ids, one.ids)
            here = np.flatnonzero(np.isin(own, wanted))
            if len(here):
                yield from ((int(own[place]), maps) for place, maps in one.read(here))

    sizes = {name: rows.sizes.get(name, (1, 1)) for name in gone}
    return MapResult(
        ids, first.names, first.task, read, first.members, first.weights, slices=tuple(results), gone=sizes
    )  # fmt: skip


def joined_sets(result: MapResult, parts: Sequence[MaskSet | NumberSet]) -> MaskSet | NumberSet:
    """Return what a format takes of all rows from what it would take of each slice.

    Rows without a readable image get the commonest thing there is: no mask, the first class where classes exclude one
    another, 0 of numbers.
    """
    ids = np.sort(np.concatenate([*(part.ids for part in parts), np.array(sorted(result.gone), dtype=str)]))
    places = {str(name): (part, row) for part in parts for row, name in enumerate(part.ids)}
    dense = result.task in SEGMENTATION
    layers = () if dense and exclusive(result.task, len(result.names)) else (len(result.names),)

    def read(row: int) -> np.ndarray:
        name = str(ids[row])
        if name in result.gone:
            return np.zeros((*layers, *result.gone[name]), dtype=np.uint8 if dense else np.float32)
        part, place = places[name]
        return part[place]

    made = MaskSet if dense else NumberSet
    return made(ids, result.names, result.task, parts[0].source, read)
