"""Networks run by another engine than torch: ONNX Runtime and OpenVINO, behind the same call.

A network is written as ONNX once and tried against torch there and then; what answers otherwise is no file. An engine
is an `nn.Module` without parameters that takes and gives what the network does. To add one, write a class and name it
in `ENGINES`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kbench import files
from kbench.errors import ConfigError, PredictionError
from kbench.machine import cores
from kbench.models.batchnorm_folding import folded

_TOLERANCE = 1e-3  # of the largest output, as of folded batch norms


def export_onnx(model: nn.Module, example: torch.Tensor, path: Path, *, name: str) -> Path:
    """Write a network as ONNX, batch norms folded, and hold its answers against torch's; return the file.

    Args:
        model: on the CPU, in eval mode.
        example: [2, C, H, W] normalised images; any number and, where the network can, any size may come later.
        path: the file.
        name: for messages.

    Raises:
        ConfigError: the ONNX packages are missing.
        PredictionError: the network cannot be written, or answers otherwise.
    """
    _need("onnx"), _need("onnxscript")
    images = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    fast = folded(model, images)
    with torch.inference_mode():
        expected = fast(images).float().numpy()
    try:
        _write(fast, images, path, {0: "n", 2: "h", 3: "w"})
    except Exception:  # some operations need to know the size of the image
        try:
            _write(fast, images, path, {0: "n"})
        except Exception as error:  # the exporter refuses in many ways
            raise PredictionError(
                f"'{name}' cannot be written as ONNX: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
                "a network of operations that ONNX has", "leave out `--engine`",
            ) from error  # fmt: skip
    engine = load_engine("onnx" if _there("onnxruntime") else "openvino", path, "fp32")
    with torch.inference_mode():
        answer = engine(images).numpy()
    largest = float(np.abs(answer - expected).max())
    if largest > _TOLERANCE * (1 + float(np.abs(expected).max())):
        raise PredictionError(
            f"'{name}' answers otherwise as ONNX: by up to {largest:.3g}", f"answers within {_TOLERANCE:g} of torch's",
            "leave out `--engine`",
        )  # fmt: skip
    return path


def _write(model: nn.Module, images: torch.Tensor, path: Path, free: dict[int, str]) -> None:
    """Write a network that takes images of which some dimensions may differ."""
    with files.replacing(path) as temporary, _silent():
        torch.onnx.export(
            model, (images,), str(temporary), input_names=["images"], output_names=["logits"], dynamo=False,
            opset_version=17, dynamic_axes={"images": free, "logits": {0: "n"}},
        )  # fmt: skip


def load_engine(engine: str, path: Path, precision: str) -> nn.Module:
    """Return a network that an engine runs on the CPU.

    Args:
        engine: one of `ENGINES`.
        path: its ONNX file.
        precision: it was judged in; `bf16` is used where the engine and the processor have it.

    Raises:
        ConfigError: the engine is not installed.
        PredictionError: the file is missing or cannot be read.
    """
    if not path.is_file():
        raise PredictionError(f"there is no network '{path}'", "a bundle as it was written", "`kbench export` it again")
    return ENGINES[engine](path, precision).eval()


class OnnxRuntime(nn.Module):
    """A network run by ONNX Runtime."""

    def __init__(self, path: Path, precision: str) -> None:
        super().__init__()
        runtime = _need("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = cores(), 3
        self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K, ...] float32 of [B, C, H, W] images."""
        with _told_of(images):
            (values,) = self._session.run(None, {"images": images.float().contiguous().cpu().numpy()})
        return torch.from_numpy(values).to(images.device)


class OpenVino(nn.Module):
    """A network run by OpenVINO; nothing is reported to anybody."""

    def __init__(self, path: Path, precision: str) -> None:
        super().__init__()
        core = _openvino().Core()
        kind = (
            "bf16" if precision == "bf16" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
        )
        self._model = core.compile_model(
            core.read_model(str(path)), "CPU",
            {"INFERENCE_PRECISION_HINT": kind, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": "1",
             "INFERENCE_NUM_THREADS": str(cores())},
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K, ...] float32 of [B, C, H, W] images."""
        with _told_of(images):
            (values,) = self._model([images.float().contiguous().cpu().numpy()]).values()
        return torch.from_numpy(np.array(values, dtype=np.float32)).to(images.device)


@contextlib.contextmanager
def _told_of(images: torch.Tensor) -> Iterator[None]:
    """Turn what an engine says of images it cannot take into an error with a remedy."""
    try:
        yield
    except Exception as error:  # each engine has errors of its own
        raise PredictionError(
            f"the engine cannot run images of {tuple(images.shape)}: {str(error).splitlines()[0][:200]}",
            "images of the size the network was written for", "`kbench export` without `--engine`",
        ) from error  # fmt: skip


ENGINES: dict[str, Callable[[Path, str], nn.Module]] = {"onnx": OnnxRuntime, "openvino": OpenVino}


def _openvino() -> Any:
    """Import OpenVINO with its telemetry switched off: it would report home when it is imported or converts."""
    for variable in ("OPENVINO_TELEMETRY", "OPENVINO_ENABLE_TELEMETRY"):
        os.environ[variable] = "0"
    with contextlib.suppress(ImportError):
        telemetry = importlib.import_module("openvino_telemetry")
        for name in ("send_event", "start_session", "end_session", "send_error", "send_stack_trace"):
            setattr(telemetry.Telemetry, name, lambda *args, **settings: None)
    return _need("openvino")


def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"'{package}' is not installed", "the package that runs networks in another engine",
            "pip install 'kaggle-kbench[engines]'",
        ) from error  # fmt: skip


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter's warnings and tables off the terminal."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
