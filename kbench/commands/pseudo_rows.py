"""Put the rows of pseudo-labels among those a fold trains on; those it validates stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from kbench import registry
from kbench.commands import parts
from kbench.commands.activating import activations_of
from kbench.commands.setup import Setup
from kbench.console import bar
from kbench.data.cache import Images, Resize
from kbench.data.mask_cache import open_masks, sizes_of
from kbench.data.pseudo import Joined, PseudoLabels, join, read_pseudo
from kbench.training.context import FoldContext


def place_of(fold: int | str) -> str:
    """Return the name of a fold's own labels."""
    return fold if isinstance(fold, str) else f"fold-{fold}"


def with_pseudo(context: FoldContext, setup: Setup) -> FoldContext:
    """Return a fold's context with the rows of its own pseudo-labels to train on, if the YAML names some."""
    path = setup.pseudo()
    if path is None:
        return context
    labels = read_pseudo(
        path, place_of(context.fold), unlabelled=setup.test, names=context.table.target_names, folds=setup.folds.hash
    )
    both = join(context.table, labels.table)
    tests = parts.opened_images(setup.competition, setup.test, setup.workspace.cache(), what="test")
    images, masks = context.images, context.masks

    def joined(resize: Resize) -> Images:
        return both.images(images(resize), tests(resize), rows=labels.rows)

    return replace(
        context, table=both.table,
        train_rows=np.sort(np.concatenate([both.first[context.train_rows], both.second])),
        valid_rows=both.first[context.valid_rows],
        images=joined,
        masks=None if masks is None else _masks(setup, both, labels, masks),
        activations=activations_of(
            setup.competition, both.table, setup.workspace.cache(), joined, device=context.device,
            plugins=setup.plugin_files(),
        ),
    )  # fmt: skip


def _masks(
    setup: Setup, both: Joined, labels: PseudoLabels, masks: Callable[[Resize], Images]
) -> Callable[[Resize], Images]:
    section = setup.competition.input
    reader = None  # the header of a file tells the size `image` reads
    if section.reader.name != "image":
        reader = registry.build("reader", section.reader.name, section.reader.params, _channels=section.channels)
    opened: dict[Resize, Images] = {}

    def joined(resize: Resize) -> Images:
        if resize not in opened:
            assert labels.kind is not None, "a dense task has masks"
            with bar("decoding pseudo masks") as advance:
                made = open_masks(
                    labels.table, kind=labels.kind, kind_key="pseudo", size_of=sizes_of(labels.table, reader),
                    resize=resize, folder=setup.workspace.cache(), mode=section.cache, progress=advance,
                )  # fmt: skip
            opened[resize] = both.images(masks(resize), made)
        return opened[resize]

    return joined
