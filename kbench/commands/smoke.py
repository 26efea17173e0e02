"""`kbench train --smoke`: two batches of every stage, then predict, ensemble and the submission check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kbench import files
from kbench.commands.train import train_one
from kbench.config.competition import Competition
from kbench.config.rules import stage_of
from kbench.data.table.csv_files import texts
from kbench.errors import SubmissionError
from kbench.inference.map_store import MaskSet
from kbench.inference.predictions import Predictions
from kbench.runs.blend import untuned_rule
from kbench.runs.experiment import open_setup
from kbench.runs.fold_job import TrainOptions
from kbench.runs.members import members_of
from kbench.runs.predict import fold_mean, masks_of, predict_test, rows_of_test
from kbench.runs.run import prepare_run, run_name
from kbench.submission.check import part_of, read_sample, write_submission
from kbench.submission.formats.base import id_column
from kbench.tasks import is_dense
from kbench.workspace import Choice

_BATCHES = 2


def smoke(choice: Choice, *, device: str) -> dict[str, Any]:
    """Run every step of the job on two batches; raise what would fail after hours.

    The sample submission is cut to the rows that were predicted; everything else is the real path, but that nothing
    looks at all images: none are cached, and folds that are not there yet are cut for this run alone. What it makes
    lies in a run of its own and is removed at the end.
    """
    setup = open_setup(choice)
    setup = replace(
        setup, choice=replace(choice, run=f"{run_name(setup)}-smoke"), competition=_small(setup.competition), trial=True
    )
    paths, identity = prepare_run(setup, force=True)
    try:
        files.remove(paths.fold(0).root)
        train_one(setup, paths, identity, 0, TrainOptions(device=device, limit=_BATCHES))
        test: Predictions | MaskSet
        if is_dense(setup.competition.task):
            rows = rows_of_test(setup, paths, identity, [0], device, limit=_BATCHES)
            test = masks_of(rows, untuned_rule(setup))
        else:
            predict_test(setup, paths, identity, [0], device, limit=_BATCHES)
            test = fold_mean(members_of(setup, paths, identity, 0, "test"), setup.competition.ensemble.mean)
        sample = read_sample(setup.sample)
        if choice.of_a_part:
            sample = part_of(sample, setup.train.target_names, setup.competition.task)
        images = [setup.format.image_of(name) for name in texts(sample, id_column(sample))]
        few = sample[np.isin(images, test.ids)].reset_index(drop=True)
        if not len(few):
            raise SubmissionError(
                f"no row of the sample is one of the {len(test):,} test rows that were predicted", "rows to check",
                "`kbench check` holds the sample's ids against the test images",
            )  # fmt: skip
        file = write_submission(
            paths.trial(setup.format.suffix), setup.format.build(test, few), sample=few, format=setup.format,
            gzip=setup.competition.submission.gzip,
        )  # fmt: skip
        return {"stages": list(setup.competition.stages), "rows": len(few), "file": file.name, "failed": []}
    finally:
        files.remove(paths.root)


def _small(competition: Competition) -> Competition:
    """Return the same training that caches no image, with stages for members: each keeps its end alone."""
    members = competition.ensemble.members
    stages = None if members is None else list(dict.fromkeys(stage_of(name, competition.stages) for name in members))
    return competition.model_copy(update={
        "input": competition.input.model_copy(update={"cache": "off"}),
        "ensemble": competition.ensemble.model_copy(update={"members": stages}),
    })  # fmt: skip
