"""Images a second of torch, as kbench predicts (batch norms folded, bf16 where the CPU has it), and of OpenVINO.

    python benchmarks/bench_engines.py [--rounds 5] [--networks mobilenetv2_100:160 resnet50:224]

Both run the same network with random weights on the same images, by turns, on the cores that the process has; the best
round of each counts. Answers are held against torch's in float32.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch

from kbench.machine import cores, keep_freed_memory
from kbench.models.batchnorm_folding import folded
from kbench.models.device import autocast, choose_precision
from kbench.models.engines import export_onnx, load_engine

CPU = torch.device("cpu")
BATCH = 32


def measure(name: str, size: int, rounds: int) -> dict[str, float]:
    """Return images a second of each engine, and how far it is off float32, in parts of the largest answer."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10).eval().to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, size, size).to(memory_format=torch.channels_last)
    precision = choose_precision("auto", CPU, training=False)
    with TemporaryDirectory() as folder, torch.inference_mode():
        exact = model(images)
        engine = load_engine("openvino", export_onnx(model, images[:2], Path(folder) / "a.onnx", name=name), precision)
        fast = folded(model, images)

        def by_torch() -> torch.Tensor:
            with autocast(CPU, precision):
                return fast(images).float()

        ways = {"torch": by_torch, "openvino": lambda: engine(images)}
        best = dict.fromkeys(ways, 0.0)
        for way in ways.values():
            way()
        for _ in range(rounds):
            for key, way in ways.items():
                started = time.perf_counter()
                way()
                best[key] = max(best[key], BATCH / (time.perf_counter() - started))
        away = {f"{key} off": float((way() - exact).abs().max() / exact.abs().max()) for key, way in ways.items()}
    return {**best, **away}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=["mobilenetv2_100:160", "resnet50:224"])
    chosen = parser.parse_args()
    keep_freed_memory()
    precision = choose_precision("auto", CPU, training=False)
    print(f"{cores()} cores, {torch.get_num_threads()} threads of torch, {precision}, {BATCH} images at once")
    for network in chosen.networks:
        name, _, size = network.partition(":")
        speeds = measure(name, int(size), chosen.rounds)
        print(
            f"{name} {size} px: torch {speeds['torch']:.0f}, OpenVINO {speeds['openvino']:.0f} images/s "
            f"({speeds['openvino'] / speeds['torch']:.2f}x); off by {speeds['torch off']:.2g} and "
            f"{speeds['openvino off']:.2g}"
        )


if __name__ == "__main__":
    main()
