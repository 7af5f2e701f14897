"""Pictures from paths, bytes, data URLs or PIL, as 8-bit RGB; everything that cannot be one is refused in plain words.

Like the original, colour with alpha is converted by dropping alpha. Beyond it: EXIF orientation is applied, 16-bit and
float pictures are scaled to 8 bits instead of clipped, an animation gives its first frame, and a size is checked in the
header, before anything is decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
"""Largest accepted picture, width times height."""
MAX_RATIO = 200
"""Largest accepted ratio of the sides; beyond it tiles show nothing but smear."""


class ImageError(ValueError):
    """A picture that cannot be used; the message names it and says why."""


def load_image(source: Any, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture.

    Args:
        source: path, ``data:`` URL, bytes, or a PIL image.
        max_pixels: refuse larger ones before decoding. Pillow's own ``Image.MAX_IMAGE_PIXELS`` applies as well.

    Returns:
        An RGB image of 8 bits, upright.

    Raises:
        ImageError: missing, no picture, truncated, too large or too thin.
    """
    name, opened = _open(source)
    width, height = opened.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name} is {width}x{height}, {width * height / 1e6:,.0f} megapixels; the limit is "
            f"{max_pixels / 1e6:,.0f}: "
            "scale it down, or raise max_pixels if you trust the file"
        )
    if min(width, height) < 1:
        raise ImageError(f"{name} is {width}x{height}: it has no pixels")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(
            f"{name} is {width}x{height}: one side is more than {MAX_RATIO} times the other; crop it or pad it"
        )
    try:
        opened.load()
        return _to_rgb(_upright(opened))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{name} is damaged or cut off ({error}); fetch it again") from None


def _open(source: Any) -> tuple[str, Image.Image]:
    """A name for messages, and the picture with only its header read."""
    if isinstance(source, Image.Image):
        return "the picture", source
    if isinstance(source, bytes | bytearray):
        name, stream = "the picture", io.BytesIO(source)
    elif isinstance(source, str) and source.startswith("data:"):
        name, stream = "the data URL", io.BytesIO(_decode_url(source))
    elif isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ImageError(f"{source} is a web address; download it and give the file")
    elif isinstance(source, str | Path):
        name = str(source)
        try:
            stream = io.BytesIO(Path(source).read_bytes())
        except FileNotFoundError:
            raise ImageError(f"{name} does not exist") from None
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror}") from None
    else:
        raise ImageError(f"a picture must be a path, data URL, bytes or PIL image, not {type(source).__name__}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return name, Image.open(stream)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is far too large: {error}; scale it down") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise ImageError(f"{name} is no picture that Pillow knows") from None


def _decode_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ImageError("the data URL is not base64; write data:image/png;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error:
        raise ImageError("the data URL is not valid base64") from None


def _upright(image: Image.Image) -> Image.Image:
    """First frame, turned as EXIF says."""
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # says what its palette means; alpha is dropped next
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits -> 0..255: 16-bit range, 8-bit range or 0..1, whichever holds the largest."""
    values = np.nan_to_num(values.astype(np.float64))
    largest = values.max(initial=0.0)
    fraction = bool((values != np.round(values)).any())
    scale = 255.0 if fraction and largest <= 1 else 1.0 if largest <= 255 else 1 / 257
    return np.clip(np.round(values * scale), 0, 255).astype(np.uint8)
