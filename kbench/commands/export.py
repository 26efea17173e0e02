"""`kbench export`: an ensemble becomes a bundle that predicts elsewhere, held against the runs it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kbench import console, files
from kbench.commands.ensemble import check_weights
from kbench.errors import ConfigError, counted, nearest
from kbench.runs.blend import EnsembleOptions, blend
from kbench.runs.bundle import ENGINES, write_bundle
from kbench.runs.bundle_check import compare, require_alike
from kbench.runs.bundle_engines import slower, write_engines
from kbench.runs.bundle_notebook import notebook_text
from kbench.runs.bundle_opening import open_bundle
from kbench.runs.bundle_wheel import write_wheel
from kbench.runs.opening import open_run
from kbench.workspace import BundlePaths, Choice


@dataclass(frozen=True)
class ExportOptions:
    """How a bundle is made.

    Attributes:
        out: its folder; a bundle that lies there is replaced.
        hours: time limit of the notebook that it runs in.
        half: store weights as float16.
        engine: what runs the networks: `torch`, `openvino` or `onnx`.
        wheels: folder of wheels that the notebook's image lacks; they go into the bundle beside kbench's own.
    """

    out: Path = Path("bundle")
    hours: float = 9.0
    half: bool = False
    engine: str = "torch"
    wheels: Path | None = None


def export(choice: Choice, runs: Sequence[str], options: EnsembleOptions, how: ExportOptions) -> dict[str, Any]:
    """Write a bundle, see that it says what its runs say, and return what it is.

    Args:
        choice: competition and experiment.
        runs: names of runs; the current experiment's alone when empty.
        options: how they are blended, as of `kbench ensemble`.
        how: what the bundle is like.

    Returns:
        `bundle`, `members`, `bytes`, `check` (scores of the runs and of the bundle on the same rows) and
        `seconds_per_image` of all models together.

    Raises:
        ConfigError: an option is wrong, or the bundle scores otherwise than its runs.
    """
    _check(how)
    choices = [replace(choice, run=run) for run in runs] or [choice]
    check_weights(options.weights, len(choices))
    opened = [open_run(one, other_folds=options.mixed_folds) for one in choices]
    combined = blend(opened, options)
    _make_room(how.out.absolute())
    with files.replacing_folder(how.out.absolute()) as folder, files.scratch_folder() as scratch:
        paths = BundlePaths(folder)
        said = {**write_bundle(combined, folder, half=how.half), "hours": how.hours, "engine": how.engine}
        files.write_json(paths.manifest, said)
        if how.engine != "torch":
            write_engines(paths, open_bundle(folder, scratch).combined, scratch)
        _add_wheels(paths, how.wheels)
        with console.bar("holding the bundle against its runs"):
            comparison = compare(combined, open_bundle(folder, scratch).combined, scratch, device=options.device)
        if how.engine != "torch" and comparison is not None:
            _keep_faster(paths, slower(comparison, {one["origin"]: one["sha256"] for one in said["members"]}))
        seconds = {} if comparison is None else comparison.seconds
        members = [
            {**one, "seconds": seconds.get(one["sha256"]),
             "engine": how.engine if paths.engine(one["sha256"]).is_file() else "torch"}
            for one in said["members"]
        ]  # fmt: skip
        check = None if comparison is None else comparison.record(how.engine if how.engine != "torch" else "bundle")
        files.write_text(paths.notebook, notebook_text(said["slug"] or said["competition"], said["file"]))
        said |= {"members": members, "check": check, "files": _listed(folder)}
        files.write_json(paths.manifest, said)
        if comparison is not None:
            require_alike(comparison, how.engine, half=how.half)
    size = sum(one["bytes"] for one in said["files"])
    return {
        "bundle": str(how.out), "members": len(members), "bytes": size, "check": check,
        "seconds_per_image": sum(seconds.values()) or None,
    }  # fmt: skip


def _check(how: ExportOptions) -> None:
    if how.engine not in ENGINES:
        raise ConfigError(f"there is no engine '{how.engine}'", ", ".join(ENGINES), nearest(how.engine, ENGINES))
    if not how.hours > 0:
        raise ConfigError(f"--hours {how.hours:g}", "hours above 0", "say how long the notebook may run: --hours 9")
    if how.wheels is not None and not sorted(how.wheels.glob("*.whl")):
        raise ConfigError(
            f"'{how.wheels}' has no wheel in it", "a folder of .whl files",
            f"`pip download --no-deps --only-binary=:all: -d {how.wheels} PACKAGE==VERSION` fetches them",
        )  # fmt: skip


def _make_room(out: Path) -> None:
    """Remove a bundle of before; leave anything else where it is.

    Raises:
        ConfigError: something else lies there.
    """
    if out.exists() and not BundlePaths(out).manifest.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"'{out}' exists and is no bundle", "a new folder, or a bundle to replace",
                          "name another one with `--out FOLDER`")  # fmt: skip
    files.remove(out)


def _keep_faster(paths: BundlePaths, models: Sequence[str]) -> None:
    """Leave to torch what it runs faster."""
    for checksum in models:
        files.remove(paths.engine(checksum))
    if models:
        console.note(f"{counted(len(models), 'model')} of the bundle run faster in torch, and stay there")


def _add_wheels(paths: BundlePaths, wheels: Path | None) -> None:
    write_wheel(paths.wheels)
    for wheel in [] if wheels is None else sorted(wheels.glob("*.whl")):
        files.copy(wheel, paths.wheels / wheel.name)


def _listed(folder: Path) -> list[dict[str, Any]]:
    """Return every file but the bundle's own record: path, a flat name for services without folders, size, checksum."""
    return [
        {"path": path.relative_to(folder).as_posix(), "name": flat_name(path.relative_to(folder)),
         "bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != BundlePaths(folder).manifest
    ]  # fmt: skip


def flat_name(path: Path) -> str:
    """Return the name of a file of a bundle where there are no folders; wheels keep theirs, which pip reads."""
    return path.name if path.suffix == ".whl" else "--".join(path.parts)
