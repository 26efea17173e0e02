"""A training step through kbench against the bare model on the same batch already in memory.

Both train an unfrozen MobileNetV2 at 160 px, batch 32, SGD, same precision and memory format; kbench's images
come from its cache through crop, flip and light. The two take turns, and the ratio of the medians counts.

    python benchmarks/bench_step.py [--rounds 6] [--steps 6]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from kbench.data.dataset import Draw, ImageDataset, Loader, Normalise, Show, auto_workers, cut
from kbench.data.images.augment import side_on
from kbench.data.images.cache import Resize, open_images
from kbench.data.images.crops import random
from kbench.data.images.readers import image
from kbench.models.classifier import timm_classifier
from kbench.models.device import autocast, choose_device, choose_precision, place
from kbench.models.layer_groups import layer_groups, train_mode
from kbench.training.loop import Feed, train_epoch
from kbench.training.losses.per_target import cross_entropy
from kbench.training.optimizers import sgd
from kbench.training.schedules import constant
from kbench.training.update import Learner, Rules, supervised

SIZE, BATCH = 160, 32


def photographs(
    folder: Path, count: int, *, size: tuple[int, int] = (500, 375), grain: float = 0
) -> list[tuple[Path, ...]]:
    """Write JPEGs, with the sizes of photographs on the web and as smooth as none, or with grain; return their rows."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        path = folder / f"{number}.jpg"
        image = cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)
        if grain:
            image = (image + grain * rng.standard_normal(image.shape, dtype=np.float32)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(path), image)
        rows.append((path,))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    device = choose_device("auto")
    precision = choose_precision("auto", device, training=True)
    model = place(timm_classifier(2, 3, _backbone="mobilenetv2_100", _size=(SIZE, SIZE)), device, channels_last=True)
    train_mode(model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = photographs(folder, 4 * BATCH)
        images = open_images(
            rows, reader=image(_channels=3), reader_key="bench", resize=Resize("cover", SIZE, SIZE),
            folder=folder / "cache", mode="on", progress=lambda done, total: None,
        )  # fmt: skip
        targets = np.arange(len(rows)) % 2
        dataset = ImageDataset([images], [Show((SIZE, SIZE), random(), side_on())], targets)
        normalise = Normalise(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).to(device)
        workers = auto_workers("auto", device=device.type)
        loader = Loader(dataset, workers=workers, pin=device.type == "cuda")
        feed = Feed(loader, normalise, device, n_outputs=2)
        loss = cross_entropy()
        groups = layer_groups(model)
        learner = Learner(
            model, sgd(groups, [1e-3] * 3, [0.0] * 3), torch.amp.GradScaler(device.type, enabled=False), None, BATCH
        )
        rules = Rules(supervised(), loss, device, precision)
        schedule = constant(options.steps, epochs=1)
        batch = torch.randn(BATCH, 3, SIZE, SIZE, device=device).to(memory_format=torch.channels_last)
        target = torch.arange(BATCH, device=device) % 2
        bare_optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def through_kbench() -> float:
            plan = cut(options.steps * BATCH, BATCH, lambda step: Draw(step % len(rows), (0, step)))
            started = time.perf_counter()
            for made in train_epoch(
                learner, feed, plan, rules=rules, schedule=schedule, history=(), first_step=0, accumulate=1,
                key=(0, 0, 0),
            ):  # fmt: skip
                float(made.loss.total)
            return options.steps * BATCH / (time.perf_counter() - started)

        def bare() -> float:
            started = time.perf_counter()
            for _ in range(options.steps):
                bare_optimizer.zero_grad(set_to_none=True)
                with autocast(device, precision):
                    logits = model(batch)
                value = torch.nn.functional.cross_entropy(logits.float(), target)
                value.backward()
                bare_optimizer.step()
                value.item()
            return options.steps * BATCH / (time.perf_counter() - started)

        through_kbench(), bare()
        pairs = [(through_kbench(), bare()) for _ in range(options.rounds)]
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"device {device}, {precision}, channels-last, {torch.get_num_threads()} threads")
        print(f"kbench {ours:.1f} images/s, bare {theirs:.1f} images/s, ratio {ratio:.3f} (goal 0.95)")


if __name__ == "__main__":
    main()
