"""One way from messages to tiles and tokens: training and answering cut and number alike."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mini_internvl.inputs import chat
from mini_internvl.inputs.prepare import Processor
from mini_internvl.inputs.tiles import normalise
from mini_internvl.inputs.tokenizer_files import load_tokenizer
from mini_internvl.model.checkpoint import load_model
from mini_internvl.records import Sample
from mini_internvl.train.processor import SampleProcessor


@pytest.fixture(scope="module")
def processor(checkpoint):
    return Processor(
        tokenizer=load_tokenizer(checkpoint), template=chat.TEMPLATES["Hermes-2"], config=load_model(checkpoint).config
    )


def asked(*images):
    return [{"role": "user", "content": [*images, {"type": "text", "text": "What?"}]}]


def noise(size, **more):
    return {"type": "image", "image": Image.effect_noise(size, 80).convert("RGB"), **more}


@pytest.mark.parametrize("more", [{}, {"max_tiles": 1}, {"scale": 3}, {"scale": 2, "max_tiles": 9}])
def test_training_and_answering_cut_alike(processor, more):
    part = noise((100, 40), **more)
    question = asked(part, noise((40, 90)))
    sample = Sample(id="1", messages=[*question, {"role": "assistant", "content": "A"}])
    example = SampleProcessor(processor=processor, max_tiles=6, max_length=4000)(sample)
    prompt = processor.prepare(question, max_tiles=6)
    assert torch.equal(normalise(example.tiles), prompt.pixel_values)
    assert example.input_ids.tolist()[: len(prompt.input_ids)] == prompt.input_ids
    alone = [processor.cut(asked(one), max_tiles=3) for one in (part, question[0]["content"][1])]
    assert prompt.tiles == tuple(len(image.tiles) for [image] in alone)


def test_a_limit_and_a_scale_change_the_cut(processor):
    plain, limited, large = (
        len(processor.cut(asked(noise((60, 30), **more)))[0].tiles) for more in ({}, {"max_tiles": 1}, {"scale": 3})
    )
    assert limited == 1 < plain <= large


def test_the_grid_is_that_of_the_tiles(processor):
    part = noise((200, 60))
    [image] = processor.cut(asked(part), max_tiles=4)
    columns, rows = image.grid
    assert (image.thumbnail, len(image.tiles)) == (True, columns * rows + 1)
    whole = normalise(image.tiles)
    assert torch.equal(whole, processor.prepare(asked(part), max_tiles=4).pixel_values)
    assert processor.count_tiles(asked(part), max_tiles=4) == len(image.tiles)
    small = processor.cut(asked(noise((50, 50))), max_tiles=1)[0]
    assert (small.grid, small.thumbnail) == ((1, 1), False)


def test_no_limit_of_a_part_stops_the_program(processor):
    with pytest.raises(ValueError, match="tiles must be 1 <= min <= max <= 1,000"):
        processor.cut(asked(noise((50, 50), max_tiles=10**6)))
