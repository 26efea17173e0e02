"""What the tasks of a YAML are: which have masks for targets, which exclude one another's classes.

To add a task, add it to `config.competition.Task` and say here what it is.
"""

from __future__ import annotations

DENSE = ("segmentation", "multi_label_segmentation", "dense_regression")
SEGMENTATION = ("segmentation", "multi_label_segmentation")
IGNORED = 255  # mask value of pixels that are neither trained on nor scored


def is_dense(task: str) -> bool:
    """Return whether the targets of a task are images."""
    return task in DENSE


def exclusive(task: str, n_outputs: int) -> bool:
    """Return whether each row or pixel has exactly one class: softmax, an index as target.

    A segmentation of one class is a yes or no per pixel: sigmoid, 0 or 1 as target.
    """
    return task == "single_label" or (task == "segmentation" and n_outputs > 1)
