"""DriveLM's files: questions by scene and frame, InternVL's prompts, and the six views stitched into one image.

A stitched image is made when it is first opened, kept beside the data in ``stitch/`` (in the system's temporary
folder where that cannot be written), and looks like the official tool's: each view resized to 896x448, its camera's
name in magenta at the top left, JPEG at Pillow's default quality. Without DejaVu Sans Bold it has Pillow's own letters.
Source: InternVL ``tools/images_stitching.py``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._files import Faults, find, image_folders, read_json, read_rows, with_val
from mini_internvl.data import DataError
from mini_internvl.metrics.drivelm import CAMERAS, CELL, COLUMNS, ROWS

PARTS = ("perception", "prediction", "planning", "behavior")  # a frame's questions are numbered through these in order
PROMPTS = "drivelm_val.jsonl"  # InternVL's converted questions
INK = (255, 0, 255)
LETTERS = 50  # size of a camera's name in points


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question of the official file."""

    id: str
    scene: str
    frame: str
    number: int  # in its frame, from 0
    part: str
    row: Mapping[str, Any]  # ``Q``, ``A``, ``tag`` and what else the file has
    views: Mapping[str, str]  # camera -> image as the file names it


def read_questions(path: Path, *, scored: bool) -> list[Asked]:
    """All questions of an official file in its order: scene -> ``key_frames`` -> frame -> ``QA`` and ``image_paths``.

    ``scored`` asks for answers and tags. DataError lists the frames and questions that lack something.
    """
    content = read_json(path)
    faults = Faults(path)
    found = []
    for scene, frame, data in _frames(path, content, faults):
        blocks = data.get("QA") if isinstance(data, dict) else None
        if not isinstance(blocks, dict):
            faults.add(f"{scene}_{frame}", "no QA")
            continue
        rows = [(part, row) for part in PARTS for row in blocks.get(part) or ()]
        for number, (part, row) in enumerate(rows):
            name = f"{scene}_{frame}_{number}"
            fault = _fault(row, scored=scored)
            if fault:
                faults.add(name, fault)
            views = data.get("image_paths") or {}
            found.append(Asked(id=name, scene=scene, frame=frame, number=number, part=part, row=row, views=views))
    faults.check("it needs Q, and to be scored A and tag, which the challenge's extract_data.py writes")
    return found


def _frames(path: Path, content: Any, faults: Faults) -> Iterator[tuple[str, str, Any]]:
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold an object of scenes; get the file again from its source")
    for scene, data in content.items():
        frames = data.get("key_frames") if isinstance(data, dict) else None
        if isinstance(frames, dict):
            yield from ((scene, frame, value) for frame, value in frames.items())
        else:
            faults.add(scene, "no key_frames")


def _fault(row: Any, *, scored: bool) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("Q"), str):
        return "no Q"
    if scored and not isinstance(row.get("A"), str):
        return "no A"
    tags = row.get("tag")
    if scored and not (isinstance(tags, list) and all(tag in (0, 1, 2, 3) for tag in tags)):
        return "no tag of 0 to 3"
    return ""


def read_prompts(root: str | Path, benchmark: str) -> tuple[Path, list[dict[str, Any]]] | None:
    """InternVL's rows: id, image, text and question; ``None`` without its file; DataError lists bad rows."""
    path = find(root, benchmark, with_val(PROMPTS))
    if path is None:
        return None
    faults = Faults(path)
    found = []
    for number, row in enumerate(read_rows(path, ("id", "image", "conversations", "question_old")), 1):
        turns = row["conversations"]
        first = turns[0] if isinstance(turns, list) and turns else None
        text = first.get("value") if isinstance(first, dict) else None
        if not isinstance(text, str):
            faults.add(number, "conversations do not begin with a question")
            continue
        asked = {"id": str(row["id"]), "image": str(row["image"]), "text": text.strip()}
        found.append({**asked, "question": str(row["question_old"])})
    faults.check()
    return path, found


@dataclass(frozen=True, kw_only=True)
class Stitched(os.PathLike[str]):
    """The path of a stitched image, which is made when somebody first opens it."""

    path: Path
    views: tuple[Path, ...]  # in the order of CAMERAS

    def __fspath__(self) -> str:
        if self.path.is_file():
            return str(self.path)
        image = stitch(self.views)
        place = hashlib.sha256(str(self.path.parent.resolve()).encode()).hexdigest()[:16]
        spare = Path(tempfile.gettempdir()) / "mini_internvl" / place / self.path.name
        if spare.is_file():
            return str(spare)
        try:
            return _save(image, self.path)
        except OSError:  # a read-only data folder
            return _save(image, spare)

    def __str__(self) -> str:
        return str(self.path)


def _save(image: Any, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{threading.get_ident()}.part")
    try:
        image.save(temporary, "JPEG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return str(path)


def stitch(views: Sequence[Path]) -> Any:
    """The PIL image of six views, 2688x896, in the order of CAMERAS; DataError names a view that cannot be read."""
    from PIL import Image, ImageDraw, ImageFont

    width, height = CELL
    try:
        font: Any = ImageFont.truetype("DejaVuSans-Bold.ttf", LETTERS)
    except OSError:
        font = ImageFont.load_default(LETTERS)
    whole = Image.new("RGB", (width * COLUMNS, height * ROWS))
    for place, (camera, path) in enumerate(zip(CAMERAS, views, strict=True)):
        try:
            with Image.open(path) as opened:
                view = opened.convert("RGB").resize(CELL)
        except OSError as error:
            raise DataError(f"the view {path} cannot be read ({error}); fetch it again") from None
        ImageDraw.Draw(view).text((0, 0), camera, fill=INK, font=font)
        row, column = divmod(place, COLUMNS)
        whole.paste(view, (column * width, row * height))
    return whole


class Views:
    """Finds a frame's images below the folder of an annotation file."""

    def __init__(self, path: Path) -> None:
        self.faults = Faults(path)
        self.folders = [*image_folders(path, "drivelm"), path.parent.parent]
        base = path.parent.parent if path.parent.name == "val" else path.parent
        self.stitched = [folder / "stitch" for folder in self.folders] + self.folders
        self.target = base / "stitch"

    def whole(self, name: str, views: Mapping[str, str] | None) -> str | Stitched | None:
        """The stitched image ``name``, ready or to be made; ``None``, with a fault noted, without one."""
        for folder in self.stitched:
            if (folder / name).is_file():
                return str(folder / name)
        if views is None:
            self.faults.add(name, "no such stitched image")
            return None
        single = self.single(name, views)
        return Stitched(path=self.target / name, views=tuple(single.values())) if single else None

    def single(self, name: str, views: Mapping[str, str]) -> dict[str, Path]:
        """Camera -> image of all six views; empty, with a fault noted, if one is missing."""
        found = {}
        for camera in CAMERAS:
            path = self._find(views.get(camera, ""))
            if path is None:
                self.faults.add(name, f"no view {views.get(camera) or camera}")
                return {}
            found[camera] = path
        return found

    def _find(self, name: str) -> Path | None:
        """A view named such as ``../nuscenes/samples/CAM_FRONT/x.jpg``; nuScenes itself has no folder ``nuscenes``."""
        inside = name.lstrip("./")
        names = [inside, inside.removeprefix("nuscenes/")]
        paths = (folder / name for folder in self.folders for name in names if name)
        return next((path for path in paths if path.is_file()), None)

    def check(self) -> None:
        """Raise DataError if anything was missing."""
        self.faults.check("put nuScenes' samples/ or InternVL's stitched images beside the file")
