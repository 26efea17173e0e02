"""The data sections of the shipped segmentation YAMLs read the layouts they are for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from places import ROOT, SHARED
from streets_and_salt import NAMES, write_salt, write_street

from kbench.commands.check import check
from kbench.runs.experiment import open_experiment
from kbench.workspace import Choice, Workspace

HERE = ROOT / "competitions"


def shipped(workspace: Workspace, name: str) -> Choice:
    text = (HERE / f"{name}.yaml").read_text()
    (workspace.root / "competitions" / f"{name}.yaml").write_text(text)
    return Choice(competition=name)


def test_salt(workspace: Workspace) -> None:
    choice = shipped(workspace, "tgs-salt-identification-challenge")
    write_salt(workspace.data("tgs-salt-identification-challenge"), train=40, test=5)
    assert check(choice, images=True, every=False)["rows"] == 40
    setup = open_experiment(choice)
    assert (setup.train.target_names, len(setup.test)) == (("salt",), 5)
    assert setup.train.column("z").astype(int).min() >= 50
    strata, fold = setup.folds.strata, setup.folds.fold
    assert strata is not None
    assert (strata == "00").sum() >= 16
    assert np.ptp(np.bincount(fold[strata == "00"], minlength=5)) <= 1


def test_street_frames(workspace: Workspace) -> None:
    choice = shipped(workspace, "signate-ai-edge")
    root = write_street(workspace.data("signate-ai-edge"))
    (root / "sample_submit.json").write_text(json.dumps({f"test_{row:03d}.jpg": {} for row in range(4)}))
    found = check(choice, images=True, every=False)
    assert (found["targets"], found["test"], found["folds"]) == (20, 4, 7)
    setup = open_experiment(choice)
    assert setup.train.target_names == NAMES
    strata = setup.folds.strata
    assert strata is not None
    for stratum in np.unique(strata):
        assert np.ptp(np.bincount(setup.folds.fold[strata == stratum], minlength=7)) <= 1


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not on this machine")
def test_camvid(workspace: Workspace) -> None:
    choice = shipped(workspace, "camvid")
    workspace.data("camvid").parent.mkdir(parents=True)
    workspace.data("camvid").symlink_to(SHARED / "camvid")
    assert check(choice, images=True, every=False)["targets"] == 11
    setup = open_experiment(choice)
    folds = setup.folds
    assert folds.avoid is not None
    route, frame = setup.train.column("route"), setup.train.column("frame").astype(int)
    for fold in range(folds.n):
        train, valid = folds.train(fold), folds.valid(fold)
        assert set(route[valid]) == set(route)
        near = (route[:, None] == route[None]) & (np.abs(frame[:, None] - frame[None]) <= 60)
        assert not near[np.ix_(train, valid)].any()
