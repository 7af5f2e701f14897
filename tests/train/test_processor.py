"""A sample's size from its text and headers is that of its example; what is too long is shortened, never a picture."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mini_internvl.data import DataError
from mini_internvl.data.rows import read_samples
from mini_internvl.records import Sample

SIZES = ((56, 56), (110, 50), (300, 60), (40, 500))
TEXTS = st.text("ab <>\n?é中", min_size=1, max_size=30)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, size in enumerate(SIZES):
        Image.new("RGB", size).save(folder / f"{number}.png")
        Image.new("RGB", size).save(folder / f"{number}.jpg", exif=exif)
    return folder


def text(said):
    return {"type": "text", "text": said}


@st.composite
def samples(draw):
    """Images of several kinds with limits and scales of their own, in conversations and independent questions."""

    def image():
        name = f"{draw(st.integers(0, 3))}.{draw(st.sampled_from(['png', 'jpg']))}"
        part = {"type": "image", "image": name}
        if draw(st.booleans()):
            part |= {"max_tiles": draw(st.integers(1, 9))}
        if draw(st.booleans()):
            part |= {"scale": draw(st.integers(1, 3))}
        return part

    independent = draw(st.booleans())
    messages = [{"role": "system", "content": "Be kind."}] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 4))):
        shown = [image() for _ in range(draw(st.integers(0, 3)))] if turn == 0 or not independent else []
        messages += [
            {"role": "user", "content": [*shown, text("Q" + draw(TEXTS).replace("<image>", "") + "?")]},
            {"role": "assistant", "content": "A" + draw(TEXTS).replace("<image>", "") + "."},
        ]
    return Sample(id="1", messages=messages, max_tiles=draw(st.none() | st.integers(1, 12)), independent=independent)


def placed(sample, folder):
    def one(part):
        return {**part, "image": str(folder / part["image"])} if "image" in part else part

    messages = [
        {**turn, "content": turn["content"] if isinstance(turn["content"], str) else list(map(one, turn["content"]))}
        for turn in sample.messages
    ]
    return replace(sample, messages=messages)


@pytest.mark.parametrize("max_length", [150, 4000])
@pytest.mark.parametrize("kind", ["default", "dynamic"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sample=samples())
def test_the_size_is_that_of_the_example(process, pictures, kind, max_length, sample):
    config = process.processor.config
    rope = replace(config.llm.rope, kind=kind, factor=2.0, max_positions=110)
    config = replace(config, llm=replace(config.llm, rope=rope))
    process = replace(process, processor=replace(process.processor, config=config), max_length=max_length)
    sample = placed(sample, pictures)
    try:
        size = process.measure(sample)
    except DataError as error:
        with pytest.raises(DataError, match=re.escape(str(error))):
            process(sample)
        return
    example = process(sample)
    assert size.tokens == len(example.input_ids) == len(example.labels) <= max_length
    assert size.supervised == int((example.labels != -100).sum())
    assert size.tiles == len(example.tiles)
    per_tile = process.processor.config.tokens_per_tile
    assert (
        int((example.input_ids == process.processor.tokenizer.token_id("<IMG_CONTEXT>")).sum()) == size.tiles * per_tile
    )
    assert size.shortened == (replace(process, max_length=10**6).measure(sample).tokens > max_length)


def conversation(*said, **more):
    messages = [{"role": ("user", "assistant")[number % 2], "content": one} for number, one in enumerate(said)]
    return Sample(id="7", source="set", messages=messages, **more)


@pytest.fixture
def wide(pictures):
    return {"type": "image", "image": str(pictures / "2.png")}


def limited(process, sample, lengths):
    return [replace(process, max_length=length).measure(sample) for length in lengths]


def test_tiles_go_before_turns(process, wide):
    sample = conversation([wide, text("What?")], "A dog.", "How many of them are there?", "One.", max_tiles=6)
    whole = replace(process, max_length=10**6).measure(sample)
    first = replace(process, max_length=10**6).measure(replace(sample, messages=sample.messages[:2], max_tiles=1))
    sizes = limited(process, sample, range(whole.tokens, first.tokens - 1, -1))
    assert [size.tiles for size in sizes] == sorted((size.tiles for size in sizes), reverse=True)
    assert sizes[0] == whole
    assert not whole.shortened
    assert all(size.shortened for size in sizes[1:])
    assert {size.tiles for size in sizes} >= {whole.tiles, 1}
    assert all(size.tiles == 1 for size in sizes if size.supervised < whole.supervised)
    assert len({size.supervised for size in sizes}) == 2  # both answers, or the first


@pytest.mark.parametrize("independent", [False, True])
def test_turns_go_from_the_end_and_the_first_answer_stays(process, wide, independent):
    turns = [f"{'word ' * number}?" for number in range(1, 7)]
    sample = conversation([wide, text(turns[0])], *turns[1:], max_tiles=1, independent=independent)
    alone = [replace(process, max_length=10**6)(replace(sample, messages=sample.messages[:end])) for end in (2, 4, 6)]
    for example in alone[:2]:
        shorter = replace(process, max_length=len(example.input_ids))(sample)
        assert torch.equal(shorter.input_ids, example.input_ids)
        assert torch.equal(shorter.labels, example.labels)
    with pytest.raises(DataError, match=r"sample set/7: at its shortest it has \d+ tokens, more than max_length"):
        replace(process, max_length=len(alone[0].input_ids) - 1)(sample)


def test_a_turn_with_an_image_is_never_dropped(process, wide):
    sample = conversation("What?", "A dog.", [wide, text("And here?")], "A cat.", "Why?", "Who knows?", max_tiles=1)
    upto = replace(process, max_length=10**6).measure(replace(sample, messages=sample.messages[:4]))
    assert replace(process, max_length=upto.tokens).measure(sample).tokens == upto.tokens
    with pytest.raises(DataError, match=f"it has {upto.tokens} tokens"):
        replace(process, max_length=upto.tokens - 1).measure(sample)


def test_a_limit_of_an_image_is_lowered_only_as_far_as_needed(process, wide):
    sample = conversation([{**wide, "max_tiles": 4}, wide, text("Which?")], "Both.", max_tiles=2)
    whole = replace(process, max_length=10**6).measure(sample)
    assert whole.tiles == 6  # four and a thumbnail, and one
    shorter = replace(process, max_length=whole.tokens - 1).measure(sample)
    assert shorter.tiles == 5


def test_a_line_tells_how_an_image_is_seen_and_what_one_tile_would_lose(process, examples, rows):
    told = [process.describe(sample) for sample in read_samples(rows)]
    assert told[0] == told[4] == "56 x 56 pixels are 1 tile, 4 visual tokens"
    lost = round(100 * (1 - 56 / 110))
    assert (
        told[1]
        == f"110 x 50 pixels are 3 tiles, 12 visual tokens; one fixed tile would lose {lost} % of what they show"
    )
    assert told[2] == ""
    assert int(told[1].split(" are ")[1].split()[0]) == len(examples[1].tiles)


def test_the_fingerprint_tells_settings_that_change_sizes(process):
    template = replace(process.processor.template, sep="<|im_end|>\n")
    others = [
        replace(process, max_tiles=9),
        replace(process, max_length=9),
        replace(process, processor=replace(process.processor, system_message="Hm.")),
        replace(process, processor=replace(process.processor, template=template)),
    ]
    assert len({process.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert replace(process).fingerprint == process.fingerprint


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("kind", ["exif", "xmp"])
def test_a_png_that_is_turned_by_what_it_says_behind_its_pixels_is_measured_so(process, tmp_path, wide, kind, behind):
    exif = Image.Exif()
    exif[0x0112] = 6
    said = (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    if kind == "xmp":
        said = (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>')
    path = tmp_path / "turned.png"
    Image.new("RGB", (300, 60)).save(path)
    content = path.read_bytes()
    place = content.index(b"IEND" if behind else b"IDAT") - 4
    path.write_bytes(content[:place] + chunk(*said) + content[place:])
    sample = conversation([{"type": "image", "image": str(path)}, text("What?")], "This.", max_tiles=3)
    example = process(sample)
    assert process.measure(sample).tiles == len(example.tiles)
    [image] = process.processor.cut(sample.messages, max_tiles=3)
    assert image.grid == (1, 3)


def test_a_file_that_changes_is_measured_anew(process, tmp_path):
    path = tmp_path / "a.png"
    sample = conversation([{"type": "image", "image": str(path)}, text("What?")], "This.", max_tiles=6)
    tiles = []
    for size in ((56, 56), (300, 60)):
        Image.new("RGB", size).save(path)
        tiles.append(process.measure(sample).tiles)
    assert tiles[0] == 1 < tiles[1]
    path.unlink()
    with pytest.raises(DataError, match=r"a\.png is missing"):
        process.measure(sample)
