"""BDD-X's official files as clips: segments of videos from a table, split lists, frames, and records of the drive.

A folder holds, or holds in ``BDD-X-Dataset/``, ``BDD-X-Annotations_v1.csv`` with ``train.txt``, ``val.txt`` and
``test.txt`` (lines such as ``6296_1f0fff77-a50aae97``). A row of the table is one video, with up to fifteen segments
``Answer.1start``, ``Answer.1end`` (seconds), ``Answer.1action``, ``Answer.1justification``. Beside them lie

* ``frames/VIDEO/MILLISECONDS.jpg``, or, with ``frames.json`` = ``{"fps": 2}``, ``frames/VIDEO/`` with images in order;
* else ``videos/VIDEO.mov``, of which those frames are taken (extra ``video``) and kept;
* ``info/VIDEO.json`` of BDD100K: ``startTime`` and ``locations`` with ``timestamp`` (ms), ``speed`` (m/s), ``course``.

Unusual: a segment is cut into FRAMES equal steps. Their beginnings are shown; the signals are those of its end. The
turning angle is the change of course over the last step, in degrees, clockwise (to the right) positive, as ADAPT has
it. GPS writes -1 where it knows no speed or course: such signals, like missing ones, are null.
Source: JinkyuKimUCB/BDD-X-dataset; JinkyuKimUCB/explainable-deep-driving ``Step1``; ADAPT ``vision_language_tsv.py``.
"""

from __future__ import annotations

import bisect
import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mini_internvl.benchmarks._video_frames import take_frames
from mini_internvl.data import DataError, Fault, Row
from mini_internvl.data.files import scan
from mini_internvl.data.workers import threaded_map
from mini_internvl.files import FileError, read_object, read_text

