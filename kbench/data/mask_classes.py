"""From what a competition's masks hold to the classes of a YAML: pixel values, colours or layers.

`Lookup` says which class each source value is of (merging several into one is a list of them); `united` makes one
array of a layer per class. To give a mask kind another way of naming classes, write it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kbench.errors import ConfigError, DataError, Problem, first_names, nearest, raise_all
from kbench.tasks import IGNORED, exclusive

MOST = 254  # classes a mask of 8 bits tells apart, beside the ignored ones


@dataclass(frozen=True)
class Lookup:
    """Which class the source values of a mask are of.

    Attributes:
        names: K class names.
        classes: source -> class number, or 255 where its pixels are ignored.
        rest: class number of every other source; None where there must be none.
    """

    names: tuple[str, ...]
    classes: dict[int, int]
    rest: int | None


def lookup(
    sources: Mapping[str, Sequence[int]],
    *,
    names: Sequence[str],
    ignore: Sequence[int],
    rest: str | None,
    problems: Sequence[Problem] = (),
) -> Lookup:
    """Return the lookup of a mask kind.

    Args:
        sources: class name -> its source values.
        names: `data.classes`; the names of `sources` by default.
        ignore: sources that are neither trained on nor scored.
        rest: name of the class of every source named nowhere, `ignore`, or None: there must be none. With one class
            alone, they are what it is not.
        problems: what is known to be wrong already.

    Raises:
        ConfigError: it lists every problem: unknown or repeated classes, sources of two classes, classes without one.
    """
    names = tuple(names) or tuple(sources)
    problems = [*problems, *names_problems(names)]
    problems += [
        Problem("data.masks", f"'{name}' is no class of data.classes", nearest(name, names))
        for name in sources
        if name not in names
    ]
    without = [name for name in names if not sources.get(name) and name != rest]
    if without:
        problems.append(Problem("data.masks", f"classes without a value: {first_names(without)}"))
    classes: dict[int, int] = dict.fromkeys(ignore, IGNORED)
    for name, values in sources.items():
        for value in values if name in names else ():
            if classes.setdefault(value, names.index(name)) != names.index(name):
                problems.append(Problem("data.masks", f"the value {value} is of two classes, or ignored", name))
    if rest is not None and rest not in (*names, "ignore"):
        problems.append(Problem("data.masks.rest", f"'{rest}' is no class", nearest(rest, [*names, "ignore"])))
    raise_masks(problems)
    number = None if rest is None else IGNORED if rest == "ignore" else names.index(rest)
    if len(names) == 1:  # the class against all else
        classes = {value: 1 if found == 0 else found for value, found in classes.items()}
        number = 0 if number is None else number
    return Lookup(names, classes, number)


def names_problems(names: Sequence[str]) -> list[Problem]:
    """Return what is wrong with class names: none, too many, repeated ones."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    problems = [Problem("data.classes", f"names stand twice: {first_names(twice)}")] if twice else []
    if not names:
        problems.append(Problem("data.classes", "the masks need class names", "`classes: [sky, road]`"))
    if len(names) > MOST:
        problems.append(Problem("data.classes", f"{len(names)} classes", f"{MOST} at most"))
    return problems


def raise_masks(problems: Sequence[Problem]) -> None:
    """Raise one ConfigError that lists what is wrong with `data.masks`; do nothing when there is none."""
    raise_all(
        problems, error=ConfigError, subject="data.masks", expected="what fits the classes and the files",
        todo="correct `data:` in the YAML; see `kbench list mask`",
    )  # fmt: skip


def united(
    layers: Sequence[np.ndarray | None], *, task: str, background: int | None, size: tuple[int, int], of: str
) -> np.ndarray:
    """Return one array of a layer per class, as in `masks.py`.

    Args:
        layers: K layers [H, W], non-zero where the class is; None where it is nowhere.
        task: the competition's task.
        background: number of the class of the pixels no layer has; None: they are ignored.
        size: H and W.
        of: name of the row, for the message.

    Raises:
        DataError: two layers of classes that exclude one another share a pixel.
    """
    if not exclusive(task, len(layers)):
        array = np.zeros((*size, len(layers)), dtype=np.uint8)
        for k, layer in enumerate(layers):
            if layer is not None:
                array[:, :, k] = layer != 0
        return array
    index = np.full(size, IGNORED, dtype=np.uint8)
    for k, layer in enumerate(layers):
        if layer is None:
            continue
        chosen = layer != 0
        shared = int(np.count_nonzero(chosen & (index != IGNORED)))
        if shared:
            raise DataError(
                f"{shared:,} pixels of '{of}' are of two classes, '{k}' and an earlier one",
                "classes that exclude one another",
                "set `task: multi_label_segmentation`, or correct data.masks in the YAML",
            )
        index[chosen] = k
    if background is not None:
        index[index == IGNORED] = background
    return index[:, :, None]


def background_of(background: str | None, names: Sequence[str], task: str) -> int | None:
    """Return the number of the class of pixels that no layer has, or None.

    Raises:
        ConfigError: there is no such class, or classes may overlap.
    """
    if background is None:
        return None
    problems = []
    if background not in names:
        problems.append(Problem("data.masks.background", f"'{background}' is no class", nearest(background, names)))
    if not exclusive(task, len(names)):
        problems.append(Problem("data.masks.background", f"'{task}' of {len(names)} classes has no background class"))
    raise_masks(problems)
    return list(names).index(background)
