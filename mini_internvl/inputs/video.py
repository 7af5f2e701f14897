"""Videos as frames: few of them, found by seeking, each an image like any other. Needs PyAV (extra ``video``).

The released trainer's rule, with its random frame of each segment replaced by the middle one: the clip is cut into
equal segments, one a second within ``min_frames`` and ``max_frames``, and shows the middle frame of each; a clip that
has fewer frames shows them all and repeats the last. Unusual: a :class:`VideoFrame` is decoded when
:func:`mini_internvl.inputs.images.load_image` opens it, so that one is in memory at a time; frames that are opened in
order share one pass over the file. What a file costs is bounded: pixels of a frame, and pixels decoded for one.
Source: ``internvl/train/dataset.py`` (``get_frame_indices``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mini_internvl.files import FileError, check_file
from mini_internvl.inputs import images
from mini_internvl.inputs.images import ImageError, LazyImage

ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".flv", ".wmv", ".ogv")
"""Of file names that a command takes for videos; an animated GIF or PNG is one where a message says so."""
FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,apng,mxf"
"""Containers that are opened, by FFmpeg's names. Playlists, which open other files and addresses, are none of them."""
FPS, MIN_FRAMES, MAX_FRAMES = 1.0, 8, 40  # frames a second, and the fewest and most of a clip, unless a message says it
MOST_FRAMES = 1_000  # largest accepted ``max_frames``
MOST_SECONDS = 1e9  # largest accepted beginning and end of a clip
FRAME_PIXELS = 40_000_000  # of the largest frame that is decoded: 8K video has 33 million
DECODED_PIXELS = 5_000_000_000  # that may be decoded for one frame, those between it and the key frame before included
MOST_PACKETS = 2_000_000  # read of a file whose header does not say how long it is
FAR = 5.0  # seconds between two frames from which it is worth seeking in a file without an index
LATE = 1.0  # seconds by which a file may end sooner than its header says
KEPT_HEADERS = 4096
THREADS = 4  # of a decoder
_opened = threading.local()  # ``reader`` is the thread's last one: frames mostly come in order


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What is shown of a video."""

    fps: float = FPS
    """Frames a second, as far as ``min_frames`` and ``max_frames`` allow."""
    begin: float = 0.0
    """Seconds from the start of the video."""
    end: float | None = None
    """Seconds; ``None``, or later than the video ends, is its end."""
    min_frames: int = MIN_FRAMES
    max_frames: int = MAX_FRAMES

    def __post_init__(self) -> None:
        if not (_is_number(self.fps) and 0 < self.fps <= MOST_FRAMES):
            raise ValueError(f"fps is {self.fps!r}; it must be a number above 0 and at most {MOST_FRAMES:,}, such as 1")
        for name, value in (("begin", self.begin), ("end", self.end)):
            if value is not None and not (_is_number(value) and 0 <= value <= MOST_SECONDS):
                raise ValueError(f"the clip's {name} is {value!r}; it must be seconds from the video's start")
        if self.end is not None and self.end <= self.begin:
            raise ValueError(f"the clip ends at {self.end:g} s and begins at {self.begin:g} s; it must end later")
        for name, count in (("max_frames", self.max_frames), ("min_frames", self.min_frames)):
            if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_FRAMES:
                raise ValueError(f"{name} is {count!r}; it must be a whole number from 1 to {MOST_FRAMES:,}")
        if self.min_frames > self.max_frames:
            raise ValueError(f"min_frames is {self.min_frames}, more than max_frames, {self.max_frames}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a video says of itself, and its first frame."""

    width: int  # upright
    height: int
    seconds: float
    frames: int  # told by the header, or by its rate and length

    def moments(self, clip: Clip) -> list[float]:
        """Seconds of the frames of a clip, each in the middle of its own time; of frames of uneven length the times
        are even. ValueError: the clip begins after the video's end."""
        if clip.begin >= self.seconds:
            raise ValueError(f"the clip begins at {clip.begin:g} s, but the video has {self.seconds:.1f} s")
        rate = self.frames / self.seconds
        seconds = min(clip.end or self.seconds, self.seconds) - clip.begin
        first, count = int(clip.begin * rate), max(1, int(seconds * rate + 1e-6))
        wanted = min(clip.max_frames, max(clip.min_frames, round(seconds * clip.fps)))
        edges = [count * place // min(wanted, count) for place in range(min(wanted, count) + 1)]
        shown = [(edge + following - 1) // 2 for edge, following in itertools.pairwise(edges)]
        shown += shown[-1:] * (clip.min_frames - len(shown))
        return [(min(first + number, self.frames - 1) + 0.5) / rate for number in shown]


@dataclass(frozen=True, kw_only=True)
class VideoFrame(LazyImage):
    """One frame of a video, decoded when it is opened."""

    video: str | bytes
    """The path of the file, or its content."""
    moment: float
    """Seconds from the first frame's time."""
    last: bool
    """Whether no later frame of the clip will be opened: then the file is closed."""
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def key(self) -> str:
        if isinstance(self.video, bytes):
            return f"{hashlib.blake2b(self.video, digest_size=16).hexdigest()} {self.moment!r}"
        return f"{os.path.abspath(self.video)} {self.moment!r}"

    def __str__(self) -> str:
        return f"{_name(self.video)} at {self.moment:.2f} s"

    def open(self) -> Image.Image:
        """The frame as RGB, upright, in the size of the first one, should frames differ; ImageError names the file and
        the second."""
        reader: _Reader | None = getattr(_opened, "reader", None)
        if reader is None or not reader.of(self.video):
            close()
            reader = _Reader(self.video)
            _opened.reader = reader
        try:
            with _explained(self.video, f" at {self.moment:.2f} s"):
                image = _upright(reader.frame(self.moment))
            return image if image.size == self.size else image.resize(self.size, Image.Resampling.BICUBIC)
        except BaseException:
            close()
            raise
        finally:
            if self.last:
                close()

    def read(self) -> bytes:
        """The frame as the content of a PNG file."""
        buffer = io.BytesIO()
        self.open().save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def frames(source: str | os.PathLike[str] | bytes, clip: Clip | None = None) -> list[VideoFrame]:
    """The frames of a clip, by the header alone and the first frame; repeated where the clip has too few.

    Args:
        source: path, ``data:`` URL or bytes.
        clip: what is shown; ``None`` shows the whole.

    ImageError: no video, damaged, too large, or the clip begins after its end; ValueError: PyAV is missing.
    """
    video = source if isinstance(source, bytes) else os.fspath(source)
    if isinstance(video, str) and video.startswith("data:"):
        video = images.decode_url(video)
    elif isinstance(video, str):
        images.refuse_web(video)
    header = read_header(video)
    try:
        moments = header.moments(clip or Clip())
    except ValueError as error:
        raise ImageError(f"{_name(video)}: {error}") from None
    ends = len(moments) - 1
    return [
        VideoFrame(video=video, moment=moment, last=place == ends, width=header.width, height=header.height)
        for place, moment in enumerate(moments)
    ]


def read_header(video: str | bytes) -> Header:
    """What a video says of itself; errors as in :func:`frames`. That of a file is kept until the file changes."""
    if isinstance(video, bytes):
        return _read_header(video)
    try:
        check_file(Path(video))
        facts = os.stat(video)
    except (FileError, OSError, ValueError) as error:
        raise ImageError(f"{images.short(video)}{str(error).removeprefix(video)}") from None
    return _known_header(video, (facts.st_mtime_ns, facts.st_size, facts.st_ino))


@functools.lru_cache(maxsize=KEPT_HEADERS)
def _known_header(path: str, facts: tuple[int, int, int]) -> Header:
    return _read_header(path)


def _read_header(video: str | bytes) -> Header:
    reader = _Reader(video)
    with contextlib.closing(reader), _explained(video):
        first = reader.frame(0.0)
        width, height = (first.height, first.width) if _turn(first) % 180 else (first.width, first.height)
        stream, container = reader.stream, reader.container
        seconds = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
        count = stream.frames
        if not seconds > 0:
            seconds, count = reader.scan()
        rate = float(stream.average_rate or 0)
        count = count or (round(seconds * rate) if rate else 1)
        return Header(width=width, height=height, seconds=seconds, frames=max(1, count))


def close() -> None:
    """Close the file that the thread has open between frames."""
    reader, _opened.reader = getattr(_opened, "reader", None), None
    if reader is not None:
        reader.close()


def _name(video: str | bytes) -> str:
    return "the given video" if isinstance(video, bytes) else images.short(video)


@contextlib.contextmanager
def _explained(video: str | bytes, where: str = "") -> Iterator[None]:
    """FFmpeg's errors as ImageErrors that name the file."""
    av = _av(video)
    try:
        yield
    except (av.FFmpegError, EOFError) as error:
        text = " ".join(str(getattr(error, "strerror", "") or error).split())
        raise ImageError(
            f"{_name(video)} cannot be read{where} ({text}); fetch it again or convert it to MP4"
        ) from None


def _av(video: str | bytes) -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise ValueError(
            f"to read the video {_name(video)} PyAV is needed: pip install 'mini-internvl[video]'"
        ) from None
    return av


def _turn(frame: Any) -> int:
    """Degrees, anticlockwise, by which a frame is turned to stand upright."""
    return int(getattr(frame, "rotation", 0) or 0) % 360


def _upright(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image()
    turn = _turn(frame)
    return image.rotate(turn, expand=True) if turn else image


class _Reader:
    """One open video: frames by their time, decoded onwards or after a seek, whichever is less work."""

    def __init__(self, video: str | bytes) -> None:
        self.video, self.process = video, os.getpid()
        self.container: Any = None
        self.stream: Any = None
        self.decoded: Iterator[Any] = iter(())
        self.shown: Any = None  # the frame at the last place
        self.following: Any = None  # the one after it, if it is decoded
        self.start()
        with _explained(video):
            self.shown = next(self.decoded, None)
        if self.shown is None:
            raise ImageError(f"{_name(video)} holds no frame; fetch it again")
        self.begin = self.shown.time or 0.0

    def of(self, video: str | bytes) -> bool:
        """Whether it reads this video, and in this process: files stay shared where a process forks."""
        return self.process == os.getpid() and (self.video is video or self.video == video)

    def close(self) -> None:
        if self.container is not None and self.process == os.getpid():
            self.container.close()
        self.container = None

    def start(self) -> None:
        """Open the file, or open it again to begin anew."""
        av, name = _av(self.video), _name(self.video)
        self.close()
        try:
            file = io.BytesIO(self.video) if isinstance(self.video, bytes) else self.video
            options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
            self.container = av.open(file if isinstance(file, io.BytesIO) else f"file:{file}", options=options)
        except (av.FFmpegError, ValueError, OSError) as error:
            reason = getattr(error, "strerror", "") or error
            raise ImageError(f"{name} cannot be opened as a video ({reason}); convert it to MP4") from None
        self.stream = next(iter(self.container.streams.video), None)
        if self.stream is None:
            raise ImageError(f"{name} holds no video, perhaps sound alone; give another file")
        codec = self.stream.codec_context
        if codec is None:
            raise ImageError(f"{name} is coded in a way that is not known; convert it to MP4")
        if codec.width * codec.height > FRAME_PIXELS:
            raise ImageError(
                f"{name} has frames of {codec.width}x{codec.height}, more than the limit of {FRAME_PIXELS:,} pixels; "
                "make it smaller"
            )
        codec.options = {"max_pixels": str(FRAME_PIXELS)}  # frames may grow within the file
        codec.thread_type, codec.thread_count = "AUTO", min(THREADS, os.cpu_count() or 1)
        self.decoded, self.following = self._decode(), None

    def _decode(self) -> Iterator[Any]:
        return (frame for frame in self.container.decode(self.stream) if frame.time is not None)

    def frame(self, moment: float) -> Any:
        """The frame that is shown at a moment, seconds from the first frame's time."""
        place = moment + self.begin
        if place < self.shown.time or self._seeking_pays(place):
            self._seek(place)
        work = 0
        while True:
            if self.following is None:
                self.following = next(self.decoded, None)
                work += self.shown.width * self.shown.height
            if self.following is None:
                return self._last(moment)
            if self.following.time > place:
                return self.shown
            self.shown, self.following = self.following, None
            if work > DECODED_PIXELS:
                raise ImageError(
                    f"{_name(self.video)} at {moment:.2f} s: too many frames lie between this one and the key frame "
                    "before it; write the video anew with more key frames (ffmpeg -i IN -g 250 OUT.mp4)"
                )

    def _last(self, moment: float) -> Any:
        """The last frame, unless the moment is long after it: then the rest of the file is missing."""
        ends = self.shown.time - self.begin + float((self.shown.duration or 0) * self.shown.time_base)
        if moment > ends + LATE:
            raise ImageError(
                f"{_name(self.video)} ends at {ends:.2f} s, before its frame at {moment:.2f} s: it is damaged or cut "
                "off; fetch it again"
            )
        return self.shown

    def _seeking_pays(self, place: float) -> bool:
        """Whether there is a key frame between what was decoded and a place."""
        entries = getattr(self.stream, "index_entries", None)
        if not entries:
            return bool(place - self.shown.time > FAR)
        found = entries.search_timestamp(int(place / self.stream.time_base))
        return bool(found >= 0 and entries[found].timestamp * self.stream.time_base > self.shown.time)

    def _seek(self, place: float) -> None:
        """Go to a key frame at or before a place; to the beginning where the file cannot be searched."""
        av = _av(self.video)
        self.following = None
        with contextlib.suppress(av.FFmpegError):
            self.container.seek(int(place / self.stream.time_base), stream=self.stream)
            self.decoded = self._decode()
            self.shown = next(self.decoded, None)
            if self.shown is not None and self.shown.time <= place:
                return
        self.start()
        self.shown = next(self.decoded)

    def scan(self) -> tuple[float, int]:
        """Seconds and frames of a file whose header does not say them, from its packets; nothing is decoded."""
        self.start()
        times, count = [math.inf, 0.0, 0.0], 0
        for packet in self.container.demux(self.stream):
            if packet.pts is None:
                continue
            time, lasts = float(packet.pts * packet.time_base), float((packet.duration or 0) * packet.time_base)
            times = [min(times[0], time), max(times[1], time + lasts), max(times[2], lasts)]
            count += 1
            if count > MOST_PACKETS:
                raise ImageError(f"{_name(self.video)} does not say how long it is; convert it to MP4")
        seconds = times[1] - times[0] if count else 0.0
        return (seconds if seconds > 0 else max(1, count) / 25), count
