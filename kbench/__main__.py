"""`python -m kbench`."""

from kbench.cli import script

script()
