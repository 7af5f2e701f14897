"""Answers on a CPU through OpenVINO: int4 or int8 weights that ``minivl quantize`` wrote, or a checkpoint as it is.

Every forward is one flat row of tokens: chunks of prompts and single tokens of answers stand one after the other,
without padding. Keys and values lie in blocks of one pool, which grows when a slot needs more; a fork shares the blocks
that its beginning fills. The encoder takes one tile at a time, since a tile alone keeps the cores busy.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mini_internvl.engine import hub
from mini_internvl.engine.backends import Piece
from mini_internvl.engine.backends._signal_stack import kept_signal_stack
from mini_internvl.engine.device import INT8, fast_bfloat16, resolve_dtype
from mini_internvl.files import check_file, read_object
from mini_internvl.model.adapter import is_adapter, load_adapted
from mini_internvl.model.checkpoint import load_model, read_config
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.decoder import rotary_tables
from mini_internvl.model.files import QUANTISED
from mini_internvl.model.lora import merge_lora
from mini_internvl.model.vlm import InternVL, TokenCountError

INSTALL = 'pip install "mini-internvl[openvino]"'
FACTS = QUANTISED
"""What a folder of ``minivl quantize`` is made from; beside it lie the two graphs, config.json and the tokenizer."""
ENCODER, DECODER = "encoder.xml", "decoder.xml"
BLOCK = 32  # tokens of a block, which OpenVINO's CPU kernels prescribe
FIRST_BLOCKS = 16  # of the pool before anything is opened
KV_BYTES = 4 * 10**9
"""Bytes that keys and values may take; a request that needs more alone gets it."""


def missing() -> str:
    """Why this computer cannot use it; empty where it can."""
    if importlib.util.find_spec("openvino") is None:
        return f"OpenVINO is not installed; {INSTALL}"
    return ""


def is_quantised(folder: Path) -> bool:
    """Whether ``minivl quantize`` wrote the folder."""
    return (folder / FACTS).is_file()


def load(folder: Path, *, dtype: str = "auto", device: str = "auto") -> OpenVINOBackend:
    """A folder of ``minivl quantize``, a checkpoint or an adapter; ValueError says why it cannot be used.

    ``dtype`` "float32" computes exactly as the weights say; "auto" and the 16-bit types as fast as they can.
    """
    if problem := missing():
        raise ValueError(problem)
    if device not in ("auto", "cpu"):
        raise ValueError(f'device is "{device}", but OpenVINO answers on the CPU here; leave it out, or use torch')
    if dtype == INT8:
        done = is_quantised(folder)
        remedy = "is quantised already" if done else f"becomes int8 by minivl quantize {folder} --bits 8; or use torch"
        raise ValueError(f'dtype "{INT8}" is torch\'s, and {folder} {remedy}')
    if is_quantised(folder):
        return _load_quantised(folder, exact=dtype == "float32")
    from mini_internvl.engine.backends import _openvino_graph as graphs

    files = hub.base_folder(folder)
    kind = resolve_dtype(dtype, torch.device("cpu"), files)
    adapted = is_adapter(folder)
    model = merge_lora(load_adapted(folder, base=files)) if adapted else load_model(folder, dtype=kind)
    check_supported(model.config, folder)
    config = replace(model.config, image_token_id=model.image_token_id)
    parts = (graphs.encoder_graph(model), graphs.decoder_graph(model.language_model))
    return OpenVINOBackend(config, parts, name=kind, exact=kind == "float32", model=model)


def _load_quantised(folder: Path, *, exact: bool) -> OpenVINOBackend:
    import openvino as ov

    facts, config = read_object(folder / FACTS), read_config(folder)
    core = ov.Core()
    check_files(folder)
    try:
        parts = (core.read_model(folder / name) for name in (ENCODER, DECODER))
        kind = f"int{facts['bits']} int{facts['encoder_bits']}" + " exact" * exact
        return OpenVINOBackend(config, parts, name=kind, exact=exact)
    except (RuntimeError, KeyError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[-1]
        made = facts.get("openvino", "an unknown version")
        raise ValueError(
            f"{folder} was made by OpenVINO {made} and cannot be read by {ov.__version__} ({first}); "
            "write it again with minivl quantize"
        ) from error


def check_files(folder: Path) -> None:
    """FileError where a graph, or its weights, are missing."""
    for name in (ENCODER, DECODER):
        for path in (folder / name, (folder / name).with_suffix(".bin")):
            check_file(path)


def check_supported(config: VLMConfig, folder: Path) -> None:
    """ValueError for a model that cannot be written as graphs."""
    if config.flash:
        raise ValueError(f"{folder} is a Flash model, whose router does not run in OpenVINO here; use torch")


@dataclass(kw_only=True)
class _Slot:
    blocks: list[int]
    length: int = 0


class OpenVINOBackend:
    """One compiled model with its pool of blocks.

    ``graphs`` are the encoder's plain graph, then the decoder's, which is changed. Neither is held once it is compiled,
    so an iterator needs memory for one at a time. ``exact``: everything in float32; otherwise activations meet int4 and
    int8 weights as int8, and the encoder computes in bfloat16 where that is fast.
    ``model``: the one whose weights the graphs share, if they do.
    """

    def __init__(
        self, config: VLMConfig, graphs: Iterable[Any], *, name: str, exact: bool, model: InternVL | None = None
    ) -> None:
        import openvino as ov

        from mini_internvl.engine.backends._openvino_graph import paged

        self.config, self.arithmetic, self._model = config, f"openvino cpu {name}", model
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        precise = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        narrow = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"} if exact else {}
        fast = {"INFERENCE_PRECISION_HINT": "bf16"} if not exact and fast_bfloat16(torch.device("cpu")) else precise
        core, plain = ov.Core(), iter(graphs)
        self._encoding = threading.Lock()
        with kept_signal_stack():
            self._encoder = core.compile_model(next(plain), "CPU", {**threads, **fast}).create_infer_request()
            compiled = core.compile_model(paged(next(plain), config.llm), "CPU", {**threads, **precise, **narrow})
            self._decoder = compiled.create_infer_request()
        self._caches = [
            (given.get_any_name(), given.element_type, [size.get_length() for size in list(given.partial_shape)[1:]])
            for given in compiled.inputs
            if "_cache." in given.get_any_name()
        ]
        self._pool: dict[str, np.ndarray] = {}
        self._free: list[int] = []
        self._users: list[int] = []  # slots that hold each block
        self._slots: dict[int, _Slot] = {}
        self._grow(FIRST_BLOCKS)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, S, S) float32 normalised tiles -> (N, tokens per tile, LLM hidden) visual tokens."""
        tiles = pixel_values.float().cpu().contiguous().numpy()
        found = []
        for tile in tiles:
            with self._encoding:
                found.append(self._encoder.infer({"pixel_values": tile[None]})[0].copy())
        return torch.from_numpy(np.concatenate(found))

    def open(self, most_tokens: int) -> int:
        """A new empty slot."""
        return self._add(self._take(_blocks(most_tokens)), 0)

    def fork(self, slot: int, count: int, most_tokens: int) -> int:
        """A new slot that begins with ``count`` tokens of another; whole blocks are shared, the rest is copied."""
        theirs, whole = self._slots[slot].blocks, count // BLOCK
        own = self._take(max(_blocks(most_tokens), _blocks(count)) - whole)
        for block in theirs[:whole]:
            self._users[block] += 1
        if count % BLOCK:
            for array in self._pool.values():
                array[own[0]] = array[theirs[whole]]
        return self._add([*theirs[:whole], *own], count)

    def close(self, slot: int) -> None:
        """Give a slot's blocks back, but for those that others share."""
        for block in self._slots.pop(slot).blocks:
            self._users[block] -= 1
            if not self._users[block]:
                self._free.append(block)

    def free_tokens(self) -> int:
        """Tokens that further slots may have under the memory budget."""
        used = sum(map(bool, self._users))
        return (KV_BYTES // self._block_bytes() - used) * BLOCK

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        """(B, V) float32 logits of the last token of each piece; see the protocol."""
        slots = [self._slots[piece.slot] for piece in pieces]
        counts = [len(piece.ids) for piece in pieces]
        ends = [slot.length + count for slot, count in zip(slots, counts, strict=True)]
        for slot, end in zip(slots, ends, strict=True):
            assert end <= len(slot.blocks) * BLOCK, f"a slot of {len(slot.blocks) * BLOCK} tokens is full"
        held = [slot.blocks[: _blocks(end)] for slot, end in zip(slots, ends, strict=True)]
        begins = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        inputs = {
            **self._embedded(pieces),
            **self._rotation(pieces, slots, ends),
            "last": begins[1:] - 1,
            "past_lens": np.array([slot.length for slot in slots], dtype=np.int32),
            "subsequence_begins": begins,
            "block_indices": np.concatenate(held).astype(np.int32),
            "block_indices_begins": np.cumsum([0, *map(len, held)]).astype(np.int32),
            "max_context_len": np.array(max(ends), dtype=np.int32),
        }
        logits = torch.from_numpy(self._decoder.infer(inputs)[0].copy())
        for slot, end in zip(slots, ends, strict=True):
            slot.length = end
        return logits

    def _embedded(self, pieces: Sequence[Piece]) -> dict[str, np.ndarray]:
        """Ids of all pieces, and the rows that take the place of some."""
        ids = np.concatenate([piece.ids for piece in pieces]).astype(np.int32)
        visual = np.zeros((1, self.config.llm.hidden_size), dtype=np.float32)
        places = np.zeros((1, 1), dtype=bool)
        tokens = [piece.visual for piece in pieces if piece.visual is not None]
        if tokens:
            asked = [np.full(len(piece.ids), piece.visual is not None) for piece in pieces]
            places = ((ids == self.config.image_token_id) & np.concatenate(asked))[:, None]
            rows = torch.cat([rows.flatten(0, -2) for rows in tokens]).float().cpu().numpy()
            if len(rows) != (wanted := int(places.sum())):
                raise TokenCountError(
                    f"the prompt holds {wanted} <IMG_CONTEXT> tokens but the images give {len(rows)} visual tokens"
                )
            visual = np.zeros((len(ids), self.config.llm.hidden_size), dtype=np.float32)
            visual[places[:, 0]] = rows
        return {"ids": ids, "visual": visual, "is_visual": places}

    def _rotation(self, pieces: Sequence[Piece], slots: Sequence[_Slot], ends: Sequence[int]) -> dict[str, np.ndarray]:
        """Cosines and sines of all tokens (N, D), by the length that each row goes by."""
        positions = [torch.arange(slot.length, end) for slot, end in zip(slots, ends, strict=True)]
        lengths = [
            torch.full((len(own),), max(piece.prompt_length, end))
            for own, piece, end in zip(positions, pieces, ends, strict=True)
        ]
        llm = self.config.llm
        tables = rotary_tables(llm.rope, llm.head_dim, torch.cat(positions)[None], torch.cat(lengths)[None])
        return dict(zip(("cos", "sin"), (table[0, 0].numpy() for table in tables), strict=True))

    def _add(self, blocks: list[int], length: int) -> int:
        number = next(n for n in range(len(self._slots) + 1) if n not in self._slots)
        self._slots[number] = _Slot(blocks=blocks, length=length)
        return number

    def _take(self, count: int) -> list[int]:
        """So many free blocks."""
        if count > len(self._free):
            self._grow(max(count - len(self._free), len(self._users)))
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._users[block] = 1
        return taken

    def _grow(self, count: int) -> None:
        """Add blocks to the pool."""
        import openvino as ov

        before, after = len(self._users), len(self._users) + count
        for name, kind, shape in self._caches:
            array = np.zeros((after, *shape), dtype=kind.to_dtype())
            if before:
                array[:before] = self._pool[name]
            self._pool[name] = array
            self._decoder.set_tensor(name, ov.Tensor(array, shared_memory=True))
        self._users += [0] * count
        self._free += range(before, after)

    def _block_bytes(self) -> int:
        return sum(array[0].nbytes for array in self._pool.values())


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)
