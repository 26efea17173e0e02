"""What is known of a competition's files, and the folders and tables it is read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kbench.drafting.files_of_rows import SeveralFiles
from kbench.drafting.mask_pixels import Masks


@dataclass(frozen=True)
class Images:
    """An image folder and how its files are called.

    Attributes:
        folder: path below the root.
        suffix: what the names end with; empty if ids carry it, None if there are several.
        example: path of one image below the root.
    """

    folder: str
    suffix: str | None
    example: str


@dataclass(frozen=True)
class Facts:
    """What the files of a competition say; None, or nothing, where they do not.

    Attributes:
        train_csv: table with the targets.
        id: its id column.
        target: its target columns.
        other: its other columns, without encoded masks.
        group: one of those whose values stand in several rows each, such as a patient or a route.
        task: a task's name.
        classes: class, tag or target names.
        train: images of the training rows; with `by_class` its folder has one folder per class.
        masks: what is known of the masks of the training rows, of a dense task.
        by_class: whether folders, not a table, say the classes.
        test_by_class: whether the test images lie in folders that are named like classes.
        valid: a second folder of classes, held out by whoever made the data.
        test: images of the test rows.
        test_csv: table of the test ids, where the folder alone does not give them.
        sample: the sample submission.
        format: a submission format's name.
        format_params: what stands beside it; `TODO` where the files leave it open.
        separator: between the tags of a cell, where it is no blank.
        archives: packed files beside the tables, where no image was found.
        why: what was read out of the files and is not plain to see.
        format_why: how the submission's format was told.
        size: height, width and channels of an image.
        rows: number of training rows.
        several: the files of each row, where it has several.
    """

    train_csv: str | None = None
    id: str | None = None
    target: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    group: str | None = None
    task: str | None = None
    classes: tuple[str, ...] = ()
    train: Images | None = None
    masks: Masks | None = None
    by_class: bool = False
    test_by_class: bool = False
    valid: str | None = None
    test: Images | None = None
    test_csv: str | None = None
    sample: str | None = None
    format: str | None = None
    format_params: Mapping[str, Any] = field(default_factory=dict)
    separator: str | None = None
    archives: tuple[str, ...] = ()
    why: tuple[str, ...] = ()
    format_why: tuple[str, ...] = ()
    size: tuple[int, int, int] | None = None
    rows: int | None = None
    several: SeveralFiles | None = None
