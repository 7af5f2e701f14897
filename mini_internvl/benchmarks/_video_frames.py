"""Frames of a video at given moments, written as JPEG files named by their milliseconds. Needs PyAV (extra ``video``).

A video is decoded once, from its beginning; frames are turned upright as its metadata says, and made small enough for
one tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mini_internvl.data import DataError
from mini_internvl.files import FileError, new_file

SHORTER = 448  # pixels of a frame's shorter side: a tile's
QUALITY = 90


def take_frames(video: Path, folder: Path, moments: Sequence[float]) -> None:
    """Write the frames nearest to ``moments`` (seconds) as ``folder/MILLISECONDS.jpg``, each whole or not at all.

    Moments after the last frame are left out. FileError: the video cannot be read. DataError: PyAV is missing.
    """
    with _opened(video) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise FileError(f"{video} holds no video; fetch it again")
        stream.thread_type = "AUTO"
        for moment, frame in nearest(container.decode(stream), sorted(moments)):
            _write(frame, folder / f"{round(moment * 1000):06d}.jpg")


def video_length(video: Path) -> float:
    """Seconds of a video, as its header says. FileError: it cannot be read. DataError: PyAV is missing."""
    with _opened(video) as container:
        if not container.duration:
            raise FileError(f"{video} does not tell its length; fetch it again")
        return float(container.duration) / 1_000_000


@contextmanager
def _opened(video: Path) -> Iterator[Any]:
    try:
        import av
    except ModuleNotFoundError:
        raise DataError(f"to take frames of {video} PyAV is needed: pip install 'mini-internvl[video]'") from None
    try:
        with av.open(str(video)) as container:
            yield container
    except av.FFmpegError as error:
        raise FileError(f"the video {video} cannot be read ({error}); fetch it again") from None


def nearest(frames: Iterator[Any], moments: Sequence[float]) -> Iterator[tuple[float, Any]]:
    """(moment, the frame nearest to it), for frames and moments in order of time, up to the last frame."""
    left = list(reversed(moments))
    previous: Any = None
    begin = 0.0
    for frame in frames:
        if frame.time is None:
            continue
        begin = frame.time if previous is None else begin
        while left and frame.time - begin >= left[-1]:
            moment = left.pop()
            closer = previous is not None and moment - (previous.time - begin) < frame.time - begin - moment
            yield moment, previous if closer else frame
        if not left:
            return
        previous = frame


def _write(frame: Any, path: Path) -> None:
    image = frame.to_image()
    turn = int(getattr(frame, "rotation", 0) or 0)
    if turn:
        image = image.rotate(turn, expand=True)  # both count anticlockwise
    if min(image.size) > SHORTER:
        share = SHORTER / min(image.size)
        image = image.resize([round(side * share) for side in image.size])
    with new_file(path, flush=False) as draft:
        image.convert("RGB").save(draft, "JPEG", quality=QUALITY)
