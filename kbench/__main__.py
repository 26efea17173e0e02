"""`python -m kbench`."""

from __future__ import annotations

from kbench.cli.app import script

script()
