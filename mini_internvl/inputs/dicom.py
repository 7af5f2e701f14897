"""DICOM, the format of medical images: read with its window and level, as 8-bit grey or RGB (extra ``dicom``).

A grey image goes the standard's way: stored values, the modality's scale (Hounsfield units for CT), then the first
window of the file, or its table of grey values; MONOCHROME1 is inverted, so that it looks as on a viewer. Without a
window the rule for grey of more than 8 bits holds (``inputs.grey``). Decoding is pydicom's.
Unusual: a file of many frames gives its first one to ``images.load_image``, as an animation does; :func:`frames` gives
one picture a frame. Files without the preamble and the mark "DICM", and those whose content is
deflated, which could grow without bound, are refused.
Source: DICOM PS3.3, C.7.6.3 and C.11.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile

from mini_internvl.inputs.grey import to_8_bits
from mini_internvl.inputs.images import DICOM, ImageError, ImageSource, load_image, open_source

if TYPE_CHECKING:
    from pydicom import Dataset

DEFLATED = b"1.2.840.10008.1.2.1.99"
HEAD = 4096  # bytes from the beginning, which hold the name of how the content is stored
INSTALL = "a DICOM file needs pydicom: pip install 'mini-internvl[dicom]'"
STRIP = 2**20  # pixels that are windowed at once
GREY = ("MONOCHROME1", "MONOCHROME2")


class DicomImage(ImageFile.ImageFile):
    """One frame as Pillow's kind of image: size and mode are the header's, pixels come when they are asked for."""

    format = "DICOM"
    format_description = "DICOM"

    def __init__(self, stream: BinaryIO, name: str, frame: int = 0) -> None:
        self.name, self.frame = name, frame
        super().__init__(stream, name)

    def _open(self) -> None:
        with warnings.catch_warnings():  # of odd values, which pydicom reads nevertheless
            warnings.simplefilter("ignore")
            self.header = _read_header(self.fp, self.name)
        self._size = (int(self.header.Columns), int(self.header.Rows))
        self._mode = "L" if self.header.PhotometricInterpretation in GREY else "RGB"
        self.n_frames = int(self.header.get("NumberOfFrames") or 1)
        self.is_animated = self.n_frames > 1

    def load(self) -> Any:
        """Decode the frame, once."""
        if self.fp is not None:
            self.fp.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture = _decode(self.fp, self.header, self.frame, self.name)
            if picture.size != self.size or picture.mode != self.mode:
                raise ValueError(f"its pixels are {picture.size}, its header says {self.size}")
            self.im, self.fp = picture.im, None
        return Image.Image.load(self)


def read(stream: BinaryIO, name: str, frame: int = 0) -> DicomImage:
    """A frame of a file, not decoded yet; ImageError where it cannot be, or pydicom is missing."""
    try:
        return DicomImage(stream, name, frame)
    except ImageError:
        raise
    except Exception as error:  # a broken header makes the parser raise many kinds
        line = str(error).partition("\n")[0] or type(error).__name__
        raise ImageError(f"{name} is a damaged DICOM file ({line}); fetch it again") from None


def frames(source: ImageSource) -> Iterator[Image.Image]:
    """Every frame of a DICOM file as an RGB picture, in order, one in memory; ImageError as from ``load_image``."""
    name, stream = open_source(source)
    with stream:
        if stream.read(DICOM.stop)[DICOM] != b"DICM":
            raise ImageError(f"{name} is no DICOM file")
        stream.seek(0)
        for frame in range(read(stream, name).n_frames):
            stream.seek(0)
            yield load_image(read(stream, name, frame))


def _read_header(stream: Any, name: str) -> Dataset:
    """All of a file but its pixels."""
    try:
        import pydicom
    except ModuleNotFoundError:
        raise ImageError(f"{name}: {INSTALL}") from None
    head = stream.read(HEAD)
    stream.seek(0)
    if DEFLATED in head:
        raise ImageError(f"{name} is a deflated DICOM file, which is not read; save it with another transfer syntax")
    header = pydicom.dcmread(stream, stop_before_pixels=True)
    if "Rows" not in header or "Columns" not in header:
        raise ImageError(f"{name} is a DICOM file without an image; give one of an image")
    return header


def _decode(stream: Any, header: Dataset, frame: int, name: str) -> Image.Image:
    """One frame as 8-bit grey or RGB."""
    from pydicom import pixels

    try:
        values = pixels.pixel_array(stream, index=frame)
    except RuntimeError as error:
        if "missing dependencies" not in str(error):
            raise
        kind = header.file_meta.TransferSyntaxUID.name
        raise ImageError(f"{name} is compressed as {kind}; to read it: pip install 'pylibjpeg[all]'") from None
    if header.PhotometricInterpretation == "PALETTE COLOR":
        values = pixels.apply_color_lut(values, header)
    if header.PhotometricInterpretation not in GREY:
        if values.dtype != np.uint8:
            values = (values >> (8 * values.dtype.itemsize - 8)).astype(np.uint8)
        return Image.fromarray(values[..., :3], "RGB")
    grey = _grey(values, _of_frame(header, frame), name)
    return Image.fromarray(255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey)


def _of_frame(header: Dataset, frame: int) -> Dataset:
    """The header with the scale and window that a file of many frames keeps for all frames, or for this one."""
    groups = [*(header.get("SharedFunctionalGroupsSequence") or [])[:1]]
    groups += (header.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    found = copy.copy(header)
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            found.update((group.get(name) or [{}])[0])
    return found


def _grey(values: np.ndarray, header: Dataset, name: str) -> np.ndarray:
    """Stored values (H, W) -> uint8 (H, W), black to white by the first window or table, in strips."""
    from pydicom import pixels

    if header.get("WindowWidth") in (None, "") and not header.get("VOILUTSequence"):
        return to_8_bits(pixels.apply_modality_lut(values, header), name)
    rows = max(1, STRIP // max(1, values.shape[1]))
    shown = np.empty(values.shape, np.uint8)
    for begin in range(0, len(values), rows):
        strip = pixels.apply_modality_lut(values[begin : begin + rows], header)
        shown[begin : begin + rows] = np.clip(np.round(_windowed(strip, header)), 0, 255)
    return shown


def _windowed(values: np.ndarray, header: Dataset) -> np.ndarray:
    """The modality's values as 0 (black) to 255 (white)."""
    from pydicom import Dataset, pixels

    if header.get("WindowWidth") in (None, ""):
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        return pixels.apply_voi(values, header) * (255 / (2**bits - 1))
    asked = Dataset()  # the window alone, and 0 to 255 as the range of what it gives
    for key in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
        if key in header:
            setattr(asked, key, header[key].value)
    asked.PhotometricInterpretation, asked.BitsStored, asked.PixelRepresentation = GREY[1], 8, 0
    return pixels.apply_windowing(values, asked)
