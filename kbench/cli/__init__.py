"""The command line: one file for each part of the job; `app.py` holds what they share, `script` is the entry point."""

from __future__ import annotations

from kbench.cli import data, notebooks, predicting, submitting, training, workspace
from kbench.cli.app import app, main, script

__all__ = ["app", "data", "main", "notebooks", "predicting", "script", "submitting", "training", "workspace"]
