"""Small competitions with the layouts of real ones, as the files a service offers: path -> bytes."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from sklearn.datasets import load_digits
from streets_and_salt import salt

from kbench.data.masks.run_lengths import CONVENTIONS, encode

BREEDS = 120
TAGS = ("agriculture", "clear", "cloudy", "primary", "road", "water")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Return a CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue().encode()


def zipped(**content: bytes) -> bytes:
    """Return a zip of files, given by their names."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, blob in content.items():
            archive.writestr(name, blob)
    return out.getvalue()


def image(pixels: np.ndarray, suffix: str) -> bytes:
    """Return an encoded image."""
    done, content = cv2.imencode(suffix, pixels)
    assert done
    return content.tobytes()


def picture(colour: Sequence[int], seed: int, *, size: tuple[int, int] = (40, 48)) -> bytes:
    """Return a JPEG of one colour with noise."""
    noise = np.random.default_rng(seed).integers(-40, 40, (*size, 3))
    return image(np.clip(np.asarray(colour) + noise, 0, 255).astype(np.uint8), ".jpg")


def digits(train: int = 400, test: int = 120) -> tuple[dict[str, bytes], dict[str, int]]:
    """Return real handwritten digits as a competition, and the classes of its test images."""
    scanned = load_digits()
    pixels, labels = (scanned.images * 15).astype(np.uint8), scanned.target
    files = {f"train/{row}.png": image(pixels[row], ".png") for row in range(train)}
    files["train.csv"] = table(["id", "label"], [(row, labels[row]) for row in range(train)])
    answers = {str(row): int(labels[row]) for row in range(train, train + test)}
    files |= {f"test/{row}.png": image(pixels[int(row)], ".png") for row in answers}
    header = ["id", *map(str, range(10))]
    files["sample_submission.csv"] = table(header, [(row, *[0.1] * 10) for row in answers])
    return files, answers


def dogs_vs_cats(rows: int = 15, test: int = 8) -> dict[str, bytes]:
    """Return the layout of dogs-vs-cats-redux-kernels-edition: the label is in the name, zips lie in the bundle."""
    colours = {"cat": (40, 90, 160), "dog": (160, 90, 40)}
    train = {f"train/{name}.{row}.jpg": picture(colours[name], row) for name in colours for row in range(rows)}
    unseen = {
        f"test/{row}.jpg": picture(colours["dog" if row % 2 else "cat"], 1000 + row) for row in range(1, test + 1)
    }
    sample = table(["id", "label"], [(row, 0.5) for row in range(1, test + 1)])
    return {"train.zip": zipped(**train), "test.zip": zipped(**unseen), "sample_submission.csv": sample}


def dog_breeds(rows: int = 5, test: int = 8) -> dict[str, bytes]:
    """Return the layout of dog-breed-identification: hexadecimal ids, 120 columns."""
    breeds = [f"breed_{number:03d}" for number in range(BREEDS)]
    ids = [(f"{1000 * copy + number:032x}", number) for copy in range(rows) for number in range(BREEDS)]
    files = {f"train/{name}.jpg": picture((2 * number, 200 - number, 90), number) for name, number in ids}
    files["labels.csv"] = table(["id", "breed"], [(name, breeds[number]) for name, number in ids])
    unseen = [f"{900_000 + row:032x}" for row in range(test)]
    files |= {f"test/{name}.jpg": picture((2 * row, 200 - row, 90), 1000 + row) for row, name in enumerate(unseen)}
    files["sample_submission.csv"] = table(["id", *breeds], [(name, *[1 / BREEDS] * BREEDS) for name in unseen])
    return files


def planet(rows: int = 40, test: int = 8) -> dict[str, bytes]:
    """Return the layout of planet-understanding-the-amazon-from-space, its image archives already unpacked."""
    rng = np.random.default_rng(0)
    drawn = [[name for name in TAGS if rng.random() < 0.4] or ["clear"] for _ in range(rows)]
    files = {
        f"train-jpg/train_{row}.jpg": picture((200 * ("water" in tags), 120, 200 * ("road" in tags)), row)
        for row, tags in enumerate(drawn)
    }
    files["train_v2.csv.zip"] = zipped(
        **{"train_v2.csv": table(["image_name", "tags"], [(f"train_{n}", " ".join(t)) for n, t in enumerate(drawn)])}
    )
    unseen = [*(f"test_{row}" for row in range(test)), "file_0", "file_1"]
    files |= {f"test-jpg/{name}.jpg": picture((100, 120, 0), row) for row, name in enumerate(unseen)}
    sample = table(["image_name", "tags"], [(name, "primary clear") for name in unseen])
    files["sample_submission_v2.csv.zip"] = zipped(**{"sample_submission_v2.csv": sample})
    return files


def tgs_salt(rows: int = 20, test: int = 5) -> dict[str, bytes]:
    """Return the layout of tgs-salt-identification-challenge: zips of images and 16-bit masks, run lengths, depths."""
    ids = [f"{number * 7919 + 4096:010x}" for number in range(rows + test)]
    pictures, masks, cells = {}, {}, []
    for number, name in enumerate(ids):
        grey, mask = salt(number)
        pictures[name] = image(np.repeat(grey[:, :, None], 3, axis=2), ".png")
        masks[name] = image(mask.astype(np.uint16) * 65535, ".png")
        cells.append(encode(mask, CONVENTIONS["tgs"]))
    train = {f"images/{name}.png": pictures[name] for name in ids[:rows]}
    train |= {f"masks/{name}.png": masks[name] for name in ids[:rows]}
    return {
        "train.zip": zipped(**train),
        "test.zip": zipped(**{f"images/{name}.png": pictures[name] for name in ids[rows:]}),
        "train.csv": table(["id", "rle_mask"], zip(ids[:rows], cells[:rows], strict=True)),
        "depths.csv": table(["id", "z"], [(name, 50 + 31 * place) for place, name in enumerate(ids)]),
        "sample_submission.csv": table(["id", "rle_mask"], [(name, "1 1") for name in ids[rows:]]),
    }
