"""Draft the YAML of a new competition from its files.

The text is meant to be read and corrected: what the files do not say is written as `TODO`, in a value that
`kbench check` reports and in a comment that says what is wanted. To draft one more section, write a function
that returns its lines and add it to `draft`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kbench import registry
from kbench.config.yaml12 import parse_yaml
from kbench.drafting.facts import discover
from kbench.drafting.known import Facts, Images
from kbench.drafting.recipe import experiment
from kbench.tasks import DENSE

_TODO = "TODO"
_METADATA = 10  # columns kept for folds and reports
_PLAIN = re.compile(r"[A-Za-z0-9_.~/]([A-Za-z0-9_./~+() -]*[A-Za-z0-9_./~+()-])?")
_OWN = {"single_label": "label", "multi_label": "probabilities", "regression": "value"}
"""Task -> the format of own data without a sample submission."""
_METRICS = {
    "probabilities": "log_loss",
    "single_probability": "log_loss",
    "label": "accuracy",
    "tags": "f2_samples",
    "value": "rmse",
}
_CALLED: dict[tuple[str, ...], str] = {
    ("log_loss", "bce"): "logloss logarithmicloss multiclassloss multiclasslogloss binarylogloss crossentropy "
    "multiclasslogarithmicloss binarycrossentropy categoricalcrossentropy",
    ("auc",): "auc rocauc aucroc areaunderroc areaunderthecurve areaunderreceiveroperatingcharacteristiccurve "
    "areaunderthereceiveroperatingcharacteristiccurve",
    ("accuracy",): "accuracy categorizationaccuracy classificationaccuracy accuracyscore",
    ("error",): "categorizationerror classificationerror misclassificationerror",
    ("f2_samples",): "f2 f2score meanf2 meanf2score",
    ("f1_macro",): "f1macro macrof1 f1scoremacro macrof1score macrofscore",
    ("quadratic_kappa",): "quadraticweightedkappa quadraticweightkappa quadraticcohenskappa",
    ("rmse",): "rmse rootmeansquarederror rootmeansquareerror",
    ("mse",): "mse meansquarederror meansquareerror",
    ("mae",): "mae meanabsoluteerror",
    ("r2",): "r2 r2score rsquared coefficientofdetermination",
    ("mean_iou",): "iou meaniou miou jaccard jaccardindex intersectionoverunion meanintersectionoverunion",
    ("dice_per_image",): "dice dicecoefficient dicescore sorensendice sorensendicecoefficient",
    ("pixel_accuracy",): "pixelaccuracy",
    ("rmse_pixels",): "pixelrmse rmsepixels",
}
"""Registered metrics (the first one for the task counts) -> what services call them, letters and digits alone."""


def draft(
    root: Path,
    *,
    name: str,
    source: Mapping[str, Any],
    title: str = "",
    metric: str = "",
    code_only: bool = False,
    hours: tuple[float, ...] = (),
) -> str:
    """Return the text of a YAML for a competition: the contract and a first experiment.

    Args:
        root: its data folder.
        name: its name.
        source: the `source` component, such as `{"name": "local", "path": "my-zip.zip"}`.
        title: its name for people; `name` by default.
        metric: the score in the service's words; guessed from the submission's format by default.
        code_only: whether the service takes notebooks instead of files.
        hours: time limits of notebooks that its pages name.

    Raises:
        DataError: a CSV in the folder cannot be read.
    """
    facts = discover(root)
    lines = [
        *_head(name, source, facts, title=title, notebook=_notebook(name, hours) if code_only else []),
        *_data(facts),
        *_contract(facts, metric, source),
        "",
        "# the baseline experiment",
        "seed: 0",
        *experiment(facts),
    ]
    return "\n".join(lines) + "\n"


def limits_in(pages: Mapping[str, str]) -> tuple[float, ...]:
    """Return the hours that a competition's pages allow notebooks, the shortest first; none where they name none."""
    said = re.findall(r"(?:<=|≤|&lt;=|at most|up to|limit of)\s*(\d+(?:\.\d+)?)[\s-]*hours?", " ".join(pages.values()))
    return tuple(sorted({float(one) for one in said}))


