"""Change YAMLs, CSVs and images at random and type `kbench check`: an answer or an error in three parts, no traceback.

    python benchmarks/fuzz.py [--yaml 200] [--csv 200] [--images 100] [--seed 0] [--seconds 600]

Every case starts from a small competition that passes, makes one to three changes, and runs in this process. A defect,
an exception that is no error of kbench, an error that lacks a part, and a case of five minutes are failures; each is
printed with its seed. The suite runs some seconds of it (`tests/test_fuzz.py`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from typer.testing import CliRunner

from kbench.cli.app import app
from kbench.errors import KbenchError

HANG = 300  # seconds of one case, most of which other work may take
ROWS, TEST = 16, 4
YAML = """title: Halves
task: single_label
source: {name: local, path: data/halves, solution: data/halves/solution.csv}
data:
  layout: {name: csv, join: [meta.csv]}
  train: {csv: train.csv, images: train, suffix: .png}
  test: {images: test, suffix: .png}
  target: label
  metadata: [site, age]
  on_problem: error
folds: {strategy: stratified_group, n: 2, seed: 1, group: site}
metric: log_loss
submission: {format: probabilities, sample: sample_submission.csv}
seed: 0
input: {size: 16, channels: 3}
model: {backbone: test_resnet, options: {head: concat, hidden: [8], dropout: 0.2}}
train: {batch_size: 4, optimizer: adamw, weight_decay: 0.01, augment: {name: basic, rotate: 12}, mix: mixup}
stages:
  head: {groups: head, lr: find, range_test: {steps: 24}, schedule: {name: one_cycle, epochs: 1}}
  all:
    lr: 1e-3
    lr_decay: 3
    schedule: {name: sgdr, cycles: 2, cycle_len: 1, cycle_mult: 2}
    keep: [cycles, best]
tta: flip
ensemble: {combine: mean}
"""
ODD = (
    "", "null", "~", "true", "-1", "0", "1", "2", "0.5", "1e-400", "1e400", "-.inf", ".nan", "10000000", "[]", "{}",
    "[1, [2]]", "{a: {b: 1}}", "x", "''", "'\u2028'", "é", "\U0001f980", "../..", "/dev/null", "*a", "&a 1", "!!int x",
    "2026-11-27", "0x1F", "012", "yes", "{name: [1]}", "{name: nothing}", "%", "@", "a: b: c", "csv", "train", "none",
    "9" * 30, "x" * 2000,
)  # fmt: skip


@dataclass
class Result:
    """What became of the cases of one kind.

    Attributes:
        passed: cases that were answered.
        refused: cases that ended in an error of three parts.
        failures: what went wrong, with the seed of the case.
    """

    passed: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many cases were tried."""
        return self.passed + self.refused + len(self.failures)


def written(root: Path) -> Path:
    """Write a workspace with a competition that passes the check."""
    rng, data = np.random.default_rng(0), root / "data" / "halves"
    for part, count in (("train", ROWS), ("test", TEST)):
        (data / part).mkdir(parents=True)
        for row in range(count):
            image = rng.integers(0, 120, (20, 24, 3), dtype=np.uint8)
            image[:, 12 * (row % 2) : 12 * (row % 2) + 12] += 120
            assert cv2.imwrite(str(data / part / f"{row:03d}.png"), image)
    labels = ["left", "right"] * ROWS
    lines = {
        "train.csv": ["id,label,site", *(f"{row:03d},{labels[row]},s{row // 2}" for row in range(ROWS))],
        "meta.csv": ["id,age", *(f"{row:03d},{20 + row}" for row in range(ROWS))],
        "sample_submission.csv": ["id,left,right", *(f"{row:03d},0.5,0.5" for row in range(TEST))],
        "solution.csv": ["id,label,Usage", *(f"{row:03d},{labels[row]},Public" for row in range(TEST))],
    }
    for name, text in lines.items():
        (data / name).write_text("\n".join(text) + "\n")
    (root / "competitions").mkdir()
    (root / "competitions" / "halves.yaml").write_text(YAML)
    return root


# -- changes ----------------------------------------------------------------------------------------------------------


