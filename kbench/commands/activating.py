"""From the YAML to precomputed activations: which rows, how they are read, where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from kbench import files
from kbench.config import Competition
from kbench.console import bar
from kbench.data.cache import Images, Resize, RowPaths
from kbench.data.dataset import auto_workers
from kbench.data.tables import Table
from kbench.inference.activations import Activations, Seen, Source, activations


def activations_of(
    competition: Competition,
    table: Table,
    cache: Path,
    images: Callable[[Resize], Images],
    *,
    device: torch.device,
    plugins: Sequence[Path],
) -> Callable[[nn.Module, Seen], Activations]:
    """Return a function from a model and how its body sees images to its features of all rows of a table.

    Args:
        competition: says how images are read.
        table: the rows.
        cache: the cache folder.
        images: from `opened_images`.
        device: where the body runs.
        plugins: files whose content is part of what a body is.
    """
    section = competition.input

    def made(model: nn.Module, seen: Seen) -> Activations:
        with bar("activations") as advance:
            source = Source(
                ids=table.ids, rows=RowPaths(table.root, table.images), images=images, folder=cache, device=device,
                reader=[section.reader.model_dump(), section.channels, [files.sha256(path) for path in plugins]],
                batch_size=competition.loader.valid_batch_size or 64,
                workers=auto_workers(competition.loader.workers, device=device.type), progress=advance,
            )  # fmt: skip
            return activations(source, model, seen)

    return made
