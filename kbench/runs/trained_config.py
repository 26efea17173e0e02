"""The `config.yaml` of a run: how its weights were trained, as kbench wrote it, and nobody else."""

from __future__ import annotations

from typing import Any

from kbench import files
from kbench.config.competition import Competition
from kbench.config.reading import read_yaml, validate
from kbench.config.yaml12 import dump_yaml
from kbench.errors import ConfigError
from kbench.workspace import RunPaths


def write_config(paths: RunPaths, competition: Competition) -> str:
    """Write how a run is trained; return the checksum that `run.json` keeps of it."""
    files.write_text(paths.config, dump_yaml(competition.model_dump(mode="json")))
    return files.sha256(paths.config)


def read_config(paths: RunPaths, manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what `config.yaml` says; `run.json` of an earlier version has no checksum of it.

    Args:
        paths: of the run.
        manifest: what `run.json` says.

    Raises:
        ConfigError: the file was changed since it was written, or cannot be read.
    """
    content = read_yaml(paths.config)
    if was_edited(paths, manifest):
        lines = _differences(paths, content, manifest)
        raise ConfigError(
            f"'{paths.config}' was changed after kbench wrote it" + "".join(f"\n  {line}" for line in lines),
            "the file as it was: it says how the weights of the run were trained, which no edit changes; what is to be "
            "different stands in the competition's YAML",
            f"bring the file back, or remove it (`rm '{paths.config}'`) and type `kbench train`, which writes it anew "
            "where the competition's YAML still says how the run was trained",
        )
    return content


def was_edited(paths: RunPaths, manifest: dict[str, Any]) -> bool:
    """Return whether the file is not the one that `run.json` has the checksum of."""
    return manifest.get("config") not in (None, files.sha256(paths.config))


def _differences(paths: RunPaths, content: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """Return what differs of how a model is trained."""
    name = str(manifest["competition"])
    view = validate(content, file=str(paths.config), folder=paths.plugins, name=name, record=True).training_view()
    now, was = flat({**view, "stages": dict(view["stages"])}), manifest.get("view", {})
    return [f"{key}: {was[key]!r} -> {value!r}" for key, value in now.items() if key in was and was[key] != value]


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return nested mappings as one: the names on the way to a value, with dots between them -> the value."""
    if isinstance(value, dict):
        return {key: item for name, part in value.items() for key, item in flat(part, f"{path}.{name}").items()}
    return {path.lstrip("."): value}
