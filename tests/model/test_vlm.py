"""The whole model: token grid folding, the splice of visual tokens, and its refusals."""

from __future__ import annotations

import pytest
import torch

from mini_internvl.model.vlm import TokenCountError, pixel_unshuffle


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 6, 4, 2)])
def test_unshuffle_puts_each_two_by_two_block_into_one_token(shape):
    x = torch.arange(torch.tensor(shape).prod()).reshape(shape).float()
    n, rows, columns, channels = shape
    v2, v1 = pixel_unshuffle(x, 0.5, "v2"), pixel_unshuffle(x, 0.5, "v1")
    assert v2.shape == (n, rows // 2, columns // 2, 4 * channels)
    assert v1.shape == (n, columns // 2, rows // 2, 4 * channels)
    for i in range(rows // 2):
        for j in range(columns // 2):
            block = [x[:, 2 * i + di, 2 * j + dj] for di in (0, 1) for dj in (0, 1)]
            assert torch.equal(v2[:, i, j], torch.cat(block, dim=-1))
            assert torch.equal(v1[:, j, i], torch.cat(block, dim=-1))


def test_visual_tokens_follow_the_unshuffle_version_and_the_chosen_layer(make):
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        v2 = make(ps_version="v2").encode_images(pixels)
        v1 = make(ps_version="v1").encode_images(pixels)
        early = make(select_layer=-2).encode_images(pixels)
    assert v2.shape == (2, 4, 32)
    assert torch.equal(v1.reshape(2, 2, 2, -1).transpose(1, 2), v2.reshape(2, 2, 2, -1))
    assert not torch.allclose(early, v2)


def test_visual_tokens_take_the_places_of_the_placeholders_in_order(make):
    model = make()
    ids = torch.tensor([[1, 54, 54, 54, 54, 2, 3], [4, 5, 54, 54, 54, 54, 6]])
    tokens = torch.randn(2, 4, 32)
    x = model.embed(ids, tokens)
    plain = model.language_model.embed_tokens(ids)
    assert torch.equal(x[0, 1:5], tokens[0])
    assert torch.equal(x[1, 2:6], tokens[1])
    assert torch.equal(x[:, 0], plain[:, 0])
    assert torch.equal(x[0, 5:], plain[0, 5:])


@pytest.mark.parametrize(("placeholders", "tiles", "given"), [(3, 1, 4), (5, 1, 4), (4, 2, 8), (2, 0, 0)])
def test_a_wrong_number_of_placeholders_is_refused_with_both_numbers(make, placeholders, tiles, given):
    ids = torch.tensor([[1] + [54] * placeholders + [2]])
    with pytest.raises(TokenCountError, match=rf"\b{placeholders} <IMG_CONTEXT> tokens but .* {given} visual tokens"):
        make()(ids, torch.randn(tiles, 3, 56, 56))


def test_images_without_a_known_placeholder_id_are_refused(make):
    model = make()
    model.image_token_id = None
    with pytest.raises(ValueError, match="image_token_id is not set"):
        model(torch.tensor([[1, 2]]), torch.randn(1, 3, 56, 56))
    assert model(torch.tensor([[1, 54]])).shape == (1, 2, 61)


def test_pixels_and_prepared_visual_tokens_give_the_same_logits(make):
    model, pixels = make(), torch.randn(1, 3, 56, 56)
    ids = torch.tensor([[1, 54, 54, 54, 54, 2]])
    with torch.no_grad():
        logits = model(ids, pixels)
        prepared = model(ids, visual_tokens=model.encode_images(pixels))
        without = model(torch.tensor([[1, 3, 3, 3, 3, 2]]), torch.empty(0, 3, 56, 56))
    assert logits.shape == (1, 6, 61)
    assert torch.equal(logits, prepared)
    assert torch.equal(logits[:, 0], without[:, 0])


def test_right_padding_changes_no_real_position(make):
    model = make()
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        both, alone = model(ids, None, mask), model(ids[1:, :3])
    torch.testing.assert_close(both[1:, :3], alone)
