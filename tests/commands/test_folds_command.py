"""`kbench folds` on frames: groups found by itself, warnings of near-duplicates."""

from __future__ import annotations

import json
from pathlib import Path

from streets_and_salt import NAMES, SIGNATE, write_street

from kbench.commands.folds import folds
from kbench.workspace import Choice, Workspace

YAML = """
task: segmentation
source: {{name: local, path: files}}
data:
  masks: {{name: colour, folder: seg_train_annotations, suffix: .png, colours: {colours}}}
  train: {{images: seg_train_images}}
folds: {{strategy: {strategy}, n: 2, seed: 1{more}}}
metric: mean_iou
model: {{name: smp, backbone: resnet18}}
input: {{size: 32}}
stages: {{main: {{lr: 1e-3, keep: [last]}}}}
"""


def cut(workspace: Workspace, strategy: str, more: str = "") -> dict:
    text = YAML.format(colours=json.dumps({name: list(SIGNATE[name]) for name in NAMES}), strategy=strategy, more=more)
    (workspace.root / "competitions" / "street.yaml").write_text(text)
    return folds(Choice(competition="street"), adopt=None, force=True)


def test_near_duplicates_are_warned_of_and_kept_together(workspace: Workspace) -> None:
    data: Path = workspace.data("street")
    data.mkdir(parents=True)
    write_street(data, size=(64, 96), train={("Tokyo1", "day"): 12, ("Saitama", "morning"): 12})
    mixed = cut(workspace, "kfold")
    assert any("near-duplicate" in text for text in mixed["warnings"])
    together = cut(workspace, "group", ", group: auto")
    assert not any("near-duplicate" in text for text in together["warnings"])
    assert sum(record["groups"] for record in together["rows"]) < 12
    blocks = cut(workspace, "blocks", ", options: {gap: 2}")
    assert all(record["avoided"] > 0 for record in blocks["rows"])
