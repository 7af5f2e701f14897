"""A model as two OpenVINO graphs: tiles -> visual tokens, and tokens -> logits.

Both are written out operation by operation from the modules and their configuration, so that weights stay in their own
type and are not copied: the model must outlive its graphs and what is compiled from them. They are plain graphs that
any OpenVINO reads and NNCF can quantise; the decoder's has causal attention over one sequence. :func:`paged` makes of
it the graph that answers: every token is a row, those of many sequences stand one after the other, and keys and values
lie in blocks outside. That form cannot be written to a file.
Shapes: N tokens of all rows, H heads, K key-value heads, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mini_internvl.model import vision
from mini_internvl.model.config import DecoderConfig, VisionConfig, VLMConfig
from mini_internvl.model.decoder import Attention, Decoder, GatedMLP
from mini_internvl.model.vision import RMSNorm
from mini_internvl.model.vlm import InternVL

try:
    import openvino as ov
    from openvino import opset13 as op
except ImportError:  # the back end says so before it comes here
    ov = op = None

ATTENTION = "attention"
"""Begins the names of the attention operations, and of what they read: queries, keys and values."""
_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def encoder_graph(model: InternVL) -> Any:
    """``encode_images`` for one tile: pixel_values (1, 3, S, S) -> visual_tokens (1, tokens per tile, hidden)."""
    config, encoder = model.config, model.vision_model
    side, patch, width = config.image_size, config.vision.patch_size, config.vision.hidden_size
    rows = side // patch
    embeddings = encoder.embeddings
    pixels = _parameter("pixel_values", [1, 3, side, side], ov.Type.f32)
    step, none = [patch, patch], [0, 0]
    patches = op.convolution(pixels, _weight(embeddings.patch_embedding.weight), step, none, none, [1, 1])
    assert embeddings.patch_embedding.bias is not None
    patches = op.add(patches, _array(embeddings.patch_embedding.bias.reshape(1, -1, 1, 1)))
    patches = op.transpose(op.reshape(patches, _ints(1, width, rows * rows), False), _ints(0, 2, 1))
    x = op.concat([_array(embeddings.class_embedding), patches], 1)
    x = op.add(x, _array(embeddings._positions(rows, rows)))
    for block in cast(Iterable[Any], encoder.blocks(config.select_layer)):
        attended = _tile_attention(block.attn, _norm(block.norm1, x), config.vision)
        x = op.add(x, op.multiply(attended, _array(block.ls1)))
        wide = op.gelu(_linear(block.mlp.fc1, _norm(block.norm2, x)), "erf")
        x = op.add(x, op.multiply(_linear(block.mlp.fc2, wide), _array(block.ls2)))
    x = op.slice(x, _one(1), _one(1 + rows * rows), _one(1), _one(1))
    x = _unshuffled(op.reshape(x, _ints(1, rows, rows, width), False), rows, width, config)
    norm, first, _, second = cast(Iterable[Any], model.mlp1)
    tokens = _linear(second, op.gelu(_linear(first, _norm(norm, x)), "erf"))
    tokens.output(0).set_names({"visual_tokens"})
    return ov.Model([tokens.output(0)], [pixels], "encoder")


def _unshuffled(x: Any, side: int, width: int, config: VLMConfig) -> Any:
    """``pixel_unshuffle`` of (1, side, side, width), the grid as one axis."""
    ratio = config.downsample_ratio
    small, wide, whole = int(side * ratio), int(width / ratio), int(width / ratio**2)
    x = op.transpose(op.reshape(x, _ints(1, side, small, wide), False), _ints(0, 2, 1, 3))
    x = op.reshape(x, _ints(1, small, small, whole), False)
    x = op.transpose(x, _ints(0, 2, 1, 3)) if config.ps_version == "v2" else x
    return op.reshape(x, _ints(1, small * small, whole), False)


def _tile_attention(attention: vision.Attention, x: Any, config: VisionConfig) -> Any:
    heads, width = config.heads, config.hidden_size
    parts = op.split(_linear(attention.qkv, x), _ints(2), 3).outputs()
    if attention.qk_norm:  # over all heads together
        parts[:2] = _norm(attention.q_norm, parts[0]).outputs() + _norm(attention.k_norm, parts[1]).outputs()
    split = [op.reshape(part, _ints(1, -1, heads, width // heads), False) for part in parts]
    seen = op.scaled_dot_product_attention(*[op.transpose(part, _ints(0, 2, 1, 3)) for part in split])
    return _linear(attention.proj, op.reshape(op.transpose(seen, _ints(0, 2, 1, 3)), _ints(1, -1, width), False))


def decoder_graph(decoder: Decoder) -> Any:
    """The decoder over one sequence, with weights in the type that they have; computed in float32.

    Inputs: ids (N,) int32; visual (N or 1, hidden) and is_visual (N or 1, 1), which rows take the place of embedded
    ids; cos and sin (N, D) of each token; last (rows,) int32, whose tokens' logits are wanted. Gives (rows, V) float32.
    """
    config = decoder.config
    ids = _parameter("ids", [-1], ov.Type.i32)
    visual = _parameter("visual", [-1, config.hidden_size], ov.Type.f32)
    is_visual = _parameter("is_visual", [-1, 1], ov.Type.boolean)
    cos = _parameter("cos", [-1, config.head_dim], ov.Type.f32)
    sin = _parameter("sin", [-1, config.head_dim], ov.Type.f32)
    last = _parameter("last", [-1], ov.Type.i32)
    x = op.select(is_visual, visual, op.gather(_weight(decoder.embed_tokens.weight), ids, _ints(0)))
    tables = [op.reshape(table, _ints(-1, 1, 1, config.head_dim), False) for table in (cos, sin)]
    for index, block in enumerate(cast(Iterable[Any], decoder.layers)):
        name = f"{ATTENTION}.{index}"
        x = op.add(x, _attention(block.self_attn, _norm(block.input_layernorm, x), tables, config, name))
        x = op.add(x, _mlp(block.mlp, _norm(block.post_attention_layernorm, x)))
    x = _norm(decoder.norm, op.gather(x, last, _ints(0)))
    logits = _linear(decoder.lm_head, x)
    logits.output(0).set_names({"logits"})
    return ov.Model([logits.output(0)], [ids, visual, is_visual, cos, sin, last], "decoder")


def _parameter(name: str, shape: list[int], kind: Any) -> Any:
    node = op.parameter(shape, kind, name=name)
    node.output(0).set_names({name})
    return node


def _ints(*values: int) -> Any:
    return op.constant(np.array(values if len(values) > 1 else values[0], dtype=np.int32))


def _one(value: int) -> Any:
    return op.constant(np.array([value], dtype=np.int32))


def _array(tensor: Tensor) -> Any:
    """A small float32 constant."""
    return op.constant(tensor.detach().float().numpy())


def _weight(tensor: Tensor) -> Any:
    """A constant as float32 that shares the tensor's memory, which must outlive all that is made of the graph."""
    tensor, shared = tensor.detach(), tensor.is_contiguous()
    narrow = tensor.dtype != torch.float32
    raw = (tensor.contiguous().view(torch.int16) if narrow else tensor.contiguous()).numpy()
    held = ov.Tensor(raw, list(tensor.shape), getattr(ov.Type, _NAMES[tensor.dtype]))
    constant = op.constant(held, shared_memory=shared)
    if not narrow:
        return constant
    wide = op.convert(constant, "f32")
    wide.get_rt_info()["decompression_0"] = ""  # stays narrow in memory instead of being folded
    return wide


