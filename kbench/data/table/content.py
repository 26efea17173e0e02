"""What the image and mask files of a table hold: a run is trained on one content, whatever the files are called.

A table's own fingerprint covers ids, targets and metadata; this one covers the files. A run keeps it from its first
fold on: the fingerprint in its manifest, and beside it the size and checksum of each file, so that a later fold can say
which ones are others now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kbench import files
from kbench.data.images.cache import RowPaths, content_key, file_digests
from kbench.data.images.decoding import is_there
from kbench.data.table.table import Table
from kbench.errors import ConfigError, DataError, counted, first_names

_DIGITS = 16  # of a file's checksum in the list


@dataclass(frozen=True)
class Content:
    """The files of a table.

    Attributes:
        table: the rows.
        folder: the cache folder, which remembers checksums until a file is touched.
        exact: whether files are read; else only their sizes count (`input.cache: off`: too many to be read once more).
    """

    table: Table
    folder: Path
    exact: bool = True

    @property
    def _rows(self) -> list[Any]:
        """Paths of the images of each row, and of its masks."""
        table = self.table
        written = () if table.masks is None or table.encoded else table.masks
        masks = [tuple(table.root / cell for cell in row if cell) for row in written]
        return [RowPaths(table.root, table.images), masks]

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell these files from others of the same names."""
        if not self.exact:
            return files.digest([[_size(path) for path in paths] for rows in self._rows for paths in rows])
        return files.digest([content_key(rows, self.folder) for rows in self._rows if len(rows)])

    def known(self) -> dict[str, Any]:
        """Return what a manifest says of the files."""
        return {"fingerprint": self.fingerprint, "exact": self.exact}

    def listed(self) -> dict[str, list[Any]]:
        """Return path below the root -> size, and the beginning of its checksum where files are read."""
        columns: dict[str, list[Any]] = {}
        for rows in self._rows:
            digests = iter(file_digests(rows, self.folder)) if self.exact and len(rows) else iter(())
            for paths in rows:
                for path in paths:
                    entry = [_size(path), *([next(digests)[:_DIGITS]] if self.exact else [])]
                    if not is_there(path):
                        continue
                    columns[path.relative_to(self.table.root).as_posix()] = entry
        return columns

    def keep(self, path: Path) -> dict[str, Any]:
        """Write the list of the files; return what the manifest says of them."""
        files.write_text(path, files.compact_json(self.listed()) + "\n")
        return self.known()

    def changes(self, known: Mapping[str, Any] | None, path: Path) -> list[str]:
        """Return lines that say which files are not those a run began with; none where all are.

        Args:
            known: what its manifest says of them; None of a run of an earlier version.
            path: the list of its files.
        """
        if known is None or (self.exact == known["exact"] and self.fingerprint == known["fingerprint"]):
            return []
        exact = self.exact and known["exact"]
        now = self if exact == self.exact else Content(self.table, self.folder, exact=exact)
        lines = now._differences(path)
        alike = self.exact != known["exact"]  # then only the sizes are known of one of the two
        return lines or ([] if alike else ["  which ones is not known"])

    def _differences(self, path: Path) -> list[str]:
        """Return lines that say which files are not those of a list."""
        try:
            before: dict[str, list[Any]] = files.read_json(path)
        except DataError:
            return []
        if not isinstance(before, dict):
            return []
        after = self.listed()
        groups = {
            "changed": [name for name in before if name in after and _differ(before[name], after[name])],
            "not there any more": [name for name in before if name not in after],
            "new": [name for name in after if name not in before],
        }
        return [
            f"  {counted(len(names), 'file')} {what}: {first_names(names)}" for what, names in groups.items() if names
        ]


def changed(run: str, lines: list[str]) -> ConfigError:
    """Return the error of a run whose files are others now.

    Args:
        run: its name.
        lines: of `Content.changes`.
    """
    return ConfigError(
        f"the files that '{run}' is trained on have changed since its first fold:\n" + "\n".join(lines),
        "images and masks of one content for all folds of a run",
        f"bring the files back; or train with them as another run, `--run NAME`; or train '{run}' anew with `--force`",
    )


def _differ(one: list[Any], other: list[Any]) -> bool:
    """Return whether two entries of lists are of other files, by what both know."""
    return any(left != right for left, right in zip(one, other, strict=False))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
