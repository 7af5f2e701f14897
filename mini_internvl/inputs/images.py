"""Images from paths, bytes, data URLs or PIL, as 8-bit RGB; what cannot be one is refused in plain words.

Like the original, colour with alpha is converted by dropping alpha, and colour profiles are not applied. Beyond it:
EXIF orientation is applied, grey of more than 8 bits is scaled instead of clipped, DICOM is shown through its window,
an animation gives its first frame, and what decoding costs, in memory and in time, is estimated from the header and
bounded before anything is decoded.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import io
import logging
import os
import struct
import threading
import urllib.parse
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from mini_internvl.files import FileError, check_file
from mini_internvl.inputs.grey import to_8_bits

MAX_PIXELS = 100_000_000
MAX_PIXELS_VARIABLE = "MINIVL_MAX_PIXELS"  # environment variable with another limit
PIXEL_BYTES = 10
"""Memory that decoding may take for each pixel of the limit: 8-bit images fit, see :func:`_cost` for the others."""
MAX_BYTES = 1_000_000_000
MAX_SCANS = 16
"""Passes over a JPEG of the largest size; a smaller one may have more in proportion. Encoders write about 10."""
MAX_ICON_PIXELS = 2**22  # largest accepted image within an icon file, whose directory cannot tell its size
MAX_RATIO = 200  # largest accepted ratio of the sides; beyond it tiles show nothing but smear
KEPT_HEADERS = 1 << 16  # files whose sizes are kept
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # what whole files of a format end with
END_BYTES = 64  # from the end, in which that is looked for
DICOM = slice(128, 132)  # bytes of a file that say "DICM"
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded, by Pillow's names; others are rare, or start another program to be read (EPS)."""

_reading = threading.Lock()
_log = logging.getLogger(__name__)
logging.getLogger("PIL").addHandler(logging.NullHandler())  # Pillow's log is for programs, not for the terminal

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what puts the image upright."""


class ImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


class LazyImage(ABC):
    """An image that is made when it is opened, such as a frame of a video; ``str()`` names it in messages."""

    @property
    @abstractmethod
    def key(self) -> str:
        """Tells it from every other one."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(width, height) that :meth:`open` gives."""

    @abstractmethod
    def open(self) -> Image.Image:
        """The image; ImageError says why there is none."""


ImageSource = str | os.PathLike[str] | bytes | bytearray | Image.Image | LazyImage
"""Path, ``data:`` URL, bytes, a PIL image, which is not changed, or one that is made when it is opened; any other
object with ``read()`` gives its bytes."""


def load_image(source: ImageSource, *, scale: int = 1) -> Image.Image:
    """Open an image as RGB of 8 bits, upright, its sides enlarged ``scale`` times, bilinearly.

    Grey of more bits is scaled by its range (see ``inputs.grey``). ImageError when it is missing, no image, cut off,
    too large, too thin, or without pixels. The environment variable MINIVL_MAX_PIXELS raises the limit of 100 million
    pixels; modes and formats that take more memory than 10 bytes a pixel are refused sooner.
    """
    with _opened(source, scale) as (image, name):
        _decode(image, name)
        turn = TURNS.get(_orientation(image))
        image = _to_rgb(image if turn is None else image.transpose(turn), name)
        if turn is not None:
            image.info.clear()  # EXIF or XMP would have the copy turned again
    return image if scale == 1 else image.resize((image.width * scale, image.height * scale), Image.Resampling.BILINEAR)


def image_dimensions(source: ImageSource, *, scale: int = 1) -> tuple[int, int]:
    """(width, height) that :func:`load_image` would give, from the header alone; the same errors, but for damage
    within.

    A JPEG or PNG whose end is missing is decoded, to learn whether it can be. What is found of a file is kept until it
    changes.
    """
    if isinstance(source, LazyImage):
        (width, height), sideways = source.size, False
        _check_size(source.size, str(source), scale)
    elif isinstance(source, str) and (facts := _file_facts(source)):
        width, height, sideways = _known_dimensions(source, facts, _limit())
        _check_scale(width, height, short(source), scale)
    else:
        width, height, sideways = _dimensions(source, scale)
    width, height = width * scale, height * scale
    return (height, width) if sideways else (width, height)


def _file_facts(source: str) -> tuple[int, int, int] | None:
    """What changes when a file does; ``None`` for what is no file that can be read."""
    if source.startswith(("data:", "http://", "https://")):
        return None
    try:
        facts = os.stat(source)
    except (OSError, ValueError):
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


@functools.lru_cache(maxsize=KEPT_HEADERS)
def _known_dimensions(path: str, facts: tuple[int, int, int], limit: int) -> tuple[int, int, bool]:
    return _dimensions(path, 1)