def _linear(layer: nn.Linear, x: Any) -> Any:
    y = op.matmul(x, _weight(layer.weight), False, True)
    return y if layer.bias is None else op.add(y, _array(layer.bias))


def _norm(norm: nn.Module, x: Any) -> Any:
    if isinstance(norm, nn.LayerNorm):
        scaled = op.mvn(x, _one(-1), True, norm.eps, "inside_sqrt")
        return op.add(op.multiply(scaled, _array(norm.weight)), _array(norm.bias))
    assert isinstance(norm, RMSNorm)
    squares = op.reduce_mean(op.power(x, np.float32(2)), _ints(-1), True)
    scaled = op.multiply(x, op.divide(np.float32(1), op.sqrt(op.add(squares, np.float32(norm.eps)))))
    return op.multiply(scaled, _array(norm.weight))


def _rotate(x: Any, tables: list[Any], width: int) -> Any:
    """(N, heads, 1, D) by cosines and sines (N, 1, 1, D); the two halves of D form the pairs."""
    half = width // 2
    first = op.slice(x, _one(0), _one(half), _one(1), _one(3))
    second = op.slice(x, _one(half), _one(width), _one(1), _one(3))
    turned = op.concat([op.multiply(second, np.float32(-1)), first], -1)
    return op.add(op.multiply(x, tables[0]), op.multiply(turned, tables[1]))


