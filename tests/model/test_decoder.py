"""The shared decoder: rotary kinds, masks, the KV cache and the two halves of a block."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mini_internvl.model import llms
from mini_internvl.model.config import RopeConfig
from mini_internvl.model.decoder import Block, Decoder, KVCache, attention_mask, rotary_tables, rotate

DIM = 8


def by_definition(x, positions, frequencies):
    """Rotate the pairs (i, i + D/2) of (T, D) as complex numbers."""
    pairs = torch.complex(x[:, : DIM // 2].double(), x[:, DIM // 2 :].double())
    angles = positions.double()[:, None] * torch.tensor(frequencies, dtype=torch.float64)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1).float()


def turned(rope, positions, length=None):
    x = torch.randn(len(positions), DIM, generator=torch.Generator().manual_seed(0))
    tables = rotary_tables(rope, DIM, positions[None], length or int(positions.max()) + 1)
    return x, rotate(x[None, None], *tables)[0, 0]


def frequencies(theta, divisors=(1.0,) * 4):
    return [1 / (d * theta ** (2 * i / DIM)) for i, d in enumerate(divisors)]


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (RopeConfig(theta=100.0), frequencies(100.0)),
        (RopeConfig(theta=100.0, kind="linear", factor=4.0), frequencies(100.0, (4.0,) * 4)),
        (RopeConfig(theta=100.0, kind="dynamic", factor=2.0, max_positions=9), frequencies(100.0)),
    ],
    ids=["default", "linear", "dynamic inside its limit"],
)
def test_pairs_are_turned_by_their_frequencies(rope, expected):
    positions = torch.tensor([0, 1, 5, 8])
    x, rotated = turned(rope, positions)
    torch.testing.assert_close(rotated, by_definition(x, positions, expected))


def test_dynamic_raises_the_base_beyond_its_limit():
    rope = RopeConfig(theta=100.0, kind="dynamic", factor=2.0, max_positions=8)
    theta = 100.0 * (2.0 * 20 / 8 - 1.0) ** (DIM / (DIM - 2))
    positions = torch.tensor([0, 3, 19])
    x, rotated = turned(rope, positions, length=20)
    torch.testing.assert_close(rotated, by_definition(x, positions, frequencies(theta)))
    x, rotated = turned(rope, positions[:2], length=20)  # one new token, many cached ones: the length counts
    torch.testing.assert_close(rotated, by_definition(x, positions[:2], frequencies(theta)))


@pytest.mark.parametrize(("last", "factors"), [(7, (1.0, 1.5, 2.0, 2.5)), (8, (3.0, 4.0, 5.0, 6.0))])
def test_longrope_switches_lists_and_scales_both(last, factors):
    rope = RopeConfig(
        theta=100.0,
        kind="longrope",
        max_positions=64,
        original_max_positions=8,
        short_factor=(1.0, 1.5, 2.0, 2.5),
        long_factor=(3.0, 4.0, 5.0, 6.0),
    )
    positions = torch.tensor([0, 2, last])
    x, rotated = turned(rope, positions)
    scale = math.sqrt(1 + math.log(64 / 8) / math.log(8))
    torch.testing.assert_close(rotated, scale * by_definition(x, positions, frequencies(100.0, factors)))


def test_longrope_is_not_scaled_when_nothing_was_stretched():
    rope = RopeConfig(
        theta=100.0,
        kind="longrope",
        max_positions=8,
        original_max_positions=8,
        short_factor=(1.0,) * 4,
        long_factor=(1.0,) * 4,
    )
    x, rotated = turned(rope, torch.tensor([0]))
    torch.testing.assert_close(rotated, x)


def test_a_product_of_turned_vectors_depends_on_their_distance():
    rope = RopeConfig(theta=100.0)
    q, k = torch.randn(1, 1, 1, DIM), torch.randn(1, 1, 1, DIM)

    def product(i, j):
        tables = [rotary_tables(rope, DIM, torch.tensor([[p]]), 100) for p in (i, j)]
        return (rotate(q, *tables[0]) * rotate(k, *tables[1])).sum()

    torch.testing.assert_close(product(7, 3), product(44, 40), atol=1e-4, rtol=1e-4)
    assert (product(7, 3) - product(7, 4)).abs() > 1e-4


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize(("new", "total"), [(6, 6), (1, 6), (3, 6), (1, 1)])
@pytest.mark.parametrize("padding", [None, "left", "right", "full"])
def test_masks_say_what_the_words_say(window, new, total, padding):
    real = torch.ones(2, total, dtype=torch.int64)
    if padding == "left" and total > 1:
        real[1, :2] = 0
    if padding == "right" and total > 1:
        real[1, -2:] = 0
    mask = attention_mask(None if padding is None else real, new, total, window, torch.device("cpu"))
    for b in range(2):
        for t in range(new):
            row = total - new + t
            for s in range(total):
                seen = s <= row and (window is None or s > row - window) and bool(real[b, s])
                # without a mask attention is plainly causal
                given = s <= row if mask is None else bool(mask.expand(2, 1, new, total)[b, 0, t, s])
                assert given == (seen or (s == row and not real[b, row])), (b, t, s)


def test_a_mask_is_left_out_where_causal_attention_says_it_all():
    device = torch.device("cpu")
    assert attention_mask(None, 5, 5, None, device) is None
    assert attention_mask(torch.ones(2, 5), 5, 5, 8, device) is None
    assert attention_mask(torch.ones(2, 5), 1, 5, None, device) is None
    assert attention_mask(None, 2, 5, None, device) is not None
    assert attention_mask(None, 5, 5, 4, device) is not None


def test_a_block_is_pre_norm_with_a_gated_mlp(llm):
    config = llms.read_config(llm)
    torch.manual_seed(0)
    block = Block(config)
    x = torch.randn(1, 3, config.hidden_size)
    tables = rotary_tables(config.rope, config.head_dim, torch.arange(3)[None], 3)
    with torch.no_grad():
        block.input_layernorm.weight.uniform_(0.5, 1.5)
        block.post_attention_layernorm.weight.uniform_(0.5, 1.5)
        after = x + block.self_attn(block.input_layernorm(x), tables, None, None, 0)
        normed = block.post_attention_layernorm(after)
        mlp = block.mlp
        gated = F.silu(normed @ mlp.gate_proj.weight.T) * (normed @ mlp.up_proj.weight.T)
        torch.testing.assert_close(block(x, tables, None, None, 0), after + gated @ mlp.down_proj.weight.T)
    assert (block.self_attn.q_proj.bias is not None) == (config.architecture == "Qwen2ForCausalLM")


def decoder(llm):
    config = llms.read_config(llm)
    torch.manual_seed(0)
    return Decoder(config).eval()


def fresh_cache(model, batch=1, capacity=40):
    return KVCache(model.config, batch, capacity, dtype=torch.float32, device=torch.device("cpu"))


def test_cached_equals_uncached(llm):
    """Twenty positions, beyond the sliding window of the Phi-3 configuration: a long prompt, pieces, single tokens."""
    model = decoder(llm)
    x = torch.randn(2, 20, 32)
    cache = fresh_cache(model, batch=2)
    with torch.no_grad():
        whole = model(x)
        cuts = [(0, 9), (9, 10), (10, 14), *((i, i + 1) for i in range(14, 20))]
        pieces = torch.cat([model(x[:, a:b], cache=cache) for a, b in cuts], dim=1)
    assert cache.length == 20
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)


def test_left_padding_changes_no_real_position(llm):
    model = decoder(llm)
    x = torch.randn(1, 9, 32)
    padded = torch.cat([torch.randn(1, 4, 32), x], dim=1)
    padding = torch.cat([torch.zeros(1, 4), torch.ones(1, 9)], dim=1)
    positions = (padding.cumsum(1) - 1).clamp(min=0).long()
    with torch.no_grad():
        alone = model(x)
        beside = model(padded, padding=padding, position_ids=positions)[:, 4:]
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=1e-5)


def test_turns_give_what_each_would_alone(llm):
    """Beyond the sliding window of the Phi-3 configuration; the second row is a conversation, padded."""
    model = decoder(llm)
    x = torch.randn(2, 24, 32)
    turns = torch.tensor([[0] * 9 + [1] * 6 + [2] * 8 + [-1], [0] * 20 + [-1] * 4])
    with torch.no_grad():
        together = model(x, padding=(turns >= 0).long(), turns=turns)
        first = model(x[:1, :15])
        second = model(torch.cat([x[:1, :9], x[:1, 15:23]], dim=1))
        conversation = model(x[1:, :20])
    torch.testing.assert_close(together[:1, :15], first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[:1, 15:23], second[:, 9:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1:, :20], conversation, atol=1e-5, rtol=1e-5)


def test_finished_rows_leave_the_cache(llm):
    model = decoder(llm)
    x = torch.randn(3, 6, 32)
    cache = fresh_cache(model, batch=3)
    with torch.no_grad():
        model(x[:, :5], cache=cache)
        cache.keep(torch.tensor([2, 0]))
        after = model(x[[2, 0], 5:], cache=cache)
        torch.testing.assert_close(after, model(x)[[2, 0], 5:], atol=1e-5, rtol=1e-5)


def test_a_full_cache_says_so(llm):
    model = decoder(llm)
    cache = fresh_cache(model, capacity=3)
    with torch.no_grad(), pytest.raises(AssertionError, match="KV cache of 3 tokens is full"):
        model(torch.randn(1, 4, 32), cache=cache)


def test_a_later_token_changes_no_earlier_output(llm):
    model = decoder(llm)
    x = torch.randn(1, 6, 32)
    y = x.clone()
    y[:, 4] += 1.0
    with torch.no_grad():
        change = (model(x) - model(y)).abs().amax(-1)[0]
    assert change[:4].max() == 0
    assert (change[4:] > 0).all()