def _notebook(name: str, hours: Sequence[float]) -> list[str]:
    limit = f" --hours {hours[0]:g}" if hours else ""
    said = f"; its pages say {' or '.join(f'{one:g}' for one in hours)} h" if hours else ""
    return [
        f"# A code competition: no file is sent. A notebook is{said}. After training:",
        f"# `kbench export -c {name}{limit}`, `kbench push -c {name}`, `kbench submit --kernel -c {name}`;",
        "# docs/code-competitions.md has more.",
    ]


def _head(name: str, source: Mapping[str, Any], facts: Facts, *, title: str, notebook: list[str]) -> list[str]:
    todo = "  # TODO single_label, multi_label, regression, segmentation or dense_regression"
    return [
        f"# Drafted by `kbench new` from the competition's files. Look for {_TODO}, then run `kbench check -c {name}`.",
        *notebook,
        f"title: {_value(title or name)}",
        f"task: {facts.task or _TODO}" + ("" if facts.task else todo),
        f"source: {_value(dict(source) if len(source) > 1 else source['name'])}",
    ]


def _data(facts: Facts) -> list[str]:
    lines = ["data:"]
    if facts.archives:
        packed = ", ".join(facts.archives[:5])
        lines.append(f"  # {_TODO} unpack what holds images, then `kbench new --force`: {_comment(packed)}")
    if facts.separator:
        lines.append(f"  layout: {_value({'name': 'csv', 'separator': facts.separator})}")
    if facts.by_class:
        layout = {"name": "folders", **({"valid": facts.valid} if facts.valid else {})}
        lines.append(f"  layout: {_value(layout if facts.valid else 'folders')}")
    elif facts.masks:
        lines += [f"  # {_comment(text)}" for text in facts.masks.why]
        lines += [f"  masks: {_value(facts.masks.kind)}", f"  classes: {_value(list(facts.classes))}"]
    elif facts.task == "segmentation":
        lines += [f"  masks: {{name: {_TODO}}}  # TODO how masks are written; `kbench list mask`"]
    lines.append(
        f"  train: {_value(_train(facts))}" + ("" if facts.train else "  # TODO where the training images are")
    )
    lines.append(f"  test: {_value(_split(facts.test, facts.test_csv))}" + _test_comment(facts))
    if facts.test_by_class and facts.test:
        lines.append(
            f"  # the folders of {_value(facts.test.folder)} are named like the classes: all its images are rows. To "
            "grade here, write ids and these names into a CSV, and `solution:` under source"
        )
    if not facts.by_class and not facts.masks and facts.task != "segmentation":
        target: Any = list(facts.target) if len(facts.target) > 1 else (facts.target or (_TODO,))[0]
        lines.append(f"  target: {_value(target)}" + ("" if facts.target else "  # TODO the column to predict"))
        lines += [f"  # {_comment(text)}" for text in facts.why]
    if facts.classes and not facts.masks:
        lines.append(f"  # {len(facts.classes)} {'targets' if facts.task == 'regression' else 'classes'}")
    if facts.valid:
        lines.append("  metadata: [split]")
    elif facts.other:
        lines.append(f"  metadata: {_value(list(facts.other[:_METADATA]))}")
    return lines


def _train(facts: Facts) -> dict[str, Any]:
    split = _split(facts.train, facts.train_csv)
    if facts.train_csv:
        split = {"csv": facts.train_csv, "id": facts.id, **{key: split[key] for key in split if key != "csv"}}
    return split


def _split(images: Images | None, table: str | None) -> dict[str, Any]:
    split: dict[str, Any] = {"csv": table} if table else {}
    split["images"] = images.folder or "." if images else _TODO
    if images and images.suffix is not None:
        split["suffix"] = images.suffix
    return split


def _test_comment(facts: Facts) -> str:
    return "" if facts.test else "  # TODO where the test images are; remove the line if there are none"


