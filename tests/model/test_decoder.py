"""The shared decoder: rotary kinds, masks, the KV cache and the two halves of a block."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mini_internvl.model import llms
from mini_internvl.model.attention import AttentionPlan, plan_attention
from mini_internvl.model.cache import KVCache
from mini_internvl.model.config import RopeConfig
from mini_internvl.model.decoder import Block, Decoder, rotary_tables, rotate

DIM = 8


def by_definition(x, positions, frequencies):
    """Rotate the pairs (i, i + D/2) of (T, D) as complex numbers."""
    pairs = torch.complex(x[:, : DIM // 2].double(), x[:, DIM // 2 :].double())
    angles = positions.double()[:, None] * torch.tensor(frequencies, dtype=torch.float64)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1).float()


def turned(rope, positions, length=None):
    x = torch.randn(len(positions), DIM, generator=torch.Generator().manual_seed(0))
    tables = rotary_tables(rope, DIM, positions[None], torch.tensor([[length or int(positions.max()) + 1]]))
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
        tables = [rotary_tables(rope, DIM, torch.tensor([[p]]), torch.tensor([[100]])) for p in (i, j)]
        return (rotate(q, *tables[0]) * rotate(k, *tables[1])).sum()

    torch.testing.assert_close(product(7, 3), product(44, 40), atol=1e-4, rtol=1e-4)
    assert (product(7, 3) - product(7, 4)).abs() > 1e-4


def seen_keys(plan, total, batch=2):
    """A plan as (B, T, S): which keys each token sees."""
    if plan.mask is not None:
        return plan.mask[:, 0].expand(batch, -1, -1)
    ones = torch.ones(batch, total, total, dtype=torch.bool)
    return ones.tril() if plan.causal else ones[:, -1:]


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize(("new", "total"), [(6, 6), (1, 6), (3, 6), (1, 1)])
@pytest.mark.parametrize("padding", [None, "left", "right", "full"])
def test_real_tokens_see_the_real_tokens_before_them(window, new, total, padding):
    real = torch.ones(2, total, dtype=torch.int64)
    if padding == "left" and total > 1:
        real[1, :2] = 0
    if padding == "right" and total > 1 and new == total:
        real[1, -2:] = 0
    positions = (real.cumsum(1) - 1).clamp(min=0)[:, total - new :]
    plan = plan_attention(positions, total=total, padding=None if padding is None else real, window=window)
    given = seen_keys(plan, total)
    for b in range(2):
        for row in range(total - new, total):
            for s in range(total):
                seen = s <= row and (window is None or s > row - window) and bool(real[b, s])
                if real[b, row]:
                    assert given[b, row - total + new, s] == seen, (b, row, s)
            assert given[b, row - total + new].any()  # else the softmax is not a number


def test_a_mask_is_left_out_where_causal_attention_says_it_all():
    positions = torch.arange(5).expand(2, 5)
    right = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    for padding, window in ((None, None), (torch.ones(2, 5), 8), (right, None)):
        assert plan_attention(positions, total=5, padding=padding, window=window) == AttentionPlan(causal=True)
    assert plan_attention(positions[:, 4:], total=5) == AttentionPlan()
    assert plan_attention(positions[:, 3:], total=5).mask is not None
    assert plan_attention(positions, total=5, window=4).mask is not None
    assert plan_attention(positions, total=5, padding=right.flip(1)).mask is not None


def test_a_block_is_pre_norm_with_a_gated_mlp(llm):
    config = llms.read_config(llm)
    torch.manual_seed(0)
    block = Block(config)
    x = torch.randn(1, 3, config.hidden_size)
    tables = rotary_tables(config.rope, config.head_dim, torch.arange(3)[None], torch.tensor([[3]]))
    plan = AttentionPlan(causal=True)
    with torch.no_grad():
        block.input_layernorm.weight.uniform_(0.5, 1.5)
        block.post_attention_layernorm.weight.uniform_(0.5, 1.5)
        after = x + block.self_attn(block.input_layernorm(x), tables, plan, None, 0)
        normed = block.post_attention_layernorm(after)
        mlp = block.mlp
        gated = F.silu(normed @ mlp.gate_proj.weight.T) * (normed @ mlp.up_proj.weight.T)
        torch.testing.assert_close(block(x, tables, plan, None, 0), after + gated @ mlp.down_proj.weight.T)
    assert (block.self_attn.q_proj.bias is not None) == (config.architecture == "Qwen2ForCausalLM")


def decoder(llm):
    config = llms.read_config(llm)
    torch.manual_seed(0)
    return Decoder(config).eval()


def fresh_cache(model, batch=1, capacity=40):
    return KVCache(model.config, batch, capacity, dtype=torch.float32, device=torch.device("cpu"))


def test_cached_equals_uncached(llm):
    """Beyond the sliding window of the Phi-3 configuration: a long prompt, pieces, single tokens."""
    model = decoder(llm)
    x = torch.randn(2, 20, 32)
    cache = fresh_cache(model, batch=2)
    with torch.no_grad():
        whole = model(x)
        cuts = [(0, 9), (9, 10), (10, 14), *((i, i + 1) for i in range(14, 20))]
        pieces = torch.cat([model(x[:, a:b], cache=cache) for a, b in cuts], dim=1)
    assert cache.length == 20
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)


LENGTHS = (3, 9, 20, 31, 32, 33, 40)
"""On both sides of where the tiny Phi-3's window (12) and long factors (32) and the tiny InternLM2's base change."""


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_each_row_alone(llm, side):
    model = decoder({**llm, "max_position_embeddings": 32 if "InternLM2" in llm["architectures"][0] else 128})
    rows = [torch.randn(1, n, 32) for n in LENGTHS]
    longest = max(LENGTHS)
    x, real = torch.randn(len(rows), longest, 32), torch.zeros(len(rows), longest)
    for i, row in enumerate(rows):
        place = slice(longest - LENGTHS[i], None) if side == "left" else slice(LENGTHS[i])
        x[i, place], real[i, place] = row[0], 1
    with torch.no_grad():
        together = model(x, padding=real)
        for i, row in enumerate(rows):
            torch.testing.assert_close(together[i][real[i].bool()], model(row)[0], atol=1e-5, rtol=1e-5)


def document_row():
    """Segments, documents and positions of: independent questions, a long conversation, a short one, padding."""
    segments = [0] * 9 + [1] * 6 + [2] * 8 + [0] * 34 + [0] * 5 + [-1] * 2
    documents = [0] * 23 + [1] * 34 + [2] * 5 + [-1] * 2
    positions = [*range(15), *range(9, 17), *range(34), *range(5), 0, 0]
    return [torch.tensor([ids]) for ids in (segments, documents, positions)]


def test_packed_documents_and_independent_questions_equal_each_alone(llm):
    model = decoder({**llm, "max_position_embeddings": 32 if "InternLM2" in llm["architectures"][0] else 128})
    segments, documents, positions = document_row()
    x = torch.randn(1, segments.shape[1], 32)
    with torch.no_grad():
        packed = model(x, position_ids=positions, segment_ids=segments, document_ids=documents)
        alone = [model(x[:, a:b]) for a, b in ((0, 15), (23, 57), (57, 62))]
        second = model(torch.cat([x[:, :9], x[:, 15:23]], dim=1))
    found = [packed[:, a:b] for a, b in ((0, 15), (23, 57), (57, 62), (15, 23))]
    for one, expected in zip(found, [*alone, second[:, 9:]], strict=True):
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)


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