def bytes_changed(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut out, repeat or insert some bytes, or cut off the end."""
    place = rng.randrange(len(content) + 1)
    length, signs = rng.choice((1, 1, 2, 8, 64)), (b"\0", b'"', b"\r", b"\xff", b"\xef\xbb\xbf", b",", b"\t", b"'")
    ways: list[Callable[[], bytes]] = [
        lambda: content[:place] + bytes(rng.randrange(256) for _ in range(length)) + content[place + length :],
        lambda: content[:place] + content[place + length :],
        lambda: content[:place] + content[place : place + length] * 2 + content[place + length :],
        lambda: content[:place] + rng.choice(signs) + content[place:],
        lambda: content[:place],
    ]  # fmt: skip
    return rng.choice(ways)()


def yaml_changed(content: bytes, rng: random.Random) -> bytes:
    """Change a value, a name or a line of a YAML."""
    lines = content.decode(errors="replace").splitlines()
    place = rng.randrange(len(lines))
    line = lines[place]
    cuts = [at for at, sign in enumerate(line) if sign in ":,[{}] "] or [0]
    start = rng.choice(cuts)
    end = min([at for at in cuts if at > start] or [len(line)])
    ways: list[Callable[[], list[str]]] = [
        lambda: [f"{line[: start + 1]} {rng.choice(ODD)}{line[end:]}"],
        lambda: [f"{line[: start + 1]} {rng.choice(ODD)}"],
        lambda: [line[:start] + line[end:]],
        list,
        lambda: [line, line],
        lambda: [f"  {line}"],
        lambda: [line.lstrip()],
        lambda: [rng.choice(lines)],
        lambda: [line.replace(":", rng.choice((": {", ": [", "", "::")), 1)],
    ]
    changed = [*lines[:place], *rng.choice(ways)(), *lines[place + 1 :]]
    return ("\n".join(changed) + "\n").encode()


def csv_changed(content: bytes, rng: random.Random) -> bytes:
    """Change cells, rows, signs or the encoding of a CSV."""
    text = content.decode(errors="replace")
    lines = text.splitlines() or [""]
    place = rng.randrange(len(lines))
    cells = lines[place].split(",")
    cell = rng.randrange(len(cells))
    odd = rng.choice((*ODD, "NaN", "left ", " right", "LEFT", "../000", "000.png", "1,5", "=1+1", '"', "a\nb"))
    ways: list[Callable[[], bytes]] = [
        lambda: _lines(lines, place, [",".join([*cells[:cell], odd, *cells[cell + 1 :]])]),
        lambda: _lines(lines, place, [",".join([*cells[:cell], *cells[cell + 1 :]])]),
        lambda: _lines(lines, place, [",".join([*cells, odd])]),
        lambda: _lines(lines, place, []),
        lambda: _lines(lines, place, [lines[place]] * 2),
        lambda: text.replace(",", rng.choice(";\t|"), rng.choice((1, 3, -1))).encode(),
        lambda: text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32"))),
        lambda: text.replace("\n", rng.choice(("\r\n", "\r", "\n\n"))).encode(),
        lambda: b"",
    ]
    return rng.choice(ways)()


def _lines(lines: list[str], place: int, instead: list[str]) -> bytes:
    return ("\n".join([*lines[:place], *instead, *lines[place + 1 :]]) + "\n").encode(errors="replace")


def image_changed(content: bytes, rng: random.Random) -> bytes:
    """Change a file's head, its body, its kind or its pixels."""
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 65536, (20, 24, 3), dtype=np.uint16)
    kinds: list[tuple[str, np.ndarray]] = [
        (".png", pixels), (".tif", pixels.astype(np.float32)), (".jpg", pixels.astype(np.uint8)),
        (".bmp", pixels.astype(np.uint8)[:1, :1]), (".png", pixels[:, :, 0]), (".webp", pixels.astype(np.uint8)),
    ]  # fmt: skip
    head = bytearray(content)
    head[rng.randrange(min(33, len(head)))] = rng.randrange(256)
    size = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\1\0\0"))
    ways: list[Callable[[], bytes]] = [
        lambda: bytes(head), lambda: content[: rng.randrange(len(content))], lambda: b"",
        lambda: content[:16] + size + content[20:], lambda: bytes(rng.randrange(256) for _ in range(200)),
        lambda: cv2.imencode(*rng.choice(kinds))[1].tobytes(), lambda: b"not an image",
    ]  # fmt: skip
    return rng.choice(ways)()


