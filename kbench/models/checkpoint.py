"""Weights on disk: the only module that loads any.

Snapshots are `safetensors` files with a JSON beside them that says what they are and is written last. One whose body
was frozen holds its head alone and names its body, which is kept once for all of them. Foreign
weights are read from `safetensors`, or from a torch file with `weights_only=True`: a pickle that would run code
is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from kbench import files, records
from kbench.errors import CheckpointError, first_names
from kbench.workspace import FoldPaths

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A snapshot that exists and is whole; readable without loading its tensors.

    Attributes:
        path: the JSON.
        info: fold, stage, cycle, scores, sizes, normalisation, hashes.
    """

    path: Path
    info: dict[str, Any]

    @property
    def tensors(self) -> Path:
        """The safetensors file."""
        return self.path.with_name(str(self.info["files"]["weights"]["file"]))

    @property
    def checksum(self) -> str:
        """SHA-256 of the tensors' file."""
        return str(self.info["files"]["weights"]["sha256"])

    @property
    def body(self) -> str:
        """Digest of the body it shares with other snapshots; empty for one that holds the whole model."""
        return str(self.info.get("body") or "")

    @property
    def member(self) -> str:
        """Name of the snapshot in an ensemble: `stage-cycle`."""
        return f"{self.info['stage']}-{self.info['tag']}"


def read_checkpoint(path: Path, *, verify: Literal["size", "time", "content"] = "content") -> Checkpoint | None:
    """Return a snapshot, or None when it does not exist or is damaged; `verify` as in `records.read_seal`."""
    info = records.read_seal(path, verify=verify)
    return None if info is None or "weights" not in info["files"] else Checkpoint(path, info)


def save_checkpoint(path: Path, tensors: Mapping[str, torch.Tensor], info: dict[str, Any]) -> Checkpoint:
    """Write tensors, then the JSON that makes them exist.

    Args:
        path: the JSON.
        tensors: by name, on any device.
        info: what the JSON says.
    """
    weights = path.with_suffix(".safetensors")
    write_tensors(weights, tensors)
    records.seal(path, info, parts={"weights": weights})
    return Checkpoint(path, files.read_json(path))


def keep_body(paths: FoldPaths, digest: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a frozen body where the run's snapshots look for it, unless it is there."""
    path = paths.body(digest)
    if read_checkpoint(path, verify="size") is None:
        save_checkpoint(path, tensors, {"body": digest})


def read_body(paths: FoldPaths, digest: str) -> Tensors:
    """Return the tensors of a body that snapshots of the run name.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = paths.body(digest)
    checkpoint = read_checkpoint(path)
    if checkpoint is None:
        raise CheckpointError(
            f"the frozen body '{path}' is missing or damaged",
            "the weights that were kept beside the folds",
            "bring the file back, or train the run again with `--force`",
        )
    return read_tensors(checkpoint.tensors)


def snapshot_tensors(checkpoint: Checkpoint) -> Tensors:
    """Return the whole model's tensors of a snapshot, its body included.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if read_checkpoint(checkpoint.path) is None:
        raise CheckpointError(
            f"the weights '{checkpoint.tensors}' are missing or damaged", "the file that was written with its JSON",
            "bring it back, or train its fold again with `--force`",
        )  # fmt: skip
    tensors = read_tensors(checkpoint.tensors)
    return {**read_body(FoldPaths(checkpoint.path.parent), checkpoint.body), **tensors} if checkpoint.body else tensors


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as safetensors, atomically; shared storage is copied.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with files.replacing(path) as temporary:
        try:
            save_file(plain, temporary)
        except SafetensorError as error:  # its way of saying that the disk is full
            raise OSError(str(error)) from error


def read_tensors(path: Path) -> Tensors:
    """Read a state dict from safetensors or, by its content, a torch file.

    Raises:
        CheckpointError: the file is missing, damaged, or a pickle that could run code.
    """
    if not path.is_file():
        raise CheckpointError(
            f"there is no weights file '{path}'",
            "a .safetensors or .pt file",
            "correct model.weights; it is relative to the workspace",
        )
    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, OSError) as error:
        first = error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file can fail in any way
        raise CheckpointError(
            f"'{path}' holds no weights that can be read safely: {str(first).splitlines()[0]}; "
            f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}",
            "a safetensors file, or a torch file of tensors alone (it is read with weights_only=True)",
            "convert it where it came from: `safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')`",
        ) from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = content if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CheckpointError(
            f"'{path}' is a torch file without a state dict",
            "a mapping of names to tensors",
            "save `model.state_dict()`",
        )
    return {str(name): value for name, value in tensors.items()}


def load_strict(model: nn.Module, tensors: Mapping[str, torch.Tensor], *, what: str) -> None:
    """Load a snapshot's tensors into the model they came from.

    Raises:
        CheckpointError: names or shapes differ.
    """
    try:
        model.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{what} does not fit the model: {' '.join(str(error).split())[:400]}",
            "weights of this model",
            "train the run again with `--force`, or name another run",
        ) from error


def load_pretrained(body: nn.Module, tensors: Mapping[str, torch.Tensor], *, file: str) -> list[str]:
    """Load foreign weights into a backbone; return the names that were left out.

    What a file has beyond the backbone (its classifier) is left out and named; what the backbone needs and the
    file lacks is an error. A stem for 3 channels is adapted to another number by timm's rule. Names that timm joins
    differently where it makes a feature extractor (`stages.0.x` becomes `stages_0.x`) are the same.

    Raises:
        CheckpointError: names or shapes do not fit.
    """
    own = body.state_dict()
    weights = {name.removeprefix("module.").removeprefix("body."): tensor for name, tensor in tensors.items()}
    weights = _as_named(weights, own)
    weights = _adapt_stem(body, weights, own)
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    shapes = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    if missing or shapes:
        raise CheckpointError(
            f"'{file}' does not fit the backbone: "
            + "; ".join(
                f"{len(names)} tensors {problem}: {first_names(names, 3)}"
                for names, problem in ((missing, "are missing"), (shapes, "have another shape"))
                if names
            ),
            "weights of the same timm model, created with the same options",
            "correct model.backbone or model.options (such as `create: {pad_type: same}`)",
        )
    body.load_state_dict({name: weights.get(name, own[name]) for name in own})
    return sorted(set(weights) - set(own))


def joined(name: str) -> str:
    """Return a name as timm's feature extractors and classifiers have it in common."""
    return name.removeprefix("model.").replace(".", "_")


def _as_named(tensors: Tensors, own: Tensors) -> Tensors:
    names = {joined(name): name for name in own}
    return {name if name in own else names.get(joined(name), name): tensor for name, tensor in tensors.items()}


def _adapt_stem(body: nn.Module, tensors: Tensors, own: Tensors) -> Tensors:
    from timm.models import adapt_input_conv

    config = getattr(body, "pretrained_cfg", {})
    stems = config.get("first_conv") or ()
    names = {joined(name): name for name in own}
    for stem in (stems,) if isinstance(stems, str) else stems:
        name = names.get(joined(f"{stem}.weight"), "")
        if name in tensors and name in own and tensors[name].shape[1:2] == (3,) and own[name].shape[1] != 3:
            tensors = {**tensors, name: adapt_input_conv(own[name].shape[1], tensors[name])}
    return tensors
