"""`kbench new`: a draft of a competition's YAML, from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kbench import console, files, registry
from kbench.data.draft import draft
from kbench.errors import ConfigError
from kbench.workspace import find_workspace


def new(name: str, *, data: str | None, solution: str | None, force: bool) -> dict[str, Any]:
    """Bring a competition's files here and draft its YAML from them.

    Args:
        name: of the new competition.
        data: a folder or zip the user already has; without it the name is Kaggle's slug.
        solution: a CSV of true targets, for grading on this machine.
        force: replace a YAML of this name.

    Returns:
        The file, and what the draft could not tell.

    Raises:
        ConfigError: there is a YAML of this name.
        SourceError: the files cannot be had.
    """
    workspace = find_workspace()
    path = workspace.competition(name)
    if path.exists() and not force:
        raise ConfigError(
            f"'{path}' exists", "a new name", "choose another name, or `--force` to replace it by a draft"
        )
    source: dict[str, Any] = {"name": "kaggle", "slug": name}
    if data is not None:
        source = {"name": "local", "path": str(Path(data).expanduser().absolute())}
        source |= {"solution": str(Path(solution).expanduser().absolute())} if solution else {}
    params = {key: value for key, value in source.items() if key != "name"}
    made = registry.build("source", source["name"], params, _root=workspace.root)
    with console.bar(f"fetching {name}") as advance:
        made.fetch(workspace.data(name), files=(), force=False, progress=lambda what, done, total: advance(done, total))
    text = draft(workspace.data(name), name=name, source=source)
    files.write_text(path, text)
    workspace.choose(name)
    todo = [line.strip() for line in text.splitlines() if "TODO" in line and not line.startswith("# Drafted")]
    return {"file": str(path), "todo": todo}
