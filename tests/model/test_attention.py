"""One attention: equal to the definition, whichever form is used, with its gradients."""

from __future__ import annotations

import pytest
import torch

from mini_internvl.model import attention
from mini_internvl.model.attention import AttentionPlan, attend


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
