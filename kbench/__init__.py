"""kbench: the workbench for image competitions."""

from __future__ import annotations

__version__ = "0.1.0"
