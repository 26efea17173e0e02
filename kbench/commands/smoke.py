"""`kbench train --smoke`: two batches of every stage, then predict, ensemble and the submission check."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from kbench import files
from kbench.commands.train import train_one
from kbench.config.rules import stage_of
from kbench.data.table.csv_files import texts
from kbench.errors import SubmissionError
from kbench.runs.experiment import Experiment, open_experiment
from kbench.runs.fold_job import TrainOptions
from kbench.runs.opening import prepare_run, run_name
from kbench.runs.rank_processes import check_devices
from kbench.runs.results import Rows
from kbench.submission.check import part_of, write_submission
from kbench.submission.formats.base import id_column
from kbench.workspace import Choice

_BATCHES = 2


def smoke(choice: Choice, *, device: str, devices: int = 1) -> dict[str, Any]:
    """Run every step of the job on two batches; raise what would fail after hours.

    The sample submission is cut to the rows that were predicted; everything else is the real path, but that nothing
    looks at all images: none are cached, and folds that are not there yet are cut for this run alone. What it makes
    lies in a run of its own and is removed at the end.
    """
    experiment = _small(choice)
    options = TrainOptions(device=device, limit=_BATCHES, devices=devices)
    check_devices(experiment.competition, options)
    run = prepare_run(experiment, force=True)
    try:
        files.remove(run.paths.fold(0).root)
        train_one(run, 0, options)
        test = run.predict_rows(Rows(experiment.test, device=device, limit=_BATCHES), folds=[0])
        fit = run.results.undecided(experiment)
        sample = experiment.read_sample()
        if choice.of_a_part:
            sample = part_of(sample, experiment.train.target_names, experiment.competition.task)
        images = [experiment.format.image_of(name) for name in texts(sample, id_column(sample))]
        few = sample[np.isin(images, test.ids)].reset_index(drop=True)
        if not len(few):
            raise SubmissionError(
                f"no row of the sample is one of the {len(test.ids):,} test rows that were predicted", "rows to check",
                "`kbench check` holds the sample's ids against the test images",
            )  # fmt: skip
        file = write_submission(
            run.paths.trial(experiment.format.suffix),
            experiment.format.build(run.results.sent(experiment, test, fit), few), sample=few, format=experiment.format,
            gzip=experiment.competition.submission.gzip,
        )  # fmt: skip
        return {"stages": list(experiment.competition.stages), "rows": len(few), "file": file.name, "failed": []}
    finally:
        files.remove(run.paths.root)


def _small(choice: Choice) -> Experiment:
    """Return the experiment that caches no image, with stages for members: each keeps its end alone."""
    experiment = open_experiment(choice)
    competition = experiment.competition
    wanted, more = competition.ensemble.members, ["input.cache=off"]
    if wanted is not None:
        stages = list(dict.fromkeys(stage_of(name, competition.stages) for name in wanted))
        more.append(f"ensemble.members={files.compact_json(stages)}")
    small = replace(choice, run=f"{run_name(experiment)}-smoke", assignments=(*choice.assignments, *more))
    return replace(open_experiment(small), trial=True)
