"""What OpenMP's waiting costs where other processes want the cores: spinning against sleeping threads.

Every measurement is a process of its own on the same two cores, beside 0, 2 and 4 processes that only count: a
training step (ResNet-10, digits' size and batch), prediction with flips, whole frames through a U-Net, and two
training processes at once as `--jobs 2` starts them. Weights after the steps must be the same to the bit.

    python benchmarks/bench_shared_cores.py [--seconds 4] [--what step tta frames jobs] [--busy 0 2 4]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

POLICIES: dict[str, dict[str, str]] = {
    "as libgomp does": {},
    "passive (kbench)": {"OMP_WAIT_POLICY": "PASSIVE"},
    "a short spin": {"GOMP_SPINCOUNT": "10000"},
}
WHAT = ("step", "tta", "frames", "jobs")
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_BLOCKTIME")


def work(what: str, seconds: float) -> dict[str, float | str]:
    """Do one kind of work for a while; return images and CPU seconds per second of the clock, and what came out."""
    import torch

    from kbench.machine import keep_freed_memory
    from kbench.models.classifier import timm_classifier
    from kbench.models.device import place

    torch.manual_seed(0)
    cpu, repeats = torch.device("cpu"), 2
    if what == "frames":
        import segmentation_models_pytorch as smp

        model = place(smp.Unet("mobilenet_v2", encoder_weights=None, classes=11), cpu, channels_last=True).eval()
        images = torch.rand(1, 3, 256, 352).to(memory_format=torch.channels_last)
    else:
        keep_freed_memory()
        small = timm_classifier(10, 1, _backbone="resnet10t", _size=(32, 32))
        model = place(small, cpu, channels_last=True)
        images = torch.rand(64, 1, 32, 32)
    once = training(model, images) if what in ("step", "jobs") else predicting(model, images)
    for _ in range(repeats):
        once()
    result = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
    started, used, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < seconds:
        count += once()
    passed = time.perf_counter() - started
    return {"images": count / passed, "cpu": (time.process_time() - used) / max(1, count), "result": result[:16]}


def training(model: object, images: object) -> Callable[[], int]:
    """Return a training step that says how many images it saw."""
    import torch

    assert isinstance(model, torch.nn.Module)
    assert isinstance(images, torch.Tensor)
    target = torch.arange(len(images)) % 10
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)

    def step() -> int:
        torch.nn.functional.cross_entropy(model(images), target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return len(images)

    return step


def predicting(model: object, images: object) -> Callable[[], int]:
    """Return a prediction with a flip that says how many images it saw."""
    import torch

    assert isinstance(model, torch.nn.Module)
    assert isinstance(images, torch.Tensor)
    model.eval()

    @torch.inference_mode()
    def predict() -> int:
        for view in (images, images.flip(-1)):
            model(view)
        return len(images)

    return predict


def measured(what: str, policy: dict[str, str], busy: int, seconds: float) -> list[dict[str, float | str]]:
    """Return what the processes of one measurement say."""
    environment = {key: value for key, value in os.environ.items() if key not in SETTINGS} | policy
    sides = 2 if what == "jobs" else 1
    threads = str(2 // sides)
    environment |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        command = [sys.executable, __file__, "--one", what, "--seconds", str(seconds)]
        running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(sides)]
        return [json.loads(one.communicate()[0]) for one in running]
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 2, 4], help="processes beside it")
    parser.add_argument("--one", choices=WHAT, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(work(chosen.one, chosen.seconds)))
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    print("| work | busy beside it | " + " | ".join(f"{name}: images/s, CPU ms an image" for name in POLICIES) + " |")
    print("|---" * (2 + len(POLICIES)) + "|")
    for what in chosen.what:
        for busy in chosen.busy:
            made = {name: measured(what, policy, busy, chosen.seconds) for name, policy in POLICIES.items()}
            assert len({str(one["result"]) for some in made.values() for one in some}) == 1, "results differ"
            cells = [
                f"{sum(float(one['images']) for one in some):.0f}, {1000 * float(some[0]['cpu']):.2f}"
                for some in made.values()
            ]
            print(f"| {what} | {busy} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
