"""`kbench new`: a draft of a competition's YAML, from its files and what its service says of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kbench import console, files, registry
from kbench.drafting.draft import draft, limits_in
from kbench.errors import ConfigError
from kbench.sources.kaggle.competition import slug_of
from kbench.workspace import Workspace, find_workspace


def new(name: str, *, data: str | None, solution: str | None, force: bool) -> dict[str, Any]:
    """Bring a competition's files here and draft its YAML from them.

    Args:
        name: of the new competition; without `data` Kaggle's slug, or an address of the competition.
        data: a folder or zip the user already has.
        solution: a CSV of true targets, for grading on this machine.
        force: replace a YAML of this name.

    Returns:
        The file, and what the draft could not tell.

    Raises:
        ConfigError: there is a YAML of this name, or the name is no competition's.
        SourceError: the files cannot be had.
    """
    workspace = find_workspace()
    if data is None and solution is not None:
        raise ConfigError(
            f"--solution '{solution}' without --data", "a solution of files you have; Kaggle grades its own",
            "add `--data FOLDER`, or leave out --solution",
        )  # fmt: skip
    name = slug_of(name) if data is None else name
    path = workspace.competition(name)
    if path.exists() and not force:
        raise ConfigError(
            f"'{path}' exists", "a new name",
            f"`kbench download {name}` works with it; choose another name, or `--force` to replace it by a draft",
        )  # fmt: skip
    source: dict[str, Any] = {"name": "kaggle", "slug": name}
    if data is not None:
        source = {"name": "local", "path": _written(data)}
        source |= {"solution": _written(solution)} if solution else {}
    said = _bring(workspace, name, source)
    text = draft(workspace.data(name), name=name, source=source, **said)
    files.write_text(path, text)
    workspace.choose(name)
    todo = [line.strip() for line in text.splitlines() if "TODO" in line and not line.startswith("# Drafted")]
    return {"file": str(path), "todo": todo}


def _written(path: str) -> str:
    """Return a path as the YAML says it: whole, without `..`."""
    return os.path.normpath(Path(path).expanduser().absolute())


def _bring(workspace: Workspace, name: str, source: dict[str, Any]) -> dict[str, Any]:
    """Fetch a competition's files; return what its service says of it."""
    params = {key: value for key, value in source.items() if key != "name"}
    host = registry.build("source", source["name"], params, _root=workspace.root)
    said = {}
    host.solution(workspace.data(name))  # one that does not exist is said now, not when the first file is graded
    if source["name"] == "kaggle":
        about = host.about()
        said = {"title": about.title, "metric": about.metric, "code_only": about.code_only}
        if about.code_only:
            said["hours"] = limits_in(host.pages())
            console.note(
                f"'{name}' is a code competition: a notebook is submitted, no file; after training `kbench export`, "
                "`kbench push` and `kbench submit --kernel`"
            )
    with console.bar(f"fetching {name}") as advance:
        host.fetch(workspace.data(name), files=(), force=False, progress=lambda what, done, total: advance(done, total))
    return said