def _dimensions(source: ImageSource, scale: int) -> tuple[int, int, bool]:
    """Width and height as stored, and whether EXIF puts the image on its side."""
    with _opened(source, scale) as (image, name):
        _check_end(image, name)
        turned = image.format == "TIFF"  # Pillow gives its size as it will be
        return image.width, image.height, not turned and _orientation(image, headers=True) >= 5


@contextlib.contextmanager
def _opened(source: ImageSource, scale: int) -> Iterator[tuple[Image.Image, str]]:
    """An image, not decoded yet, whose header promises nothing too large, and its name for messages."""
    if isinstance(source, LazyImage | Image.Image):
        name = str(source) if isinstance(source, LazyImage) else "the image"
        image = source.open() if isinstance(source, LazyImage) else source
        _check_size(image.size, name, scale, image)
        yield image, name
        return
    name, stream = open_source(source)
    with stream:
        image = read_header(stream, name)
        _check_size(image.size, name, scale, image)
        _check_scans(image, stream, name)
        yield image, name


def _decode(image: Image.Image, name: str) -> None:
    try:
        with _metadata() if image.format in ("TIFF", "ICO", "DICOM") else contextlib.nullcontext():  # these warn late
            image.load()
    except ImageError:
        raise
    except Exception as error:  # decoders raise many kinds
        raise ImageError(f"{name} is damaged or cut off ({_line(error)}); fetch it again") from None


def _check_end(image: Image.Image, name: str) -> None:
    """ImageError where a file without the mark that its format ends with cannot be decoded."""
    mark, stream = ENDS.get(image.format or ""), getattr(image, "fp", None)
    if mark is None or stream is None:
        return
    place = stream.tell()
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - END_BYTES))
    whole = mark in stream.read()
    stream.seek(place)
    if not whole:
        _decode(image, name)


def _orientation(image: Image.Image, *, headers: bool = False) -> int:
    """How EXIF says that the image is turned, 1 to 8; 1, upright, where EXIF is damaged.

    With ``headers`` a PNG is decoded only where something may be told behind its pixels: Pillow decodes every one
    whose EXIF it has not met before them.
    """
    try:
        with _metadata():
            early = headers and image.format == "PNG" and not _late_metadata(image)
            found = (Image.Image.getexif(image) if early else image.getexif()).get(0x0112, 1)
    except (
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        OSError,
        SyntaxError,
        TypeError,
        ValueError,
        struct.error,
    ):
        return 1  # all kinds that fuzzing shows
    return found if found in range(1, 9) else 1


