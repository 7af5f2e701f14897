"""Videos become frames: which, in what words, from any file, and what broken or huge ones are told."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import random
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from mini_internvl.data import DataError
from mini_internvl.data.rows import read_samples, to_row
from mini_internvl.inputs import chat, video
from mini_internvl.inputs.hashes import ImageHashes
from mini_internvl.inputs.images import ImageError, image_dimensions, load_image
from mini_internvl.inputs.messages import ChatError, image_parts, normalise
from mini_internvl.inputs.prepare import Processor
from mini_internvl.inputs.tiles import normalise as normalise_tiles
from mini_internvl.inputs.tokenizer_files import load_tokenizer
from mini_internvl.inputs.video import Clip, VideoFrame, frames
from mini_internvl.model.checkpoint import load_model
from mini_internvl.records import Sample
from mini_internvl.train.processor import SampleProcessor

av = pytest.importorskip("av")
RATE, SIZE = 10, (64, 48)


class Pipe(io.BytesIO):
    """A file that cannot be gone back in: the header stays without a length."""

    def seekable(self):
        return False

    seek = None


def write(file, shown=30, *, size=SIZE, key_frames=5, times=None, turn=0, codec="libx264", **options):
    """A video whose frame N has the grey of 8 N, brighter on its left; returns the file."""
    with av.open(file if isinstance(file, io.BytesIO) else str(file), "w", **options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "rgb8" if codec == "gif" else "yuv420p"
        if codec == "libx264":
            stream.options = {"g": str(key_frames), "sc_threshold": "0"}
        if turn:
            stream.set_display_rotation(turn)
        for number in range(shown):
            pixels = np.full((size[1], size[0], 3), number * 8 % 248, np.uint8)
            pixels[:, : size[0] // 4] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Three seconds of ten frames each."""
    return write(tmp_path_factory.mktemp("video") / "clip.mp4")


def numbers(found):
    """Which frames they are, by their grey."""
    return [round(np.asarray(load_image(frame))[:, -8:].mean() / 8) for frame in found]


def middles(count, wanted, first=0):
    """The original's rule, with the middle frame of each segment."""
    edges = np.linspace(0, count, wanted + 1).astype(int).tolist()
    return [first + (begin + end - 1) // 2 for begin, end in itertools.pairwise(edges)]


def asked(source, text="What happens?", **settings):
    part = {"type": "video", "video": source, **settings}
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (Clip(), middles(30, 8)),
        (Clip(fps=5), middles(30, 15)),
        (Clip(fps=100), middles(30, 30)),
        (Clip(fps=100, max_frames=12), middles(30, 12)),
        (Clip(min_frames=1), middles(30, 3)),
        (Clip(begin=1.0, end=2.0), middles(10, 8, first=10)),
        (Clip(begin=2.0, end=60.0, min_frames=1), [24]),
        (Clip(begin=2.5, end=2.8), [25, 26, 27, 27, 27, 27, 27, 27]),
    ],
)
def test_a_clip_shows_the_middle_of_each_segment(clip, shown, expected):
    assert numbers(frames(clip, shown)) == expected


def test_frames_open_in_any_order_and_tell_their_size(clip):
    found = frames(clip)
    assert numbers(found[::-1]) == middles(30, 8)[::-1]
    assert {image_dimensions(frame) for frame in found} == {SIZE}
    assert image_dimensions(found[0], scale=2) == (128, 96)
    assert str(found[1]) == f"{clip} at 0.45 s"
    assert len({ImageHashes().one(frame) for frame in found}) == 8


def test_a_frame_is_never_taken_for_another(clip, tmp_path):
    other = write(tmp_path / "other.mp4", size=(32, 48)).read_bytes()
    found = [*frames(clip), *frames(clip.read_bytes()), *frames(other)]
    assert len({frame.key for frame in found}) == 24
    assert frames(clip)[0].key == frames(os.path.relpath(clip))[0].key


def test_header_and_frame_agree_on_size_and_limits(clip, tmp_path, monkeypatch):
    [frame, *_] = frames(clip)
    grown = replace(frame, width=32, height=24)  # of a file whose frames grow after the first
    assert load_image(grown).size == image_dimensions(grown) == (32, 24)
    thin = frames(write(tmp_path / "thin.mp4", 8, size=(850, 4)))[0]
    for limit, source, reason in (("2e8", thin, "one side is more than 200 times"), ("1e3", frame, "3,072 pixels")):
        monkeypatch.setenv("MINIVL_MAX_PIXELS", limit)
        for read in (image_dimensions, load_image):
            with pytest.raises(ImageError, match=rf"mp4 at 0\.\d5 s is .*{reason}"):
                read(source)


