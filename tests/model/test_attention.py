"""One attention: equal to the definition, whichever form is used, with its gradients."""

from __future__ import annotations

import itertools

import pytest
import torch

from mini_internvl.model import attention
from mini_internvl.model.attention import AttentionPlan, attend, plan_attention


def inputs(heads=4, kv_heads=4, new=5, total=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, heads, new, 8), (2, kv_heads, total, 8), (2, kv_heads, total, 8))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def by_definition(q, k, v, seen):
    """One query at a time; ``seen`` (B, T, S)."""
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            group = h // (q.shape[1] // k.shape[1])
            for t in range(q.shape[2]):
                scores = k[b, group] @ q[b, h, t] / q.shape[-1] ** 0.5
                scores = scores.masked_fill(~seen[b, t], -torch.inf)
                out[b, h, t] = scores.softmax(-1) @ v[b, group]
    return out


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_each_key_head_serves_its_group(kv_heads):
    q, k, v = inputs(kv_heads=kv_heads)
    seen = torch.ones(2, 5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(attend(q, k, v, AttentionPlan(causal=True)), by_definition(q, k, v, seen))


@pytest.mark.parametrize("new", [3, 1])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_mask_hides_keys(new, kv_heads):
    q, k, v = inputs(new=new, total=6, kv_heads=kv_heads)
    seen = torch.rand(2, new, 6, generator=torch.Generator().manual_seed(1)) > 0.5
    seen[..., 0] = True
    torch.testing.assert_close(attend(q, k, v, AttentionPlan(mask=seen[:, None])), by_definition(q, k, v, seen))


@pytest.mark.parametrize("kind", ["full", "causal", "mask"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_plain_form_equals_the_fused_one(monkeypatch, kind, kv_heads):
    seen = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1)) > 0.5
    seen |= torch.eye(5, dtype=torch.bool)
    plan = AttentionPlan(causal=kind == "causal", mask=seen if kind == "mask" else None)
    results = []
    for limit in (attention.PLAIN_UP_TO, 0):  # 0: the fused kernel, also for bfloat16 gradients
        monkeypatch.setattr(attention, "PLAIN_UP_TO", limit)
        q, k, v = (x.requires_grad_() for x in inputs(kv_heads=kv_heads, dtype=torch.bfloat16))
        out = attend(q, k, v, plan)
        out.float().pow(2).sum().backward()
        results.append([out.detach(), q.grad, k.grad, v.grad])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(plain, fused, atol=0.06, rtol=0.05)


def test_the_plain_form_is_what_bfloat16_training_uses(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("fused")

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", refuse)
    q, k, v = inputs(dtype=torch.bfloat16)
    causal = AttentionPlan(causal=True)
    assert attend(q.requires_grad_(), k, v, causal).shape == q.shape
    with pytest.raises(AssertionError, match="fused"):
        attend(q.detach(), k, v, causal)


def packed_ids(padding=3):
    """A row of three documents, the first with two independent questions, and padding: segments, documents, places."""
    segments = [0] * 4 + [1] * 3 + [2] * 4 + [0] * 9 + [0] * 2 + [-1] * padding
    documents = [0] * 11 + [1] * 9 + [2] * 2 + [-1] * padding
    positions = [*range(7), *range(4, 8), *range(9), *range(2), *[0] * padding]
    return [torch.tensor([ids]) for ids in (segments, documents, positions)]


def seen_by_ids(segments, documents, positions, window):
    """(1, T, T), one pair of tokens at a time."""
    total = segments.shape[1]
    seen = torch.zeros(1, total, total, dtype=torch.bool)
    for t in range(total):
        for s in range(t + 1):
            near = window is None or positions[0, s] > positions[0, t] - window
            seen[0, t, s] = near and documents[0, s] == documents[0, t] and segments[0, s] in (0, segments[0, t])
    return seen | (torch.eye(total, dtype=torch.bool) & (documents[0] < 0))


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_documents_of_a_row_see_themselves_alone(window, kv_heads):
    segments, documents, positions = packed_ids()
    total = segments.shape[1]
    q, k, v = (x[:1] for x in inputs(new=total, total=total, kv_heads=kv_heads))
    plan = plan_attention(positions, total=total, window=window, segment_ids=segments, document_ids=documents)
    assert [length for length, _ in plan.documents] == [11, 9, 2, 3]
    assert plan.mask is None
    expected = by_definition(q, k, v, seen_by_ids(segments, documents, positions, window))
    torch.testing.assert_close(attend(q, k, v, plan)[:, :, :22], expected[:, :, :22])


@pytest.mark.parametrize("window", [None, 5])
def test_every_form_of_a_packed_row_sees_the_same(monkeypatch, window):
    """What a GPU is given, computed here by the definition: lengths for one kernel, a function of ids for the other."""
    segments, documents, positions = packed_ids()
    sees = attention.sees_key(positions, window, segments, documents)
    index = torch.arange(segments.shape[1])
    found = sees(torch.tensor(0), torch.tensor(0), index[:, None], index[None])
    assert torch.equal(found[:22], seen_by_ids(segments, documents, positions, window)[0, :22])

    def kernel(q, k, v, ends, ends_of_keys, longest, longest_key, *, window_size, enable_gqa):
        assert (q.shape, k.shape, enable_gqa) == ((50, 4, 8), (50, 2, 8), True)
        assert longest == longest_key == (ends[1:] - ends[:-1]).max()
        out = []
        for first, end in itertools.pairwise(ends.tolist()):
            distance = torch.arange(end - first)[:, None] - torch.arange(end - first)
            seen = (distance >= -window_size[1]) & ((window_size[0] < 0) | (distance <= window_size[0]))
            parts = (x[first:end].transpose(0, 1)[None] for x in (q, k, v))
            out.append(by_definition(*parts, seen[None])[0].transpose(0, 1))
        return torch.cat(out)

    monkeypatch.setattr(attention, "_varlen", lambda: kernel)
    documents, positions = documents.repeat(2, 1), positions.repeat(2, 1)
    ends = torch.tensor([0, *attention.document_lengths(documents.shape, None, documents)]).cumsum(0).int()
    assert ends.tolist() == [0, 11, 20, 22, 25, 36, 45, 47, 50]
    q, k, v = inputs(new=25, total=25, kv_heads=2)
    positions = torch.cat([torch.arange(n) for n in (11, 9, 2, 3)]).expand(2, -1)
    by_lengths = AttentionPlan(varlen=attention.Varlen(ends=ends, longest=11, window=window))
    apart = plan_attention(positions, total=25, window=window, document_ids=documents)
    assert apart.documents
    torch.testing.assert_close(attend(q, k, v, by_lengths), attend(q, k, v, apart))


def test_rows_that_a_mask_serves_as_well_get_one():
    """Independent questions in padded rows: one call of the kernel for all rows."""
    segments = torch.tensor([[0, 0, 1, 2, 2], [0, 1, 2, -1, -1]])
    positions = torch.tensor([[0, 1, 2, 2, 3], [0, 1, 1, 0, 0]])
    assert plan_attention(positions, total=5, segment_ids=segments).mask.shape == (2, 1, 5, 5)
