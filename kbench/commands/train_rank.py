"""`python -m kbench.commands.train_rank FOLDER RANK`: one of the processes that train a fold on several devices.

`kbench train --devices N` starts them (`kbench/runs/rank_processes.py`); nobody types this.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import traceback
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from kbench import console
from kbench.commands.train import busy, train_held
from kbench.errors import ConfigError, KbenchError
from kbench.models.device import choose_device
from kbench.runs import leases
from kbench.runs.experiment import open_experiment
from kbench.runs.fold_processes import end_with_parent
from kbench.runs.opening import run_of
from kbench.runs.rank_processes import RankTask, keep_error, meeting, read_task
from kbench.training.deadline import Stopped, time_limit
from kbench.training.ranks import joined


def train_rank(task: RankTask, rank: int, place: Path) -> None:
    """Train a fold as one of its ranks, to its end.

    Args:
        task: the fold.
        rank: which of them this is; all but the first are silent.
        place: the file by which they find one another.

    Raises:
        ConfigError: the YAML says something else than when the fold was started.
    """
    if rank:
        console.err.quiet = True
        warnings = logging.StreamHandler()  # what only this device meets, such as a lack of memory
        warnings.setFormatter(logging.Formatter(f"device {rank}: %(message)s"))
        logging.getLogger("kbench").addHandler(warnings)
    experiment = replace(open_experiment(task.choice), trial=task.trial)
    run = run_of(experiment)
    if run.trained_as != task.hashes:
        raise ConfigError(
            f"the YAML of '{run.name}' or its data changed while fold {task.fold} was being started",
            "the same settings for every device",
            "run the same command again",
        )
    with joined(rank, task.options.devices, choose_device(task.options.device), place) as ranks:
        lease = leases.holding(run.paths.fold(task.fold), todo=busy(task.fold)) if ranks.first else nullcontext()
        with lease:
            train_held(run, task.fold, task.options, ranks)
        ranks.wait()  # nobody leaves before all are done


def main(folder: Path, rank: int) -> int:
    """Train as a rank and return the exit code; an error is written down for the process that started the ranks."""
    end_with_parent()
    try:
        with time_limit(None) as ends:  # that of the command, whose signals are passed on
            task = read_task(folder)
            train_rank(replace(task, options=replace(task.options, deadline=ends)), rank, meeting(folder))
    except Stopped as stopped:
        keep_error(folder, rank, stopped)
        return stopped.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # whatever it is, the user is told in three parts
        if os.environ.get("KBENCH_DEBUG"):
            traceback.print_exc()
        known = error if isinstance(error, KbenchError) else KbenchError(
            f"a defect of kbench: {type(error).__name__}: {error}",
            "no such error; the fold goes on from its last resume point",
            "`KBENCH_DEBUG=1` before the same command shows where; please report it",
        )  # fmt: skip
        keep_error(folder, rank, known)
        return known.exit_code
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]))
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # what another device left half said is not waited for
