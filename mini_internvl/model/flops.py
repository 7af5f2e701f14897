"""Floating-point operations of training, counted from shapes: a product of matrices (m, k) and (k, n) is 2mkn.

Counted are the linear layers, the patch embedding and the two products of attention; norms, activations and rotations
are left out, as in every published figure. The backward pass depends on what trains: a weight costs one product, the
gradient that flows on to earlier layers another, and below the first thing that trains there is none. What activation
checkpointing computes again is told apart, and so does not count as useful work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mini_internvl.model.lora import LoraLinear
from mini_internvl.model.vlm import InternVL
from mini_internvl.records import Size


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations of some work."""

    forward: float = 0.0
    backward: float = 0.0
    recomputed: float = 0.0  # forward once more, where activations are not kept

    @property
    def useful(self) -> float:
        """What utilisation of the processor is measured by."""
        return self.forward + self.backward

    def __add__(self, other: Flops) -> Flops:
        return Flops(
            forward=self.forward + other.forward,
            backward=self.backward + other.backward,
            recomputed=self.recomputed + other.recomputed,
        )

    def __mul__(self, times: float) -> Flops:
        return Flops(forward=self.forward * times, backward=self.backward * times, recomputed=self.recomputed * times)


@dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """What each thing costs that a batch holds."""

    encoder: Flops  # a tile through the encoder
    projector: Flops  # a tile through the projector
    token: Flops  # a token through the decoder, without attention's products
    pair: Flops  # a token that sees a token, itself included, in all layers of the decoder
    supervised: Flops  # a token through the head

    @property
    def tile(self) -> Flops:
        """A tile through encoder and projector."""
        return self.encoder + self.projector

    def kept(self, projected: bool) -> ModelFlops:
        """Of tiles whose features are kept: those of the encoder, or of encoder and projector (``projected``)."""
        return replace(self, encoder=Flops(), projector=Flops() if projected else self.projector)

    def step(self, sizes: Iterable[Size]) -> Flops:
        """Samples of these sizes, each a conversation of its own: the n tokens of one are n (n + 1) / 2 pairs."""
        total = Flops()
        for size in sizes:
            pairs = size.tokens * (size.tokens + 1) / 2
            total += self.work(tiles=size.tiles, tokens=size.tokens, pairs=pairs, supervised=size.supervised)
        return total

    def work(self, *, tiles: float, tokens: float, pairs: float, supervised: float) -> Flops:
        """So much of each."""
        return self.tile * tiles + self.token * tokens + self.pair * pairs + self.supervised * supervised


def count_flops(model: InternVL, checkpointed: Collection[str] = ()) -> ModelFlops:
    """Of a model whose parameters are frozen or not as they will train; on ``meta`` it needs no memory.

    ``checkpointed``: parts (vision, llm) whose blocks keep no activations.
    """
    patches = (model.config.image_size // model.config.vision.patch_size) ** 2
    blocks = len(model.vision_model.blocks(model.config.select_layer))
    encoder, flowing = encoder_flops(model.vision_model, patches, blocks, checkpointed="vision" in checkpointed)
    projector, flowing = _projector(model, flowing)
    llm: Any = model.language_model
    flowing = flowing or _trains(llm.embed_tokens)
    token = pair = Flops()
    for block in llm.layers:
        inside = flowing or _trains(block.input_layernorm)
        attn, mlp = block.self_attn, block.mlp
        queries, *others = (_linear(layer, inside) for layer in (attn.q_proj, attn.k_proj, attn.v_proj))
        attended, inside = _attention(attn.q_proj.out_features, inside or _trains(attn))
        out, _ = _linear(attn.o_proj, inside)
        inside = flowing or _trains(attn) or _trains(block.input_layernorm) or _trains(block.post_attention_layernorm)
        gate, up = _linear(mlp.gate_proj, inside), _linear(mlp.up_proj, inside)
        down, _ = _linear(mlp.down_proj, inside or gate[1] or up[1])
        each = [queries[0], *(other[0] for other in others), out, gate[0], up[0], down]
        flowing = flowing or _trains(block)
        again = "llm" in checkpointed and flowing
        token += _again(sum(each, Flops()), again)
        pair += _again(attended, again)
    head = _linear(llm.lm_head, flowing or _trains(llm.norm))[0] if llm.layers else Flops()
    return ModelFlops(encoder=encoder, projector=projector, token=token, pair=pair, supervised=head)


def encoder_flops(vision: Any, patches: int, blocks: int, *, checkpointed: bool = False) -> tuple[Flops, bool]:
    """One tile of so many patches through so many blocks of an InternViT, and whether a gradient flows back from it."""
    config, patch = vision.config, vision.embeddings.patch_embedding
    rows, flowing = patches + 1, _trains(vision.embeddings)
    size = 2.0 * 3 * config.patch_size**2 * patch.out_channels * patches
    total = Flops(forward=size, backward=size * patch.weight.requires_grad)
    for block in vision.encoder.layers[:blocks]:
        inside = flowing or _trains(block.norm1)
        qkv, inside = _linear(block.attn.qkv, inside)
        attended, inside = _attention(config.hidden_size, inside or _trains(block.attn))
        proj, _ = _linear(block.attn.proj, inside)
        inside = flowing or _trains(block.norm1) or _trains(block.attn) or block.ls1.requires_grad
        first, inside = _linear(block.mlp.fc1, inside or _trains(block.norm2))
        second, _ = _linear(block.mlp.fc2, inside)
        flowing = flowing or _trains(block)
        each = (qkv + proj + first + second) * rows + attended * rows**2
        total += _again(each, checkpointed and flowing)
    return total, flowing


def _projector(model: InternVL, flowing: bool) -> tuple[Flops, bool]:
    """One tile through the projector, and whether a gradient flows back from its visual tokens."""
    if not len(model.mlp1):
        return Flops(), flowing
    first, inside = _linear(model.mlp1[1], flowing or _trains(model.mlp1[0]))
    second, inside = _linear(model.mlp1[3], inside)
    return (first + second) * model.config.tokens_per_tile, inside


def _linear(layer: Any, flowing: bool) -> tuple[Flops, bool]:
    """One row through a linear layer whose input has a gradient or not; whether its output has one."""
    matrices = [(layer.in_features, layer.out_features, flowing, getattr(layer, "weight", None))]
    if isinstance(layer, LoraLinear):
        matrices += [(layer.in_features, layer.rank, flowing, layer.lora_A)]
        matrices += [(layer.rank, layer.out_features, flowing or layer.lora_A.requires_grad, layer.lora_B)]
    total = Flops()
    for wide, high, into, weight in matrices:
        products = into + (weight is not None and weight.requires_grad)
        total += Flops(forward=2.0 * wide * high, backward=2.0 * wide * high * products)
    return total, flowing or _trains(layer)


def _attention(width: int, flowing: bool) -> tuple[Flops, bool]:
    """A query that sees a key: two products forward, four backward (a fused kernel computes one of them once more)."""
    return Flops(forward=4.0 * width, backward=8.0 * width * flowing), flowing


def _again(flops: Flops, again: bool) -> Flops:
    return flops + Flops(recomputed=flops.forward) if again else flops


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