def test_the_prompt_is_the_original_s(clip):
    lines = "".join(f"Frame-{number}: <image>\n" for number in range(1, 9))
    for text in ("What happens?", "<video>\nWhat happens?", "<video>What happens?"):
        rendered = chat.render(asked(str(clip), text), template=chat.CHATML)
        assert rendered.endswith(f"user\n{lines}What happens?<|im_end|><|im_start|>assistant\n")
    within = chat.render(asked(str(clip), r"In \<video> see <video>\n."), template=chat.CHATML)
    assert f"user\nIn <video> see {lines}" in within
    named = normalise(asked(str(clip), name="CAM_FRONT"))
    assert named[0].images[0].label(1, 8) == "CAM_FRONT Frame-1: "
    assert normalise([{"role": "user", "content": "the <video> tag"}])[0].text == "the <video> tag"
    with pytest.raises(ChatError, match="turn 1 has 2 <video> placeholders but 1 videos"):
        normalise(asked(str(clip), "<video><video>"))


def test_frames_share_tiles_of_their_own(clip, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    picture = {"type": "image", "image": str(tmp_path / "a.png")}
    for settings, tiles in (({}, 1), ({"max_tiles": 4}, 1), ({"max_tiles": 16}, 2)):
        [question] = asked(str(clip), "See <image>?", **settings)
        parts = image_parts([{**question, "content": [picture, *question["content"]]}])
        assert [part.max_tiles for part in parts] == [*[tiles] * 8, None]
        assert [part.is_frame for part in parts] == [*[True] * 8, False]


def test_a_row_of_internvl_becomes_frames_and_is_written_again(clip, tmp_path):
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "It brightens."}]
    path = tmp_path / "rows.jsonl"
    row = {"video": os.path.relpath(clip, tmp_path), "clip": [1, 2], "conversations": turns}
    path.write_text(json.dumps(row))
    [sample] = read_samples(path)
    parts = image_parts(sample.messages)
    assert [part.name for part in parts] == [f"Frame-{number}" for number in range(1, 9)]
    assert numbers([part.source for part in parts]) == middles(10, 8, first=10)
    assert to_row(sample)["messages"][0]["content"][0] | {"video": ""} == {
        "type": "video", "video": "", "from": 1, "to": 2,
    }  # fmt: skip


def test_a_row_s_video_stands_in_the_question_that_names_it(clip, tmp_path):
    path = tmp_path / "rows.jsonl"

    def turns(*questions):
        said = [[{"from": "human", "value": one}, {"from": "gpt", "value": "Yes."}] for one in questions]
        path.write_text(json.dumps({"video": str(clip), "conversations": [turn for pair in said for turn in pair]}))
        [sample] = read_samples(path)
        return [(len(turn.images), turn.text) for turn in normalise(sample.messages)[::2]]

    assert turns("Ready?", "<video>\nWhat?") == [(0, "Ready?"), (8, "What?")]
    assert turns("Ready?", r"What is \<video>?") == [(8, "Ready?"), (0, r"What is \<video>?")]
    with pytest.raises(DataError, match="2 questions have a <video> placeholder but the row has one video"):
        turns("<video>Now?", "<video>And now?")


def test_training_counts_frames_by_the_header_and_reads_them_as_answering_does(clip, checkpoint, monkeypatch):
    processor = Processor(
        tokenizer=load_tokenizer(checkpoint), template=chat.CHATML, config=load_model(checkpoint).config
    )
    training = SampleProcessor(processor=processor, max_tiles=6, max_length=4000)
    sample = Sample(id="1", messages=[*asked(str(clip)), {"role": "assistant", "content": "It brightens."}])
    example = training(sample)
    pictures = [{"type": "image", "image": load_image(f), "name": f"Frame-{n}"} for n, f in enumerate(frames(clip), 1)]
    shown = [{"role": "user", "content": [*pictures, {"type": "text", "text": "What happens?"}]}]
    prompts = [processor.prepare(messages, max_tiles=8) for messages in (asked(str(clip)), shown)]
    assert prompts[0].input_ids == prompts[1].input_ids == example.input_ids.tolist()[: len(prompts[0].input_ids)]
    assert torch.equal(prompts[0].pixel_values, prompts[1].pixel_values)
    assert torch.equal(prompts[0].pixel_values, normalise_tiles(example.tiles))
    monkeypatch.setattr(VideoFrame, "open", None)
    size = training.measure(sample)
    assert (size.tokens, size.tiles) == (len(example.input_ids), 8)


def test_uneven_times_show_what_stands_at_the_moment(tmp_path):
    times = [0.0, 0.1, 0.2, 3.0, 3.1, 6.0, 6.1, 7.9]
    file = write(tmp_path / "uneven.mkv", 8, times=times)
    found = frames(file, Clip(min_frames=4, max_frames=4))
    stands = [max(n for n, time in enumerate(times) if time <= frame.moment) for frame in found]
    assert numbers(found) == stands
    assert len(set(stands)) == 3


@pytest.mark.parametrize(("turn", "bright"), [(90, "bottom"), (180, "right"), (270, "top")])
def test_a_turned_video_stands_upright(tmp_path, turn, bright):
    [frame, *_] = frames(write(tmp_path / "turned.mp4", 8, turn=turn))
    image = np.asarray(load_image(frame))
    assert image_dimensions(frame) == load_image(frame).size == (SIZE if turn == 180 else SIZE[::-1])
    edges = {"top": image[:6], "bottom": image[-6:], "left": image[:, :6], "right": image[:, -6:]}
    assert max(edges, key=lambda edge: edges[edge].mean()) == bright


