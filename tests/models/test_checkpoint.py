from __future__ import annotations

import contextlib
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import SHARED
from safetensors.torch import load_file, save_file
from timm.models import adapt_input_conv
from torch import nn

from kbench import files
from kbench.errors import CheckpointError, DataError
from kbench.models.checkpoint import (  # fmt: skip
    load_pretrained,
    load_strict,
    read_checkpoint,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from kbench.models.classifier import timm_classifier

MOBILENET = SHARED / "weights/mobilenetv2_100.safetensors"
INFO = {"fold": 0, "stage": "head", "tag": "best", "training": "t"}


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


def body(channels: int = 3) -> nn.Module:
    return timm.create_model("resnet10t", num_classes=0, in_chans=channels)


def three_parts(error: CheckpointError) -> bool:
    return bool(error.what and error.expected and error.todo)


def test_a_snapshot_is_read_back_to_the_bit(tmp_path: Path) -> None:
    model = body()
    saved = save_checkpoint(tmp_path / "a.json", model.state_dict(), INFO)
    found = read_checkpoint(tmp_path / "a.json")
    assert found == saved
    assert (found.member, found.info["fold"]) == ("head-best", 0)
    assert found.checksum == files.sha256(found.tensors)
    tensors = read_tensors(found.tensors)
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("damage", ["no json", "no tensors", "short", "flipped"])
def test_a_damaged_snapshot_does_not_exist(tmp_path: Path, damage: str) -> None:
    saved = save_checkpoint(tmp_path / "a.json", {"w": torch.arange(1000.0)}, INFO)
    content = bytearray(saved.tensors.read_bytes())
    if damage == "no json":
        (tmp_path / "a.json").unlink()
    elif damage == "no tensors":
        saved.tensors.unlink()
    elif damage == "short":
        saved.tensors.write_bytes(content[:-4])
    else:
        content[-10] ^= 1
        saved.tensors.write_bytes(content)
    assert read_checkpoint(tmp_path / "a.json") is None


def test_tensors_that_share_memory_or_lie_channels_last_are_written_whole(tmp_path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    last = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    write_tensors(tmp_path / "a.safetensors", {"a": shared, "b": shared[1:], "c": shared.T, "d": last})
    found = read_tensors(tmp_path / "a.safetensors")
    for name, value in {"a": shared, "b": shared[1:], "c": shared.T, "d": last}.items():
        assert torch.equal(found[name], value)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_full_disk_is_an_error_and_the_older_weights_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"w": torch.ones(10)})
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # a forked process has none of the others
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        try:
            write_tensors(path, {"w": torch.zeros(100_000)})
        except DataError as error:
            os._exit(7 if error.what and error.expected and error.todo else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert torch.equal(read_tensors(path)["w"], torch.ones(10))
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


# -- foreign files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
def test_a_pickle_that_runs_code_is_refused_and_its_code_is_not_run(tmp_path: Path, suffix: str) -> None:
    witness, path = tmp_path / "witness", tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps({"state_dict": Evil(witness)}))
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    assert three_parts(caught.value)
    torch.save({"w": Evil(witness)}, path)
    with pytest.raises(CheckpointError):
        read_tensors(path)
    assert not witness.exists()


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3},
                                  lambda state: {"model": state}])  # fmt: skip
