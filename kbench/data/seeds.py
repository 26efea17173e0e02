"""Random numbers that depend on what they are for, never on who draws them.

A generator is derived from integers such as (seed, fold, stage, epoch, sample). A run that is killed and
resumed, or loads its images in more workers, draws the same numbers. To draw for a new purpose, add a constant.
"""

from __future__ import annotations

import numpy as np

AUGMENT, ORDER, STEP, MIX, VIEW, MODEL, FIND = range(7)  # what a number is for; part of its key


def generator(*key: int) -> np.random.Generator:
    """Return the generator of a key of non-negative integers, the same on every machine."""
    return np.random.default_rng(np.random.SeedSequence(key))


def number(*key: int) -> int:
    """Return a 63-bit number of a key, for seeding torch."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