TABLE = "BDD-X-Annotations_v1.csv"
FOLDERS = ("", "BDD-X-Dataset")  # where it lies
LISTS = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
SEGMENTS = 15  # of a row, at most
PARTS = ("start", "end", "action", "justification")  # of a segment
FRAMES = 8  # of a clip
NEAR = 0.5  # seconds that a frame may lie from the moment that it shows
GAP = 2.5  # seconds between two records that may be interpolated
VIDEO_ENDINGS = (".mov", ".mp4", ".avi", ".mkv")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
BELOW = ("", "train", "val", "test", "100k/train", "100k/val", "100k/test")  # of videos and info, as published


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One action of a video with its reason."""

    id: str
    place: str  # in the table
    start: float  # seconds from the video's beginning
    end: float
    action: str
    justification: str

    def moments(self) -> list[float]:
        """The seconds that are shown, and last the one whose signals are asked for."""
        step = (max(self.end, self.start + 1) - self.start) / FRAMES
        return [self.start + step * number for number in range(FRAMES + 1)]


@dataclass(frozen=True, kw_only=True)
class Video:
    """One row of the table."""

    name: str
    segments: Sequence[Segment]
    faults: Sequence[Fault] = ()


def find_table(root: str | Path) -> Path | None:
    """The annotations in ``root``, if they are there."""
    return next((place for name in FOLDERS if (place := Path(root) / name / TABLE).is_file()), None)


def official_clips(root: Path, table: Path, split: str, *, odd: bool = True) -> Iterator[dict[str, Any] | Fault]:
    """The clips of a split in the table's order, as rows of ``clips.jsonl``; ``frames`` are paths from ``root``.

    ``odd`` tells what is odd in the table; the official scripts pass over it.
    DataError: a list is missing, or PyAV where frames must be taken from videos, or the frames' rate is none.
    """
    lists = {name: _listed(table.parent / file) for name, file in LISTS.items()}
    work = functools.partial(_clips, root, table, odd, _rate(root))
    for found in threaded_map(work, _videos(table, split, lists), min(8, os.cpu_count() or 1)):
        yield from found


def _listed(path: Path) -> set[str]:
    """Names of the videos of a split: what follows the number in each line."""
    return {line.strip().partition("_")[2] for line in read_text(path, error=DataError).splitlines() if line.strip()}


def _videos(table: Path, split: str, lists: Mapping[str, set[str]]) -> Iterator[Video]:
    """The rows of a split; what belongs to no split is told with the training split."""
    times = Counter[str]()
    for row in scan(table):
        if isinstance(row, Fault):
            yield Video(name="", segments=(), faults=[row])
            continue
        name = Path(row.raw.get("Input.Video", "").strip().rpartition("/")[2]).stem
        if not name:
            continue  # the table ends with thousands of rows of commas
        times[name] += 1
        if name in lists[split]:
            yield _video(row, name if times[name] == 1 else f"{name}#{times[name]}")
        elif split == "train" and not any(name in names for names in lists.values()):
            reason = f"the video {name} is in none of {', '.join(LISTS.values())}"
            yield Video(name=name, segments=(), faults=[Fault(file=table, place=row.place, reason=reason)])


def _video(row: Row, name: str) -> Video:
    """The segments of a row; an incomplete or impossible one is a fault."""
    segments, faults = list[Segment](), list[Fault]()
    for number in range(1, SEGMENTS + 1):
        cells = {part: str(row.raw.get(f"Answer.{number}{part}") or "").strip() for part in PARTS}
        if not any(cells.values()):
            continue
        place = f"{row.place}, segment {number}"
        start, end = (_seconds(cells[part]) for part in ("start", "end"))
        if missing := [part for part, cell in cells.items() if not cell]:
            reason = f"no {', '.join(missing)}"
        elif start is None or end is None:
            reason = f'start and end are "{cells["start"]}" and "{cells["end"]}"; they must be seconds'
        elif end < start:
            reason = f"it ends at {cells['end']} s, before its start at {cells['start']} s"
        else:
            known = {"action": cells["action"], "justification": cells["justification"]}
            segments.append(Segment(id=f"{name}_{number}", place=place, start=start, end=end, **known))
            continue
        faults.append(Fault(file=row.file, place=place, reason=reason))
    if not segments and not faults:
        faults.append(Fault(file=row.file, place=row.place, reason=f"the video {name} has no segment"))
    return Video(name=name.partition("#")[0], segments=segments, faults=faults)


def _seconds(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None


def _clips(root: Path, table: Path, odd: bool, rate: float | None, video: Video) -> list[dict[str, Any] | Fault]:
    """A video's faults and clips."""
    found: list[dict[str, Any] | Fault] = [*video.faults] if odd else []
    if not video.segments:
        return found
    wanted = sorted({moment for segment in video.segments for moment in segment.moments()[:-1]})
    try:
        frames = Frames(root, video.name, rate, wanted)
        drive = Drive.read(root, video.name)
    except FileError as error:
        return [*found, *(Fault(file=table, place=segment.place, reason=str(error)) for segment in video.segments)]
    for segment in video.segments:
        *shown, asked = segment.moments()
        names = [frames.at(moment) for moment in shown]
        if None in names:
            reason = f"no frame of the video {video.name} at {shown[names.index(None)]:.2f} s ({frames.where})"
            found.append(Fault(file=table, place=segment.place, reason=reason))
            continue
        found.append(
            {
                "id": segment.id,
                "frames": list(dict.fromkeys(names)),
                "description": segment.action,
                "justification": segment.justification,
                "speed": drive.speed(asked),
                "turning_angle": drive.turn(shown[-1], asked),
            }
        )
    return found


