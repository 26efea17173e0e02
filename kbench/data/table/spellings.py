"""Labels that are one to a reader: they differ only by spaces, Unicode form, invisible signs or case.

Which of them are meant to be one, only the user can say; they are named with their counts, and `tidy` makes them one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

import numpy as np

from kbench.errors import counted, visible

_SHOWN = 5
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0+")  # a whole number in a column that once held a hole


def plain(text: str) -> str:
    """Return a text as a reader sees it: composed, without invisible signs, single spaces, small letters; 1 for 1.0."""
    composed = unicodedata.normalize("NFC", text)
    seen = "".join(sign for sign in composed if unicodedata.category(sign) != "Cf")
    words = " ".join(seen.split()).casefold()
    whole = _WHOLE.fullmatch(words)
    return words if whole is None else whole[1]


def counts_of(labels: Iterable[str]) -> dict[str, int]:
    """Return label -> number of cells, the empty ones left out."""
    names, counts = np.unique(np.array([label for label in labels if plain(label)], dtype=object), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def alike(counts: Mapping[str, int]) -> list[list[str]]:
    """Return groups of labels that are one to a reader, the most frequent first in each."""
    groups: dict[str, list[str]] = {}
    for label in sorted(counts, key=lambda label: (-counts[label], label != label.strip(), label)):
        groups.setdefault(plain(label), []).append(label)
    return [group for group in groups.values() if len(group) > 1]


def spelling_note(where: str, counts: Mapping[str, int]) -> str:
    """Return a note of labels that are one to a reader, with their counts; empty where there is none."""
    groups = alike(counts)
    if not groups:
        return ""
    shown = ["/".join(f"'{visible(label)}' ({counts[label]:,})" for label in group) for group in groups[:_SHOWN]]
    more = f" and {counted(len(groups) - _SHOWN, 'more')}" if len(groups) > _SHOWN else ""
    return (
        f"'{where}' has values that look alike and count as different: {', '.join(shown)}{more}; correct the file, or "
        "write `data: {layout: {name: csv, tidy: true}}` to make them one"
    )


def tidied(cells: Iterable[str], counts: Mapping[str, int]) -> list[str]:
    """Return cells without blanks round them, those that are one to a reader written like the most frequent."""
    meant = {label: group[0].strip() for group in alike(counts) for label in group}
    return [meant.get(cell, cell.strip()) for cell in cells]