def test_a_torch_file_of_tensors_is_read(tmp_path: Path, wrap) -> None:
    torch.save(wrap({"w": torch.arange(3.0)}), tmp_path / "a.pt")
    assert read_tensors(tmp_path / "a.pt")["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {}, torch.ones(3), {"w": "text"}])
def test_a_torch_file_without_a_state_dict_is_refused(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="without a state dict"):
        read_tensors(tmp_path / "a.pt")


@pytest.mark.parametrize("keep", [0, 4, 20, 200, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    for name, save in (("a.safetensors", save_file), ("a.pt", torch.save)):
        save({"w": torch.arange(1000.0)}, tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
        with pytest.raises(CheckpointError) as caught:
            read_tensors(tmp_path / name)
        assert three_parts(caught.value)


@settings(max_examples=60)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x80\x04", b"PK\x03\x04", b"\x08\0\0\0\0\0\0\0{}"]))
def test_rubbish_is_refused_with_a_message(
    tmp_path_factory: pytest.TempPathFactory, rubbish: bytes, head: bytes
) -> None:
    path = tmp_path_factory.mktemp("rubbish") / "a.pt"
    path.write_bytes(head + rubbish)
    with contextlib.suppress(CheckpointError):
        assert read_tensors(path) == {}  # a safetensors file without tensors is one


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(CheckpointError, match="no weights file"):
            read_tensors(path)


def test_weights_of_another_model_are_refused_with_names_and_shapes(tmp_path: Path) -> None:
    for wrong in (nn.Linear(3, 2), nn.Linear(2, 4), nn.Sequential(nn.Linear(2, 2))):
        with pytest.raises(CheckpointError, match="snapshot 'x' does not fit"):
            load_strict(nn.Linear(2, 2), wrong.state_dict(), what="snapshot 'x'")


# -- pretrained weights --------------------------------------------------------------------------------------------


def test_a_backbone_takes_its_weights_and_what_is_beyond_it_is_named() -> None:
    whole = timm.create_model("resnet10t", num_classes=10)
    mine = body()
    assert load_pretrained(mine, whole.state_dict(), file="w") == ["fc.bias", "fc.weight"]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in mine.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "body.", "module.body."])
def test_prefixes_of_wrappers_are_left_out(prefix: str) -> None:
    other, mine = body(), body()
    load_pretrained(mine, {f"{prefix}{name}": value for name, value in other.state_dict().items()}, file="w")
    assert torch.equal(next(mine.parameters()), next(other.parameters()))


@pytest.mark.parametrize("channels", [1, 5, 15])
def test_a_stem_for_three_channels_is_adapted(channels: int) -> None:
    other, mine = body(), body(channels)
    load_pretrained(mine, other.state_dict(), file="w")
    expected = adapt_input_conv(channels, other.conv1[0].weight)
    torch.testing.assert_close(mine.conv1[0].weight, expected)
    if channels == 15:  # the same picture in every triple of channels gives what it gave before
        image = torch.randn(1, 3, 16, 16)
        torch.testing.assert_close(mine.conv1[0](image.repeat(1, 5, 1, 1)), other.conv1[0](image), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("given_channels", "own"), [(4, 3), (1, 3), (4, 1), (4, 5), (6, 1)])
def test_a_stem_for_another_number_of_channels_is_refused(given_channels: int, own: int) -> None:
    with pytest.raises(CheckpointError, match="another shape"):
        load_pretrained(body(own), body(given_channels).state_dict(), file="w")


def test_missing_and_misshaped_tensors_are_counted_and_named() -> None:
    state = body().state_dict()
    del state["layer1.0.conv1.weight"]
    state["layer2.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(body(), state, file="weights.safetensors")
    assert "layer1.0.conv1.weight" in caught.value.what
    assert "layer2.0.conv1.weight" in caught.value.what
    assert "weights.safetensors" in caught.value.what


@pytest.mark.skipif(not MOBILENET.is_file(), reason="the ImageNet weights of MobileNetV2 are not on this machine")
def test_imagenet_weights_from_a_file_fit_their_backbone() -> None:
    model = timm_classifier(2, 3, _backbone="mobilenetv2_100", _size=(64, 64))
    left = load_pretrained(model.body, read_tensors(MOBILENET), file=str(MOBILENET))
    assert left == ["classifier.bias", "classifier.weight"]
    stored = load_file(MOBILENET)
    assert all(torch.equal(value, stored[name]) for name, value in model.body.state_dict().items() if name in stored)
    features = model.eval().encode(torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 64, 64))).float())
    assert torch.isfinite(features).all()
    assert features.std() > 0.01
