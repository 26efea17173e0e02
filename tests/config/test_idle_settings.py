"""Settings without effect are errors, and a value the YAML does not say is called the default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fold_tables import make_table

from kbench.config.reading import validate
from kbench.data.folds.folds import Cut, make_folds
from kbench.errors import ConfigError, FoldError

BASE: dict[str, Any] = {
    "task": "multi_label", "metric": "f2_samples", "source": {"name": "local", "path": "files"},
    "model": {"backbone": "test_resnet"},
    "stages": {"all": {"lr": 0.01, "keep": ["cycles"]}},
}  # fmt: skip


def read(folder: Path, *, record: bool = False, **changes: Any) -> Any:
    return validate({**BASE, **changes}, file="x.yaml", folder=folder, name="x", record=record)


def options(**values: Any) -> dict[str, Any]:
    return {"model": {"backbone": "test_resnet", "options": values}}


IDLE = {
    "hidden": (options(hidden=[64]), "model.options.hidden: would have no effect", options(head="concat", hidden=[64])),
    "no hidden": (options(head="concat", hidden=[]), "model.options.hidden: names no width", options(head="linear")),
    "timm hidden": (options(head="timm", hidden=[64]), "`head: timm` has one layer", options(head="timm")),
    "dropouts": (options(dropout=[0.1, 0.2]), "2 probabilities, and `head: linear`", options(dropout=0.5)),
    "no dropout": (options(head="concat", dropout=[]), "has no probability", options(head="concat", dropout=0.5)),
    "weights": (
        {"ensemble": {"mean": "geometric", "combine": "weights"}}, "'weights' averages arithmetically",
        {"ensemble": {"mean": "geometric", "combine": "greedy"}},
    ),
    "rank": (
        {"ensemble": {"mean": "geometric", "combine": "rank"}}, "'rank' averages arithmetically",
        {"ensemble": {"mean": "arithmetic", "combine": "rank"}},
    ),
    "members": ({"ensemble": {"members": []}}, "is empty", {"ensemble": {"members": ["all"]}}),
    "windows": ({"maps": {"windows": "grid"}}, "maps.windows: would have no effect", {}),
}  # fmt: skip


@pytest.mark.parametrize(("idle", "said", "remedy"), IDLE.values(), ids=IDLE)
def test_a_setting_without_effect_is_an_error_whose_remedy_works(
    tmp_path: Path, idle: dict[str, Any], said: str, remedy: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, **idle)
    assert said in str(caught.value)
    read(tmp_path, **remedy)
    read(tmp_path, record=True, **idle)  # what a run was trained with is scored as before


def test_a_value_the_yaml_does_not_say_is_called_the_default(tmp_path: Path) -> None:
    stage = {"precompute": True, "lr": 0.01, "keep": ["cycles"]}
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, stages={"all": stage})
    assert "stages.all.groups: is not `head`" in str(caught.value)
    assert "(groups: all is the default)" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, stages={"all": {**stage, "groups": "all"}})
    assert "is the default" not in str(caught.value)


@pytest.mark.parametrize("strategy", ["kfold", "stratified", "holdout"])
def test_a_number_of_folds_the_yaml_does_not_say_is_called_the_default(strategy: str) -> None:
    table = make_table(rows=4)
    with pytest.raises(FoldError, match=r"5 folds \(the default\) of 4"):
        make_folds(table, strategy, Cut(5, 0, by_default=True), {})
    with pytest.raises(FoldError, match="5 folds of 4"):
        make_folds(table, strategy, Cut(5, 0), {})


def test_a_number_of_folds_that_options_decide_is_called_the_default() -> None:
    table = make_table(rows=30, part=[str(row) for row in np.arange(30) % 3])
    folds = make_folds(table, "predefined", Cut(5, 0, by_default=True), {"column": "part"})
    assert any("folds.n is 5 (the default), but" in text for text in folds.manifest["warnings"])