def test_other_containers_and_files_without_a_length(tmp_path):
    live = write(Pipe(), format="matroska").getvalue()
    gif = write(tmp_path / "a.gif", 20, codec="gif")
    transport = write(tmp_path / "a.ts")
    assert numbers(frames(live)) == numbers(frames(transport)) == middles(30, 8)
    url = "data:video/x-matroska;base64," + base64.b64encode(live).decode()
    assert numbers(frames(url)) == middles(30, 8)
    assert len({np.asarray(load_image(frame)).tobytes() for frame in frames(gif)}) == 8


def test_frames_far_apart_are_found_by_seeking(tmp_path, monkeypatch):
    file = write(tmp_path / "long.mp4", 310, key_frames=10)
    monkeypatch.setattr(video, "DECODED_PIXELS", 14 * SIZE[0] * SIZE[1])
    assert numbers(frames(file)) == [number % 31 for number in middles(310, 31)]
    lone = write(tmp_path / "lone.mp4", 60, key_frames=1000)
    with pytest.raises(ImageError, match=r"lone.mp4 at \d\.\d\d s: too many frames lie between this one and the key"):
        [load_image(frame) for frame in frames(lone, Clip(begin=3))]


def test_files_that_cannot_be_used_are_named(clip, tmp_path, monkeypatch):
    whole = clip.read_bytes()
    spoiled = {
        "empty.mp4": (b"", "cannot be opened as a video"),
        "text.mp4": (b"no video at all, only words\n" * 9, "cannot be opened as a video"),
        "list.mp4": (f"#EXTM3U\n#EXTINF:3,\n{clip}\n#EXT-X-ENDLIST\n".encode(), "cannot be opened as a video"),
        "half.mp4": (whole[: len(whole) // 2], "cannot be opened as a video"),
    }
    for name, (content, reason) in spoiled.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"{name} {reason}"):
            frames(tmp_path / name)
    with pytest.raises(ImageError, match=r"none.mp4 is missing"):
        frames(tmp_path / "none.mp4")
    with pytest.raises(ImageError, match="is a folder"):
        frames(tmp_path)
    with pytest.raises(ImageError, match="is a web address"):
        frames("https://example.com/a.mp4")
    with pytest.raises(ImageError, match=r"clip.mp4: the clip begins at 4 s, but the video has 3.0 s"):
        frames(clip, Clip(begin=4))
    monkeypatch.setattr(video, "FRAME_PIXELS", 1000)
    with pytest.raises(ImageError, match="the given video has frames of 64x48, more than the limit of 1,000 pixels"):
        frames(whole)


def test_what_was_cut_off_says_the_second(tmp_path):
    file = write(tmp_path / "cut.mp4", 60, options={"movflags": "faststart"})
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ImageError, match=r"cut.mp4 .*\d\.\d\d s"):
        [load_image(frame) for frame in frames(file)]


def test_settings_are_checked(clip):
    for settings, reason in (
        ({"fps": 0}, "fps is 0; it must be a number above 0"),
        ({"fps": "2"}, "fps is '2'"),
        ({"from": -1}, "the clip's begin is -1"),
        ({"from": 10**400}, "the clip's begin is 10000"),
        ({"from": 2, "to": 1}, "the clip ends at 1 s and begins at 2 s"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"min_frames": 9, "max_frames": 8}, "min_frames is 9, more than max_frames, 8"),
        ({"max_tiles": 0}, "a video's max_tiles is 0"),
        ({"video": 5}, "a video is a path, a data URL or bytes"),
    ):
        with pytest.raises(ChatError, match=f"turn 1: {reason}"):
            normalise(asked(str(clip), **settings) if "video" not in settings else asked(5))
    assert len(image_parts(asked(str(clip), max_frames=3))) == 3
    with pytest.raises(ChatError, match="videos are not accepted here"):
        normalise(asked(str(clip)), data_urls_only=True)


def test_without_pyav_the_line_that_installs_it_is_told(clip, monkeypatch):
    video.close()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"PyAV is needed: pip install 'mini-internvl\[video\]'"):
        frames(clip.read_bytes())


def test_damage_of_any_kind_is_an_image_error(clip):
    draw = random.Random(0)
    whole = [clip.read_bytes(), write(Pipe(), format="matroska").getvalue()]
    used, refused = 0, list[str]()
    for number in range(120):
        content = bytearray(whole[number % 2])
        place = draw.randrange(len(content))
        if number % 3 == 0:
            del content[place:]
        elif number % 3 == 1:
            content[place : place + 4] = draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"])
        else:
            del content[place : place + draw.randint(1, 200)]
        try:
            used += len([load_image(frame) for frame in frames(bytes(content))]) > 0
        except ImageError as error:
            refused.append(str(error))
    assert all("the given video" in reason and "\n" not in reason for reason in refused)
    assert min(used, len(refused)) > 10
