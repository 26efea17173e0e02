"""Predict maps of whole images: overlapping tiles, many models in one pass, and memory of full street frames.

python benchmarks/bench_maps.py [tiles] [members] [frames] [--models 21]     # all three by default

tiles: overlapping windows against the plain loop (a window at a time, blended in numpy), seconds and peak memory
members: an ensemble in one pass over the images against a pass per member, images decoded from JPEG
frames: peak memory of 1936 x 1216 frames, 20 classes, 4 views, members of 7 folds x 3 snapshots, by number of frames

Where memory is measured, each way runs in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from kbench import registry
from kbench.data.images.cache import DirectImages, Resize
from kbench.inference import map_store
from kbench.inference.map_pass import MapJob, MapMember, stream
from kbench.inference.map_store import Writing
from kbench.inference.maps import MapMaker
from kbench.models.device import choose_precision, place

CPU = torch.device("cpu")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SCALE = {"scale": 1 / 255, "mean": MEAN, "std": STD}
KEEP = Resize("keep", 0, 0)


def network(classes: int, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    options = {"decoder_channels": [64, 32, 24, 16, 16]}
    made = registry.build("model", "smp", options, classes, 3, _backbone="mobilenetv2_050", _size=(224, 224))
    return place(made, CPU, channels_last=True).eval()


def member(classes: int, seed: int) -> MapMember:
    precision = choose_precision("auto", CPU, training=False)
    return MapMember(f"fold {seed}", lambda: network(classes, seed), SCALE, precision)


def photographs(folder: Path, count: int, size: tuple[int, int]) -> DirectImages:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        noise = cv2.resize(rng.integers(0, 256, (size[0] // 16, size[1] // 16, 3)).astype(np.uint8), size[::-1])
        paths.append((folder / f"{number}.jpg",))
        cv2.imwrite(str(paths[-1][0]), noise)
    return DirectImages(paths, registry.build("reader", "image", {}, _channels=3), KEEP)


def job(images: DirectImages, classes: int, *, windows: str = "full", views: str = "none", **params: object) -> MapJob:
    make = MapMaker(registry.build("windows", windows, params), registry.build("views", views, {}), "segmentation", CPU)
    return MapJob(np.arange(len(images)), images, None, tuple(f"c{k}" for k in range(classes)), make, 4)


def plain_tiles(model: torch.nn.Module, image: np.ndarray, classes: int, size: int, stride: int) -> np.ndarray:
    """Blend overlapping windows as a script would: one at a time, padded by a window on all sides."""
    scaled = (image.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    padded = np.pad(scaled, ((0, size), (0, size), (0, 0)), mode="reflect")
    total = np.zeros((classes, *padded.shape[:2]), np.float32)
    count = np.zeros(padded.shape[:2], np.float32)
    precision = choose_precision("auto", CPU, training=False)
    for top in range(0, image.shape[0], stride):
        for left in range(0, image.shape[1], stride):
            window = torch.from_numpy(padded[top : top + size, left : left + size].transpose(2, 0, 1)[None].copy())
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                values = model(window.float()).float().softmax(1)[0].numpy()
            total[:, top : top + size, left : left + size] += values
            count[top : top + size, left : left + size] += 1
    return (total / count)[:, : image.shape[0], : image.shape[1]]


def told(what: str, seconds: dict[str, float], ratio: float) -> None:
    print(f"{what}: {', '.join(f'{name} {value:.1f} s' for name, value in seconds.items())}: {ratio:.2f} times as fast")


def alone(*words: str) -> list[float]:
    """Run one way in a process of its own; return what it printed."""
    done = subprocess.run([sys.executable, __file__, "--alone", *words], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def peak() -> int:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def tiles(way: str) -> None:
    """Predict by overlapping windows in one way; print seconds and peak memory."""
    classes, size, stride = 20, 256, 128
    with tempfile.TemporaryDirectory() as name:
        images, model = photographs(Path(name), 2, (608, 968)), network(classes)
        for _ in range(2):  # the first one warms up
            started = time.perf_counter()
            if way == "kbench":
                list(stream(job(images, classes, windows="overlap", size=size, stride=stride), [member(classes, 0)]))
            else:
                for row in range(len(images)):
                    plain_tiles(model, images[row], classes, size, stride)
    print(time.perf_counter() - started, peak())


def bench_tiles() -> None:
    runs: dict[str, list[list[float]]] = {"plain loop": [], "kbench": []}
    for _ in range(2):
        for way, found in runs.items():
            found.append(alone("tiles", way))
    seconds = {way: min(each[0] for each in found) for way, found in runs.items()}
    told("tiles    20 classes, 608 x 968, windows of 256 every 128", seconds, seconds["plain loop"] / seconds["kbench"])
    print("         peak memory: " + ", ".join(f"{way} {found[0][1]:.0f} MB" for way, found in runs.items()))


def bench_members(folder: Path) -> None:
    classes, count = 4, 8
    images = photographs(folder, 12, (608, 968))
    members = [member(classes, seed) for seed in range(count)]
    seconds = {}
    for name in ("a pass per member", "one pass"):
        started = time.perf_counter()
        for some in [members] if name == "one pass" else [[one] for one in members]:
            list(stream(job(images, classes), some))
        seconds[name] = time.perf_counter() - started
    ratio = seconds["a pass per member"] / seconds["one pass"]
    told(f"members  {count} members, {len(images)} JPEGs of 608 x 968", seconds, ratio)


def frames(count: int, models: int) -> None:
    """Predict full street frames; print peak memory in MB and what lies on disk in kB."""
    classes = 20
    with tempfile.TemporaryDirectory() as name:
        images = photographs(Path(name), count, (1216, 1936))
        made = job(images, classes, views="d4")
        views = tuple(made.make.views[place] for place in (0, 2, 4, 6))
        made = MapJob(made.rows, images, None, made.names, MapMaker(made.make.windows, views, "segmentation", CPU), 1)
        rule = registry.build("postprocess", "none", {}, _names=made.names, _task="segmentation").apply
        writing = Writing(
            Path(name) / "maps.json", np.array([f"{row:04d}" for row in range(count)]), made.names, "segmentation", {},
            ("mean",), False, rule,
        )  # fmt: skip
        members = [member(classes, seed) for seed in range(models)]
        map_store.write(writing, stream(made, members))
        stored = sum(path.stat().st_size for path in Path(name).glob("maps*"))
    print(peak(), stored // 1024)


def bench_frames(models: int) -> None:
    for count in (1, 3):
        memory, stored = alone("frames", str(count), str(models))
        print(f"frames   {count} of 1936 x 1216, 20 classes, {models} models x 4 views: peak {memory:.0f} MB, "
              f"{stored:.0f} kB on disk", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="tiles, members, frames")
    parser.add_argument("--models", type=int, default=21, help="of the frames")
    parser.add_argument("--alone", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        way, *words = options.alone
        tiles(*words) if way == "tiles" else frames(*map(int, words))
        return
    wanted = options.what or ["tiles", "members", "frames"]
    if "tiles" in wanted:
        bench_tiles()
    if "members" in wanted:
        with tempfile.TemporaryDirectory() as name:
            bench_members(Path(name))
    if "frames" in wanted:
        bench_frames(options.models)


if __name__ == "__main__":
    main()