def _contract(facts: Facts, words: str, source: Mapping[str, Any]) -> list[str]:
    lines = [f"folds: {_value(_folds(facts))}"]
    if facts.group and not facts.valid:
        strategy = "group" if facts.task in ("multi_label", *DENSE) else "stratified_group"
        grouped = {"strategy": strategy, "group": facts.group, "n": 5, "seed": 42}
        lines.append(f"# if images of one {facts.group} resemble each other, keep them in one fold:")
        lines.append(f"# folds: {_value(grouped)}")
    own = source.get("name") == "local" and not facts.sample
    if own and facts.masks is None and facts.task in _OWN:
        facts = replace(facts, format=_OWN[facts.task])
    lines.append(_metric(facts, words))
    lines += [f"# {_comment(text)}" for text in facts.format_why]
    format: Any = {"name": facts.format, **facts.format_params} if facts.format_params else facts.format or _TODO
    if own and facts.format:
        lines.append("# no sample submission was found: the file is written from the test ids, in this format")
        return [*lines, f"submission: {_value({'format': format})}"]
    lines.append(f"submission: {_value({'format': format, 'sample': facts.sample or _TODO})}")
    if facts.format_params.get("target") == _TODO:
        names = " or ".join(facts.classes)
        lines[-1] += f"  # TODO whose probability the file's column holds: {_comment(names)}"
    elif not facts.format:
        lines[-1] += "  # TODO what the file must look like; `kbench list format`"
    elif not facts.sample:
        lines[-1] += "  # TODO where the sample submission is"
    return lines


def _metric(facts: Facts, words: str) -> str:
    """Return the line of the metric: the one the service names, or else what such submissions are usually scored by."""
    words = "".join(char if char.isprintable() else " " for char in words)[:100].strip()
    metric = named_metric(words, facts.task) if words else _usual(facts)
    comment = f"the service says '{words}'" if words else "guessed; the evaluation page names it"
    if not metric:
        comment = f"{_TODO} {comment}" if words else f"{_TODO} the evaluation page names it"
    return f"metric: {metric or _TODO}  # {comment}; `kbench list metric`"


def _usual(facts: Facts) -> str | None:
    """Return the metric such submissions are usually scored by."""
    if facts.masks is None:
        return _METRICS.get(facts.format or "")
    if facts.task == "dense_regression":
        return "rmse_pixels"
    return "dice_per_image" if len(facts.classes) == 1 or facts.task != "segmentation" else "mean_iou"


def named_metric(words: str, task: str | None) -> str | None:
    """Return the registered metric a service means by its words, such as `Area Under the ROC`, or None.

    Args:
        words: the service's; "mean" or "mean columnwise" in front and what stands in brackets may be there.
        task: the competition's task; a metric that cannot score it is none. None: not known.
    """
    plain = re.sub(r"[^a-z0-9]", "", words.lower())
    short = re.sub(r"[^a-z0-9]", "", re.sub(r"\(.*?\)", "", words.lower()))
    spellings = {text.removeprefix("mean").removeprefix("columnwise") for text in (plain, short)} | {plain, short}
    for names, called in _CALLED.items():
        if spellings & set(called.split()):
            fits = [name for name in names if task is None or task in registry.get("metric", name).meta["tasks"]]
            return fits[0] if fits else None
    return None


def _folds(facts: Facts) -> dict[str, Any]:
    if facts.valid:
        return {"strategy": "predefined", "n": 1, "options": {"column": "split"}}
    strategy = "kfold" if facts.task in DENSE else "multilabel" if facts.task == "multi_label" else "stratified"
    return {"strategy": strategy, "n": 5, "seed": 42}


def _comment(text: str) -> str:
    """Return a text that stays on its line."""
    return "".join(char if char.isprintable() else " " for char in text)


def _value(value: Any) -> str:
    """Return a value as YAML on one line, that `parse_yaml` reads back unchanged."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(key)}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and isinstance(parse_yaml(value, name="draft"), str):
        return value
    return '"' + "".join(char if _is_itself(char) else f"\\U{ord(char):08x}" for char in value) + '"'


def _is_itself(char: str) -> bool:
    """Return whether a character may stand in double quotes as it is."""
    return char.isprintable() and char not in '"\\'
