"""Grey of more than 8 bits as 8 bits, by a rule that is stated."""

from __future__ import annotations

import logging

import numpy as np

_log = logging.getLogger(__name__)


def to_8_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Grey of more than 8 bits (H, W) -> uint8 (H, W), in strips so that little memory is needed.

    The extremes tell the range that becomes black to white: 0..1 where all values of a float image lie in it; 0..255,
    kept as it is; for whole numbers up to 65535 the range of the fewest bits that hold them (10, 12, 14 or 16). Any
    other values, such as a CT's of -1000 to 3000, are stretched from the smallest to the largest. A range of less than
    16 bits and stretching are warned of, since absolute values are lost. NaN and infinity are left out and black.
    """
    whole = values.dtype.kind != "f"
    rows = max(1, 2**20 // max(1, values.shape[1]))
    strips = [values[begin : begin + rows] for begin in range(0, len(values), rows)]
    kept = (strip if whole else strip[np.isfinite(strip)] for strip in strips)
    extremes = [(float(part.min()), float(part.max())) for part in kept if part.size] or [(0.0, 0.0)]
    low, high = min(least for least, _ in extremes), max(most for _, most in extremes)
    if low >= 0 and high <= 1 and not whole:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and high <= 65535 and whole:
        low, high = 0.0, float(2 ** next(bits for bits in (10, 12, 14, 16) if high < 2**bits) - 1)
    if (low, high) not in ((0.0, 1.0), (0.0, 255.0), (0.0, 65535.0)):
        _log.warning("%s: shown from %g (black) to %g (white); scale its values yourself to keep them", name, low, high)
    factor = 255 / ((high - low) or 1)
    scaled = np.empty(values.shape, np.uint8)
    for place, strip in enumerate(strips):
        part = np.nan_to_num((strip.astype(np.float64) - low) * factor, nan=0, posinf=0, neginf=0)
        scaled[place * rows : (place + 1) * rows] = np.clip(np.round(part), 0, 255)
    return scaled
