"""The six camera views of a DriveLM frame: found below the data folder, and stitched into one image.

A stitched image is made once, when it is first opened, and kept beside the data in ``stitch/`` (in the system's
temporary folder where that cannot be written). It looks like the official tool's: each view resized to 896x448, its
camera's name in magenta at the top left in DejaVu Sans Bold, JPEG at Pillow's default quality; the same views give the
same bytes. The font is the system's or that of an installed matplotlib. Without both the names are in Pillow's own
letters, which are narrower: nothing else differs.
Source: InternVL ``tools/images_stitching.py``.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._files import image_folders
from mini_internvl.data import DataError
from mini_internvl.files import new_file
from mini_internvl.metrics.drivelm import CAMERAS, CELL, COLUMNS, ROWS

INK = (255, 0, 255)
FONT = "DejaVuSans-Bold.ttf"
LETTERS = 50  # size of a camera's name in points


@dataclass(frozen=True, kw_only=True)
class Stitched(os.PathLike[str]):
    """The path of a stitched image, which is made when somebody first opens it."""

    path: Path
    views: tuple[Path, ...]  # in the order of CAMERAS

    def __fspath__(self) -> str:
        """DataError names a view that cannot be read."""
        place = hashlib.sha256(str(self.path.parent.resolve()).encode()).hexdigest()[:16]
        spare = Path(tempfile.gettempdir()) / "mini_internvl" / place / self.path.name
        for path in (self.path, spare):
            if path.is_file():
                return str(path)
        image = stitch(self.views)
        try:
            return _save(image, self.path)
        except OSError:  # a read-only data folder
            return _save(image, spare)

    def __str__(self) -> str:
        return str(self.path)


def _save(image: Any, path: Path) -> str:
    with new_file(path, flush=False) as draft:
        image.save(draft, "JPEG")
    return str(path)


def stitch(views: Sequence[Path]) -> Any:
    """The PIL image of six views, 2688x896, in the order of CAMERAS; DataError names a view that cannot be read."""
    from PIL import Image, ImageDraw

    width, height = CELL
    whole = Image.new("RGB", (width * COLUMNS, height * ROWS))
    for place, (camera, path) in enumerate(zip(CAMERAS, views, strict=True)):
        try:
            with Image.open(path) as opened:
                view = opened.convert("RGB").resize(CELL)
        except OSError as error:
            raise DataError(f"the view {path} cannot be read ({error}); fetch it again") from None
        ImageDraw.Draw(view).text((0, 0), camera, fill=INK, font=_font())
        row, column = divmod(place, COLUMNS)
        whole.paste(view, (column * width, row * height))
    return whole


@functools.lru_cache(maxsize=1)
def _font() -> Any:
    from PIL import ImageFont

    from mini_internvl.synth.base import package_folder

    matplotlib = package_folder("matplotlib")
    for place in (FONT, *([str(matplotlib / "mpl-data" / "fonts" / "ttf" / FONT)] if matplotlib else [])):
        try:
            return ImageFont.truetype(place, LETTERS)
        except OSError:
            continue
    return ImageFont.load_default(LETTERS)


class Views:
    """Finds a frame's images below the folder of an annotation file."""

    def __init__(self, path: Path) -> None:
        base = path.parent.parent if path.parent.name == "val" else path.parent
        self.folders = list(dict.fromkeys([*image_folders(path, "drivelm"), path.parent.parent]))
        self.stitched = [folder / "stitch" for folder in self.folders] + self.folders
        self.target = base / "stitch"

    def whole(self, name: str, views: Mapping[str, str] | None) -> str | Stitched:
        """The stitched image ``name``, ready or to be made; DataError says what is missing for it."""
        for folder in self.stitched:
            if (folder / name).is_file():
                return str(folder / name)
        if views is None:
            raise DataError("no such stitched image")
        return Stitched(path=self.target / name, views=tuple(self.single(views).values()))

    def single(self, views: Mapping[str, str]) -> dict[str, Path]:
        """Camera -> image of all six views; DataError names those that are missing."""
        found = {camera: self._find(views.get(camera, "")) for camera in CAMERAS}
        if missing := [str(views.get(camera) or camera) for camera, path in found.items() if path is None]:
            raise DataError(f"no view {', '.join(missing)}")
        return {camera: path for camera, path in found.items() if path is not None}

    def _find(self, name: object) -> Path | None:
        """A view named such as ``../nuscenes/samples/CAM_FRONT/x.jpg``; nuScenes itself has no folder ``nuscenes``."""
        inside = name.lstrip("./") if isinstance(name, str) else ""
        names = [inside, inside.removeprefix("nuscenes/")]
        paths = (folder / name for folder in self.folders for name in names if name)
        return next((path for path in paths if path.is_file()), None)