# -- cases ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of cases.

    Attributes:
        files: pattern of the files that are changed, below the workspace.
        ways: what changes one.
        words: what is typed.
    """

    files: str
    ways: tuple[Callable[[bytes, random.Random], bytes], ...]
    words: tuple[tuple[str, ...], ...]


CHECK, LOOK = ("check", "-c", "halves"), ("check", "--images", "-c", "halves")
KINDS = {
    "yaml": Kind("competitions/*.yaml", (yaml_changed, yaml_changed, yaml_changed, bytes_changed), (CHECK,)),
    "csv": Kind(
        "data/halves/*.csv", (csv_changed, csv_changed, bytes_changed), (CHECK, ("folds", "--force", "-c", "halves"))
    ),
    "images": Kind(
        "data/halves/t*/*.png",
        (image_changed, image_changed, bytes_changed),
        (LOOK, ("inspect", "-c", "halves", "--json")),
    ),
}


def fuzz(name: str, *, count: int, seed: int, seconds: float) -> Result:
    """Try cases of a kind until they or the seconds (of CPU) are over."""
    kind, result, started = KINDS[name], Result(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        plain = written(Path(folder) / "plain")
        with contextlib.chdir(plain):
            sound = answer(CHECK)
        if sound != 0:
            raise SystemExit(f"what nobody changed does not pass: {sound}")
        shutil.rmtree(plain / "folds", ignore_errors=True)
        for number in range(count):
            if time.process_time() - started > seconds:
                break
            one = _case(plain, Path(folder) / f"{name}-{number}", kind, random.Random(f"{name} {seed} {number}"))
            if isinstance(one, str):
                result.failures.append(f"{name}, seed {seed}, case {number}: {one}")
            elif one:
                result.refused += 1
            else:
                result.passed += 1
    return result


def _case(plain: Path, root: Path, kind: Kind, rng: random.Random) -> int | str:
    """Change a copy of a workspace and type something there; return the exit code, or what went wrong."""
    shutil.copytree(plain, root)
    for _ in range(rng.choice((1, 1, 2, 3))):
        path = rng.choice(sorted(root.glob(kind.files)))
        path.write_bytes(rng.choice(kind.ways)(path.read_bytes() or b"x", rng))
    with contextlib.chdir(root):
        done = answer(rng.choice(kind.words))
    shutil.rmtree(root)
    return done


def answer(words: tuple[str, ...]) -> int | str:
    """Type a command; return its exit code, or what is wrong with how it ended."""
    try:
        with _hurried():
            done = CliRunner().invoke(app, list(words))
    except TimeoutError:
        return f"kbench {' '.join(words)} took over {HANG} seconds"
    error = done.exception
    if error is None or isinstance(error, SystemExit):
        return done.exit_code
    if not isinstance(error, KbenchError):
        return f"{type(error).__name__}: {error}"
    parts = (error.what, error.expected, error.todo)
    if "a defect of kbench" in error.what or not all(part.strip() for part in parts):
        return f"{error.what} | {error.expected} | {error.todo}"
    return error.exit_code


@contextlib.contextmanager
def _hurried() -> Iterator[None]:
    def late(*ignored: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("yaml", 200), ("csv", 200), ("images", 100)):
        parser.add_argument(f"--{name}", type=int, default=count, help="cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600, help="of CPU for each kind, at most")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    failed = 0
    for name in KINDS:
        result = fuzz(name, count=getattr(options, name), seed=options.seed, seconds=options.seconds)
        ends = f"{result.passed} answered, {result.refused} refused, {len(result.failures)} failed"
        print(f"{name:7} {result.count} cases: {ends}")
        print("".join(f"  {text}\n" for text in result.failures), end="")
        failed += len(result.failures)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
