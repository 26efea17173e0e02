"""How masks are to be sent: what the sample submission's ids are made of, and what its rows stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kbench.data.table.image_files import stem
from kbench.drafting.mask_pixels import Masks

_TRIED = 500  # ids that are cut


def mask_format(
    sample: pd.DataFrame | None, test: Sequence[str], masks: Masks
) -> tuple[str, dict[str, Any], list[str]]:
    """Return the submission format of masks, its parameters, and why.

    Args:
        sample: text cells of the sample submission; None where there is none.
        test: ids of the test images.
        masks: what is known of the training masks.
    """
    if masks.task == "dense_regression":
        return (
            "number_zip",
            {},
            ["guessed: a zip of TIFF files; `file` and `dtype` say how they are written"],
        )
    params: dict[str, Any] = {"convention": masks.convention or "tgs"}
    if sample is None:
        return "rle", params | ({} if len(masks.classes) == 1 else {"id": "{id}_{class}"}), []
    if len(sample.columns) < 2:
        several = "" if masks.task == "segmentation" else "_{class}"
        return (
            "mask_zip",
            {"file": f"{{id}}{several}.png"},
            ["guessed: the sample has ids alone, so it is a zip with an image of each"],
        )
    column, why = str(sample.columns[0]), list[str]()
    label = next((str(name) for name in sample.columns[1:] if set(sample[name]) <= set(masks.classes)), None)
    if not masks.convention:
        why.append("guessed: runs down the columns from 1, as Kaggle's are; the evaluation page says how")
    if label is not None and len(masks.classes) > 1:
        return "rle", {**params, "label": label}, [*why, f"'{label}' has the class of each row"]
    parts, reason = _made_of(sample[column].tolist(), test, masks.classes)
    params |= parts
    if sample[column].duplicated().any():
        params["objects"] = True
        why.append("ids stand more than once: a row per object")
    return "rle", params, [*why, *([reason] if reason else [])]


def _made_of(ids: Sequence[str], test: Sequence[str], classes: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Return `id` and `first_class` of ids that are images and classes, and why."""
    known, some = set(test), list(ids[:_TRIED])
    if not known or all(name in known for name in some):
        return {}, ""
    ends = {name[len(stem(name)) :] for name in some}
    if len(ends) == 1 and all(stem(name) in known for name in some):
        return {"id": f"{{id}}{ends.pop()}"}, "ids have the ending of their image"
    longest = sorted(known, key=len, reverse=True)
    rests = [next((name[len(one) :] for one in longest if name.startswith(one)), "") for name in some]
    signs = {rest[:1] for rest in rests}
    if len(signs) == 1 and all(len(rest) > 1 for rest in rests):
        sign, words = signs.pop(), {rest[1:] for rest in rests}
        if words <= set(classes):
            return {"id": f"{{id}}{sign}{{class}}"}, "ids are image and class"
        if all(word.isdigit() for word in words) and len(words) <= len(classes):
            first = min(map(int, words))
            more = {"first_class": first} if first else {}
            return {
                "id": f"{{id}}{sign}{{class_index}}",
                **more,
            }, f"ids are image and number of the class, from {first}"
    heads = {name.partition("_")[0] for name in some}
    if heads <= set(classes) and all(name.partition("_")[2] in known for name in some):
        return {"id": "{class}_{id}"}, "ids are class and image"
    return {"id": "TODO"}, "TODO what ids are made of, such as {id}_{class}"