def _late_metadata(image: Image.Image) -> bool:
    """Whether a PNG file that is not decoded yet has texts or EXIF behind its pixels."""
    stream = getattr(image, "fp", None)
    if stream is None:
        return False
    place, late = stream.tell(), False
    stream.seek(8)
    while len(head := stream.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"IEND" or (late and kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt")):
            break
        late = late or kind == b"IDAT"
        stream.seek(length + 4, os.SEEK_CUR)
    stream.seek(place)
    return len(head) == 8 and head[4:] != b"IEND"


def _limit() -> int:
    text = os.environ.get(MAX_PIXELS_VARIABLE, "")
    if not text:
        return MAX_PIXELS
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise ImageError(f'{MAX_PIXELS_VARIABLE} is "{text}"; set it to a number of pixels, for instance 2e8') from None


def open_source(source: object) -> tuple[str, io.BytesIO | io.BufferedReader]:
    """A name for messages, and the undecoded bytes of an image, no PIL one; ImageError if nothing can be opened."""
    if isinstance(source, str) and source.startswith("data:"):
        return "the data URL", io.BytesIO(decode_url(source))
    if hasattr(source, "read"):
        source = source.read()
    if isinstance(source, bytes | bytearray):
        return "the given data", io.BytesIO(source)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(f"an image must be a path, data URL, bytes or PIL image, not {type(source).__name__}")
    refuse_web(source)
    text = os.fsdecode(source)  # may make the file first
    path, name = Path(text), short(text) or "the empty path"
    try:
        check_file(path, limit=MAX_BYTES)
        return name, path.open("rb")
    except FileError as error:
        raise ImageError(f"{name}{str(error).removeprefix(str(path))}") from None
    except OSError as error:
        raise ImageError(f"{name} cannot be read ({error.strerror}); check its permissions") from None


def refuse_web(source: object) -> None:
    """ImageError for a web address: nothing is ever fetched."""
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ImageError(f"{short(source)} is a web address; download it and give the file")


def short(name: str) -> str:
    """A path fit for a message of one line."""
    name = name if name.isprintable() else repr(name)
    return name if len(name) <= 200 else f"{name[:100]}... ({len(name)} characters)"


def decode_url(url: str) -> bytes:
    """The content of a ``data:`` URL; ImageError where it is not base64."""
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ImageError("the data URL is not base64; write data:image/png;base64,...")
    try:
        return base64.b64decode(urllib.parse.unquote(body), validate=True)
    except binascii.Error:
        raise ImageError("the data URL is not valid base64; encode the file again") from None


@contextlib.contextmanager
def _metadata() -> Iterator[None]:
    """One thread at a time, and without Pillow's warnings, of broken tags and of sizes that are checked here."""
    with _reading, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_header(stream: BinaryIO, name: str) -> Image.Image:
    """An image of a format that is read, not decoded yet and of any size; ImageError names it otherwise."""
    # Pillow's own size limit would hide the size from our message and could not be raised. Its only
    # switch is global, so it is off only while a header is read; the lock keeps our own threads apart. An icon is
    # decoded already here, and only Pillow sees the size of what is in it: it refuses twice its limit.
    start = stream.read(DICOM.stop)
    icon = start.startswith(b"\0\0\1\0")
    stream.seek(0)
    with _metadata():
        if start[DICOM] == b"DICM":
            from mini_internvl.inputs import dicom

            return dicom.read(stream, name)
        kept, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_ICON_PIXELS // 2 if icon else None
        try:
            image = Image.open(stream)
        except UnidentifiedImageError:
            raise ImageError(_why_unknown(stream, name)) from None
        except Image.DecompressionBombError:
            raise ImageError(f"{name} is an icon of more than {MAX_ICON_PIXELS:,} pixels; convert it to PNG") from None
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
    text = b"\0" not in start and start.decode("utf-8", "replace").count("\ufffd") <= 1  # its end may be cut
    kind = "its content is text" if text else "its first bytes are of no known format, or it is cut off"
    return f"{name} is not an image: {kind}; give a PNG, JPEG, WebP, GIF, BMP or TIFF file"


def _check_scans(image: Image.Image, stream: BinaryIO, name: str) -> None:
    """Refuse a JPEG that a decoder would go over again and again: each pass costs the whole image's time."""
    if image.format not in ("JPEG", "MPO") or not image.info.get("progressive"):
        return
    place = stream.tell()
    stream.seek(0)
    scans = stream.read().count(b"\xff\xda")  # the marker cannot stand within coded data
    stream.seek(place)
    if scans * image.width * image.height > MAX_SCANS * _limit():
        raise ImageError(
            f"{name} is a progressive JPEG of {scans} passes over {image.width}x{image.height} pixels, which would "
            "take too long; save it anew"
        )


def _cost(image: Image.Image) -> int:
    """Bytes that decoding a pixel and converting it to RGB take at the peak, by mode and format (tried out)."""
    bands = len(image.getbands())
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;") else 4
    converted = {"RGB": 0, "I": 8, "F": 8}.get(image.mode, 5 if image.mode.startswith("I;") else 4)
    decoder = {"JPEG2000": 5 * bands, "AVIF": 12, "WEBP": 12, "DICOM": 12}.get(image.format or "", 0)
    if image.info.get("progressive"):
        decoder = 2 * bands  # all coefficients are kept
    return stored + max(converted, decoder)


def _check_size(size: tuple[int, int], name: str, scale: int, image: Image.Image | None = None) -> None:
    """Refuse what has no pixels, or too many of them, by the header; ``image`` tells what decoding costs."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width}x{height}: it has no pixels")
    allowed = _limit() if image is None else _limit() * PIXEL_BYTES // max(PIXEL_BYTES, _cost(image))
    if width * height > allowed:
        kind = f" for {image.mode} in {image.format}" if image and allowed < _limit() else ""
        raise ImageError(
            f"{name} is {width}x{height}, that is {width * height:,} pixels, more than the limit of {allowed:,}{kind}; "
            f"scale it down, or raise {MAX_PIXELS_VARIABLE} if you trust the file"
        )
    if max(width, height) > MAX_RATIO * min(width, height):
        raise ImageError(
            f"{name} is {width}x{height}: one side is more than {MAX_RATIO} times the other; crop it or pad it"
        )
    _check_scale(width, height, name, scale)


def _check_scale(width: int, height: int, name: str, scale: int) -> None:
    if scale > 1 and scale**2 * width * height > _limit():
        raise ImageError(f"{name} is {width}x{height}; enlarged {scale} times it is too large; lower its scale")


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(to_8_bits(np.asarray(image), name)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours, without Pillow's warning; alpha is dropped next
    return image.convert("RGB")
