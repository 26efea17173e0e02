"""Networks of a bundle for another engine than torch: written once, tried against torch, and run in its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from kbench.models.checkpoint import Checkpoint
from kbench.models.engines import export_onnx, load_engine
from kbench.runs.blend import Blend
from kbench.runs.bundle_check import Comparison
from kbench.runs.members import load_model
from kbench.workspace import BundlePaths


def write_engines(paths: BundlePaths, opened: Blend, scratch: Path) -> None:
    """Write every snapshot of a bundle as ONNX.

    Args:
        paths: of the bundle.
        opened: the bundle's ensemble, run by torch.
        scratch: a folder for what is needed meanwhile.
    """
    for share in opened.shares:
        channels = share.run.competition.input.channels
        for place in share.places:
            for snapshot in share.run.checkpoints(place, subset=share.subset):
                model = load_model(snapshot)
                height, width = snapshot.info["size"]
                export_onnx(model, torch.zeros(2, channels, height, width), paths.engine(snapshot.checksum),
                            name=f"{share.run.name}, fold {place}, {snapshot.member}")  # fmt: skip


def engine_of(paths: BundlePaths, engine: str) -> EngineLoader | None:
    """Return what loads a bundle's snapshots for its engine; None for torch."""
    return None if engine == "torch" else EngineLoader(paths, engine)


def slower(comparison: Comparison, origins: Mapping[str, str]) -> list[str]:
    """Return the checksums, in the bundle, of snapshots that torch runs faster, those of one body together.

    Args:
        comparison: of a bundle whose engine runs all of them.
        origins: checksum in the run -> checksum in the bundle.
    """
    better = []
    for family, seconds in comparison.torch_seconds.items():
        own = [origins[name] for name in family]
        if seconds <= sum(comparison.seconds[name] for name in own):
            better += own
    return better


class EngineLoader:
    """Loads the networks of snapshots as an engine runs them; those without a file of it are torch's.

    Args:
        paths: of the bundle.
        engine: `openvino` or `onnx`.
    """

    def __init__(self, paths: BundlePaths, engine: str) -> None:
        self._paths, self._engine = paths, engine

    def runs(self, snapshot: Checkpoint) -> bool:
        """Return whether the engine runs a snapshot."""
        return self._paths.engine(snapshot.checksum).is_file()

    def __call__(self, snapshot: Checkpoint) -> torch.nn.Module:
        """Return it: [B, C, H, W] normalised images to logits [B, K, ...]."""
        return load_engine(self._engine, self._paths.engine(snapshot.checksum), snapshot.info["precision"])
