"""Networks in other engines answer as torch does; what cannot be written or answers otherwise is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT
from torch import nn

from kbench.errors import PredictionError
from kbench.models import engines
from kbench.models.engines import export_onnx, load_engine


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (5, 3, 16, 16), (3, 3, 24, 20)])
def test_any_number_and_size_of_images_is_answered_as_by_torch(
    tmp_path: Path, engine: str, shape: tuple[int, ...]
) -> None:
    model = network()
    path = export_onnx(model, torch.zeros(2, 3, 16, 16), tmp_path / "a.onnx", name="a")
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    loaded = load_engine(engine, path, "fp32")
    assert not list(loaded.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), model(images), rtol=1e-4, atol=1e-5)


def test_a_network_that_answers_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = network()
    with torch.no_grad():
        other[5].bias += 1
    monkeypatch.setattr(engines, "load_engine", lambda *given: other)
    with pytest.raises(PredictionError, match="answers otherwise") as caught:
        export_onnx(network(), torch.zeros(2, 3, 16, 16), tmp_path / "a.onnx", name="a")
    assert "--engine" in caught.value.todo


def test_a_network_that_onnx_cannot_hold_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigh(images.mean(1))[0]

    with pytest.raises(PredictionError, match="cannot be written as ONNX"):
        export_onnx(Odd().eval(), torch.zeros(2, 3, 16, 16), tmp_path / "a.onnx", name="odd")
    assert not (tmp_path / "a.onnx").exists()


QUIET = """
import socket, sys
from pathlib import Path
import torch
from kbench.models.engines import load_engine
tried = []
socket.socket.connect = lambda self, address: tried.append(address)
load_engine("openvino", Path(sys.argv[1]), "fp32")(torch.zeros(1, 3, 16, 16))
telemetry = sys.modules.get("openvino_telemetry")
if telemetry is not None:
    telemetry.Telemetry.send_event("a", "b", "c")
print(tried)
"""


def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    path = export_onnx(network(), torch.zeros(2, 3, 16, 16), tmp_path / "a.onnx", name="a")
    done = subprocess.run([sys.executable, "-c", QUIET, str(path)], check=True, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)})  # fmt: skip
    assert done.stdout.strip().splitlines()[-1] == "[]"
