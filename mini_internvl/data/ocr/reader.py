"""Reads the lines of text in a picture by RapidOCR, which runs PaddleOCR's models in ONNX Runtime (extra ``ocr``).

The models, for English and Chinese, ship with its package: nothing is fetched. Unusual: each process reads on one
thread, so that the same picture gives the same numbers however many workers there are.
"""

from __future__ import annotations

import functools
import os
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from mini_internvl.data.ocr import Box, Line
from mini_internvl.data.ocr.order import in_reading_order


def require() -> None:
    """ValueError with the line that installs what is missing; to be called before long work."""
    for package in ("rapidocr", "onnxruntime"):
        if find_spec(package) is None:
            raise ValueError(f'reading text in pictures needs {package}: pip install "mini-internvl[ocr]"')


def name() -> str:
    """What reads, with its version: pictures read by another one may give other lines."""
    return f"rapidocr {version('rapidocr')}"


def read_lines(image: Image.Image) -> list[Line]:
    """The lines of text of an RGB picture in reading order, whatever their confidence; boxes in its pixels."""
    found = _engine(os.getpid())(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))
    if getattr(found, "boxes", None) is None or getattr(found, "txts", None) is None:
        return []
    lines = [
        Line(text=text.strip(), box=_upright(corners, image.size), confidence=round(float(score), 4))
        for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True)
    ]
    return in_reading_order([line for line in lines if line.text])


@functools.lru_cache(maxsize=1)
def _engine(process: int) -> Any:
    """The reader of this process; a forked one makes its own."""
    require()
    import cv2
    from rapidocr import RapidOCR

    cv2.setNumThreads(1)
    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    return RapidOCR(params={"Global.log_level": "critical", "Global.text_score": 0.0, **threads})


def _upright(corners: np.ndarray, size: tuple[int, int]) -> Box:
    """The upright box around four corners (4, 2), within the picture."""
    (left, top), (right, bottom) = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
    width, height = size
    x1, y1 = min(max(int(left), 0), width - 1), min(max(int(top), 0), height - 1)
    return x1, y1, min(max(int(right), x1 + 1), width), min(max(int(bottom), y1 + 1), height)
