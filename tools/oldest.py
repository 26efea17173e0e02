"""Run the fast tests on the oldest versions pyproject.toml admits.

Makes `.venv-oldest`, installs the lower bound of every requirement (`>=1.2` becomes `==1.2.*`, the newest patch
of the oldest release), and runs pytest without the slow tests.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV = ROOT / ".venv-oldest"
BUILD = ["hatchling", "editables"]


def oldest(requirement: str) -> str:
    """Return a requirement pinned to its lower bound."""
    name, bound = re.match(r"([A-Za-z0-9._-]+)>=([0-9.]+)", requirement).groups()  # type: ignore[union-attr]
    parts = bound.split(".")
    return f"{name}=={bound}.*" if len(parts) < 3 else f"{name}=={bound}"


def main() -> int:
    """Install and test; return pytest's exit code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [oldest(text) for text in project["dependencies"]]
    extras = project["optional-dependencies"]
    own = f"{project['name']}["  # the project's other extras are asked for by its own name
    wanted += [oldest(text) for name, texts in extras.items() if name != "dev" for text in texts]
    wanted += [text for text in extras["dev"] if not text.startswith(own)]
    python = VENV / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *BUILD, *wanted], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], check=True)
    return subprocess.run(
        [str(python), "-m", "pytest", "-m", "not slow", *sys.argv[1:]], cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
