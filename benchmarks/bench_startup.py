"""Start-up: `kbench --help` against `python -c pass`, in turns.

python benchmarks/bench_startup.py [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    helped, bare = [sys.executable, "-m", "kbench", "--help"], [sys.executable, "-c", "pass"]
    seconds(helped)
    pairs = [(seconds(helped), seconds(bare)) for _ in range(options.rounds)]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"kbench --help {ours:.3f} s, python alone {theirs:.3f} s (goal: under 0.5 s)")


if __name__ == "__main__":
    main()