class Frames:
    """The frames of one video by their time; missing ones are taken from the video, if it is there."""

    def __init__(self, root: Path, video: str, rate: float | None, wanted: Sequence[float]) -> None:
        """``rate`` is of images in order, ``None`` where their names are times. FileError: the video is damaged."""
        self.root, self.folder, self.rate = root, root / "frames" / video, rate
        self.where = f"in {self.folder}"
        self._list()
        missing = [moment for moment in wanted if self.at(moment) is None]
        if missing and rate is None:
            path = _place(root / "videos", video, VIDEO_ENDINGS)
            self.where += " or a video" if path is None else f" or {path}"
            if path is not None:
                take_frames(path, self.folder, missing)
                self._list()

    def _list(self) -> None:
        """Read the folder: the frames' times, in order, and their paths from the root."""
        names = sorted(os.listdir(self.folder)) if self.folder.is_dir() else []
        parts = [(name, *os.path.splitext(name)) for name in names]
        images = [(name, stem) for name, stem, ending in parts if ending.lower() in IMAGE_ENDINGS]
        if self.rate is not None:
            placed = [(number / self.rate, name) for number, (name, _) in enumerate(images)]
        else:
            placed = sorted((int(stem) / 1000, name) for name, stem in images if stem.isdecimal())
        self.times = [time for time, _ in placed]
        self.paths = [f"frames/{self.folder.name}/{name}" for _, name in placed]

    def at(self, moment: float) -> str | None:
        """The nearest frame, if one is near."""
        place = bisect.bisect(self.times, moment)
        near = range(max(0, place - 1), min(len(self.times), place + 1))
        found = min(near, key=lambda number: abs(self.times[number] - moment), default=None)
        return None if found is None or abs(self.times[found] - moment) > NEAR else self.paths[found]


def _rate(root: Path) -> float | None:
    """Frames a second of folders with images in order; ``None`` where names are times."""
    path = root / "frames.json"
    if not path.is_file():
        return None
    given = read_object(path, error=DataError).get("fps")
    rate = _number(given)
    if rate is None or not 0 < rate <= 1000:
        raise DataError(f'{path}: fps is {given!r}; write the frames a second, such as {{"fps": 2}}')
    return rate


def _place(folder: Path, name: str, endings: Sequence[str]) -> Path | None:
    """A file of a video below ``folder``, in one of the published places."""
    tried = (folder / below / f"{name}{ending}" for below in BELOW for ending in endings)
    return next((path for path in tried if path.is_file()), None)


@dataclass(frozen=True, kw_only=True)
class Drive:
    """What was recorded during a video: points (seconds from its beginning, value), in order."""

    speeds: Sequence[tuple[float, float]] = ()  # m/s
    courses: Sequence[tuple[float, float]] = ()  # degrees, clockwise from north

    @classmethod
    def read(cls, root: Path, video: str) -> Drive:
        """The record of a video, empty without its file; FileError: the file is damaged."""
        path = _place(root / "info", video, (".json",))
        if path is None:
            return cls()
        content = read_object(path)
        records = content.get("locations")
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise FileError(f'{path} has no list "locations"; fetch it again')
        if not records:
            return cls()
        begin = _number(content.get("startTime")) or _number(records[0].get("timestamp"))
        times = [_number(record.get("timestamp")) for record in records]
        if begin is None or None in times:
            raise FileError(f"{path} has a record without timestamp; fetch it again")
        seconds = [(time - begin) / 1000 for time in times if time is not None]

        def points(key: str) -> list[tuple[float, float]]:
            values = (_number(record.get(key)) for record in records)
            known = zip(seconds, values, strict=True)
            return sorted((time, value) for time, value in known if value is not None and value >= 0)

        return cls(speeds=points("speed"), courses=points("course"))

    def speed(self, moment: float) -> float | None:
        """m/s, to two decimals."""
        found = _at(self.speeds, moment, lambda first, last: last - first)
        return None if found is None else round(found, 2) + 0.0

    def turn(self, first: float, last: float) -> float | None:
        """Degrees from one moment to the other, to the right positive, -180 to 180, to two decimals."""
        before, after = (_at(self.courses, moment, _turned) for moment in (first, last))
        return None if before is None or after is None else round(_turned(before, after), 2) + 0.0


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def _turned(first: float, last: float) -> float:
    """The shorter way round from one course to another."""
    return (last - first + 180) % 360 - 180


def _at(points: Sequence[tuple[float, float]], moment: float, change: Callable[[float, float], float]) -> float | None:
    """The value at a moment: between two records, or of one that is near."""
    place = bisect.bisect(points, (moment, math.inf))
    before, after = points[max(0, place - 1) : place], points[place : place + 1]
    if before and after and after[0][0] - before[0][0] <= GAP:
        (start, first), (end, last) = before[0], after[0]
        return first + change(first, last) * (moment - start) / (end - start)
    near = min((*before, *after), key=lambda point: abs(point[0] - moment), default=None)
    return near[1] if near and abs(near[0] - moment) <= NEAR else None
