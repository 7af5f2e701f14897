"""Images from paths, bytes, data URLs or PIL, as 8-bit RGB; what cannot be one is refused in plain words.

Like the original, colour with alpha is converted by dropping alpha, and colour profiles are not applied. Beyond it:
EXIF orientation is applied, grey of more than 8 bits is scaled instead of clipped, an animation gives its first frame,
and the size is checked in the header, before anything is decoded.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import contextlib
import io
import os
import threading
import urllib.parse
import warnings
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
"""Largest accepted image, width times height."""
MAX_PIXELS_VARIABLE = "MINIVL_MAX_PIXELS"
"""Environment variable with another limit."""
MAX_RATIO = 200
"""Largest accepted ratio of the sides; beyond it tiles show nothing but smear."""
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded, by Pillow's names; others are rare, or start another program to be read (EPS)."""

_reading = threading.Lock()


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


def load_image(
    source: str | os.PathLike[str] | bytes | bytearray | Image.Image, *, max_pixels: int | None = None
) -> Image.Image:
    """Open an image.

    Args:
        source: path, ``data:`` URL, bytes, or a PIL image (which is not changed).
        max_pixels: refuse larger ones before decoding; ``None`` takes the environment variable MINIVL_MAX_PIXELS, or
            100 million.

    Returns:
        An RGB image of 8 bits, upright. Grey of 16 or 32 bits is scaled by its range (see :func:`_to_8_bits`).

    Raises:
        ImageError: missing, no image, cut off, too large, too thin, or without pixels.
    """
    limit = _limit() if max_pixels is None else max_pixels
    if isinstance(source, Image.Image):
        return _finish(source, "the image", limit)
    name, stream = _stream(source)
    with stream:
        return _finish(_header(stream, name), name, limit)


def image_dimensions(source: str | os.PathLike[str] | bytes | bytearray | Image.Image) -> tuple[int, int]:
    """(width, height) of the upright image; of a file only the header is read.

    Raises:
        ImageError: missing, or no image.
    """
    if isinstance(source, Image.Image):
        return _upright_size(source)
    name, stream = _stream(source)
    with stream:
        return _upright_size(_header(stream, name))


def _upright_size(image: Image.Image) -> tuple[int, int]:
    try:
        with _metadata():
            hidden = image.format == "PNG" and "exif" not in image.info  # Pillow would decode it all to look for EXIF
            turned = image.format == "TIFF"  # Pillow gives its size as it will be
            sideways = not hidden and not turned and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception:  # EXIF parsing raises many kinds
        sideways = False
    width, height = image.size
    return (height, width) if sideways else (width, height)


def _limit() -> int:
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if not text:
        return MAX_PIXELS
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise ImageError(f'{MAX_PIXELS_VARIABLE} is "{text}"; set it to a number of pixels, for instance 2e8') from None


def _stream(source: object) -> tuple[str, BinaryIO]:
    """A name for messages, and the file's bytes."""
    if isinstance(source, bytes | bytearray):
        return "the given data", io.BytesIO(source)
    if isinstance(source, str) and source.startswith("data:"):
        return "the data URL", io.BytesIO(_decode_url(source))
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ImageError(f"{_short(source)} is a web address; download it and give the file")
    if hasattr(source, "read"):
        return "the given data", io.BytesIO(source.read())
    if not isinstance(source, str | os.PathLike):
        raise ImageError(f"an image must be a path, data URL, bytes or PIL image, not {type(source).__name__}")
    source = os.fspath(source)  # may make the file first
    name = _short(str(source))
    try:
        return name, open(source, "rb")
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist; check the path") from None
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError as error:  # for instance a null character in the path
        raise ImageError(f"{name} is no path: {error}") from None


def _short(name: str) -> str:
    """A path fit for a message of one line."""
    name = name if name.isprintable() else repr(name)
    return name if len(name) <= 200 else f"{name[:100]}... ({len(name)} characters)"


def _decode_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ImageError("the data URL is not base64; write data:image/png;base64,...")
    try:
        return base64.b64decode(urllib.parse.unquote(body), validate=True)
    except binascii.Error:
        raise ImageError("the data URL is not valid base64; encode the file again") from None


@contextlib.contextmanager
def _metadata() -> Iterator[None]:
    """One thread at a time, and without Pillow's warnings of broken EXIF, which does not concern the pixels."""
    with _reading, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _header(stream: BinaryIO, name: str) -> Image.Image:
    """Open an image without decoding it."""
    # Pillow's own size limit would hide the size from our message and could not be raised by max_pixels. Its only
    # switch is global, so it is off only while a header is read; the lock keeps our own threads apart.
    with _metadata():
        kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(stream)
        except UnidentifiedImageError:
            raise ImageError(_why_unknown(stream, name)) from None
        except Exception as error:  # a broken header makes plug-ins raise many kinds
            raise ImageError(f"{name} is damaged or cut off ({_line(error)}); fetch it again") from None
        finally:
            Image.MAX_IMAGE_PIXELS = kept
    if image.format not in FORMATS:
        raise ImageError(
            f"{name} is an image of the format {image.format}, which is not read; convert it to PNG or JPEG"
        )
    return image


def _why_unknown(stream: BinaryIO, name: str) -> str:
    stream.seek(0)
    start = stream.read(512)
    if not start:
        return f"{name} is empty; fetch it again"
    kind = "its content is text" if _is_text(start) else "its first bytes are of no known format, or it is cut off"
    return f"{name} is not an image: {kind}; give a PNG, JPEG, WebP, GIF, BMP or TIFF file"


def _is_text(start: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()  # the last character may be cut
    try:
        return "\0" not in decoder.decode(start)
    except UnicodeDecodeError:
        return False


def _finish(image: Image.Image, name: str, limit: int) -> Image.Image:
    """Check the size, decode, turn upright and convert."""
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width}x{height}: it has no pixels")
    if width * height > limit:
        raise ImageError(
            f"{name} is {width}x{height}, that is {width * height:,} pixels, more than the limit of {limit:,}; "
            f"scale it down, or raise max_pixels or {MAX_PIXELS_VARIABLE} if you trust the file"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(
            f"{name} is {width}x{height}: one side is more than {MAX_RATIO} times the other; crop it or pad it"
        )
    try:
        image.load()
    except Exception as error:  # decoders raise many kinds
        raise ImageError(f"{name} is damaged or cut off ({_line(error)}); fetch it again") from None
    return _to_rgb(_upright(image))


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; EXIF that cannot be read says nothing."""
    try:
        with _metadata():
            turned = image.getexif().get(0x0112, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # EXIF parsing raises many kinds
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours, without Pillow's warning; alpha is dropped next
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey of more than 8 bits (H, W) -> uint8 (H, W).

    The largest value tells the range: floats up to 1 are 0..1; up to 255 it is 0..255, kept as it is; up to 65535 it is
    0..65535, divided by 257; beyond, the largest value becomes white. Negative values, NaN and infinity become black.
    Images of 10 or 12 bits stored in 16 come out dark, as in other viewers: scale them before.
    """
    finite = np.where(np.isfinite(values), values, 0).astype(np.float64)
    largest = finite.max(initial=0.0)
    if largest <= 1 and np.issubdtype(values.dtype, np.floating):
        scale = 255.0
    elif largest <= 255:
        scale = 1.0
    else:
        scale = 1 / 257 if largest <= 65535 else 255 / largest
    return np.clip(np.round(finite * scale), 0, 255).astype(np.uint8)
