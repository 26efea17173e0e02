"""kbench: the workbench for image competitions.

The command line is `kbench`; in a notebook, `kbench.open_run(...)` gives the same objects (see `kbench/api.py`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kbench.api import Run, open_run

for _side in ("WIDTH", "HEIGHT", "PIXELS"):  # OpenCV reads them when it is loaded; the limit is `input.max_pixels`
    os.environ.setdefault(f"OPENCV_IO_MAX_IMAGE_{_side}", str(1 << 40))

__version__ = "0.1.0"
__all__ = ["Run", "__version__", "open_run"]


def __getattr__(name: str) -> Any:
    """Load the Python API when it is first asked for: `import kbench` alone brings in neither torch nor numpy."""
    if name in ("Run", "open_run"):
        from kbench import api

        return getattr(api, name)
    raise AttributeError(f"module 'kbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), "Run", "open_run"])
