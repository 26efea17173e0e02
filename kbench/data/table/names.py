"""Rows found by a name: by the whole id, or without its image ending where no two rows share that.

Whatever is looked up by a name (masks, metadata, annotations) is looked up here, so that `x.jpg` and `x.png` are never
taken for each other, and a name that finds nothing is said with the id it may have meant.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kbench.data.table.image_files import stem
from kbench.data.table.spellings import plain
from kbench.errors import counted, first_names, visible

_ZEROS = re.compile(r"0+(?=[0-9])")
_FIELD = re.compile(r"\{([a-z_]+)\}")
AMBIGUOUS = -2


@dataclass(frozen=True)
class Names:
    """The rows of some ids.

    Attributes:
        whole: id -> row.
        stems: id without its image ending -> row, or -2 where several rows share it.
    """

    whole: Mapping[str, int]
    stems: Mapping[str, int]

    def row(self, name: str) -> int | None:
        """Return the row a name is of, None for none, -2 for several that only their endings tell apart."""
        whole = self.whole.get(name)
        return self.stems.get(stem(name)) if whole is None else whole

    def shared(self) -> list[str]:
        """Return the ids that only their endings tell apart."""
        return [name for name in self.whole if self.stems[stem(name)] == AMBIGUOUS]


def names_of(ids: Iterable[str]) -> Names:
    """Return the rows of ids, in their order."""
    whole = {str(name): row for row, name in enumerate(ids)}
    stems: dict[str, int] = {}
    for name, row in whole.items():
        stems[stem(name)] = AMBIGUOUS if stem(name) in stems else row
    return Names(whole, stems)


def alike(name: str) -> str:
    """Return what is left of a name that only its folder, ending, case, zeros, blanks or Unicode form tell apart."""
    base = plain(name.replace("\\", "/").rpartition("/")[2])
    if stem(base) == base and base.count(".") == 1:
        base = os.path.splitext(base)[0]
    while stem(base) != base:
        base = stem(base)
    return _ZEROS.sub("", base)


def meant(names: Iterable[str], ids: Iterable[str]) -> str:
    """Return which id the first of some names may mean that is like one; empty where none is."""
    known = {alike(str(one)): str(one) for one in ids}
    pair = next(((name, known[alike(name)]) for name in names if alike(name) in known), None)
    return "" if pair is None else f"'{visible(pair[0])}' may mean '{visible(pair[1])}'"


def strays(names: Sequence[str], ids: Iterable[str]) -> str:
    """Return a text that counts names that are no id's, shows the first, and says what one may have meant."""
    text, hint = f"{counted(len(names), 'name')} of no image: {first_names(names)}", meant(names, ids)
    return f"{text}; {hint}" if hint else text


def cuts(template: str, text: str, words: Mapping[str, Iterable[str]]) -> list[dict[str, str]]:
    """Return every way to cut a text into the fields of a template such as `{id}_{class}`.

    Args:
        template: literal text with fields in braces, each once.
        text: the text.
        words: field -> what it may be; a field that is not here may be anything but empty.
    """
    pieces = _FIELD.split(template)
    readings: list[dict[str, str]] = []

    def cut(piece: int, place: int, fields: dict[str, str]) -> None:
        literal = pieces[piece]
        if not text.startswith(literal, place):
            return
        place += len(literal)
        if piece == len(pieces) - 1:
            if place == len(text):
                readings.append(fields)
            return
        name = pieces[piece + 1]
        if name in words:
            ends = [place + len(word) for word in words[name] if word and text.startswith(word, place)]
        else:
            ends = list(range(place + 1, len(text) + 1))
        for end in ends:
            cut(piece + 2, end, {**fields, name: text[place:end]})

    cut(0, 0, {})
    return readings