def _attention(attention: Attention, x: Any, tables: list[Any], config: DecoderConfig, name: str) -> Any:
    heads, kv_heads, width = config.heads, config.kv_heads, config.head_dim
    q, k, v = (_linear(layer, x) for layer in (attention.q_proj, attention.k_proj, attention.v_proj))
    q = op.reshape(q, _ints(-1, heads, 1, width), False)
    k = op.reshape(k, _ints(-1, kv_heads, 1, width), False)
    if config.qk_norm:
        q, k = _norm(attention.q_norm, q), _norm(attention.k_norm, k)
    q, k = _rotate(q, tables, width), _rotate(k, tables, width)
    flat = []
    for part, count, own in ((q, heads, "q"), (k, kv_heads, "k"), (v, kv_heads, "v")):
        node = op.reshape(part, _ints(-1, count * width), False)
        node.set_friendly_name(f"{name}.{own}")
        flat.append(node)
    split = []
    for node, per_key in zip(flat, (heads // kv_heads, 1, 1), strict=True):
        grouped = op.reshape(node, _ints(-1, kv_heads, per_key, width), False)
        split.append(op.transpose(grouped, _ints(1, 2, 0, 3)))  # (K, H / K or 1, N, D)
    seen = op.scaled_dot_product_attention(*split, causal=True)
    together = op.reshape(op.transpose(seen, _ints(2, 0, 1, 3)), _ints(-1, heads * width), False)
    together.set_friendly_name(name)
    return _linear(attention.o_proj, together)


def _mlp(mlp: GatedMLP, x: Any) -> Any:
    gate = op.swish(_linear(mlp.gate_proj, x))
    return _linear(mlp.down_proj, op.multiply(gate, _linear(mlp.up_proj, x)))


def paged(graph: Any, config: DecoderConfig) -> Any:
    """A decoder graph with attention over blocks of keys and values, changed in place.

    More inputs, all int32: past_lens (rows,), subsequence_begins (rows + 1,), block_indices (blocks of all rows),
    block_indices_begins (rows + 1,), max_context_len (); and key_cache.N and value_cache.N of every layer N, in type
    and shape as the compiled model asks for them. A row's tokens are those from its begin to the next one's.
    """
    from openvino.op import _PagedAttentionExtension

    nodes = {node.get_friendly_name(): node for node in graph.get_ops()}
    rows = [_parameter(name, [-1], ov.Type.i32) for name in ("past_lens", "subsequence_begins")]
    rows += [_parameter(name, [-1], ov.Type.i32) for name in ("block_indices", "block_indices_begins")]
    longest = _parameter("max_context_len", [], ov.Type.i32)
    added = [*rows, longest]
    scale = op.constant(np.array(1 / math.sqrt(config.head_dim), dtype=np.float32))
    window = op.constant(np.array(config.sliding_window or 0, dtype=np.int32))
    no_ints, no_floats = (op.constant(np.empty((0,), dtype=kind)) for kind in (np.int32, np.float32))
    zero, no_bytes = op.constant(np.array(0, dtype=np.int32)), op.constant(np.empty((0,), dtype=np.uint8))
    # Behind the length: aggregated scores, rotated blocks, sparse attention, sinks, evicted blocks, token types and
    # biases, none of which is used.
    unused = [no_ints, no_ints, no_ints, no_floats, no_floats, zero, zero, no_floats]
    unused += [zero, no_ints, no_ints, no_ints, no_ints, no_bytes, no_ints]
    for index in range(config.layers):
        name = f"{ATTENTION}.{index}"
        caches = [
            _parameter(f"{kind}_cache.{index}", [-1, config.kv_heads, -1, config.head_dim], ov.Type.dynamic)
            for kind in ("key", "value")
        ]
        reads = [nodes[f"{name}.{part}"] for part in "qkv"]
        node = _PagedAttentionExtension(
            [part.output(0) for part in [*reads, *caches, *rows, scale, window, no_floats, longest, *unused]]
        )
        facts = node.get_rt_info()
        facts["num_k_heads"] = facts["num_v_heads"] = config.kv_heads
        facts["k_head_size"] = facts["v_head_size"] = config.head_dim
        nodes[name].output(0).replace(node.output(0))
        added += caches
    graph.add_parameters(added)
    graph.validate_nodes_and_infer_types()
    return graph
