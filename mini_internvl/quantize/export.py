"""From a model to the files that OpenVINO answers from: two graphs, configuration, tokenizer and their origin.

The encoder becomes int8 by static quantisation, whose ranges are measured on pictures. The decoder's weights become
int4 or int8 in groups, its embedding table and output matrix int8 in either case. NNCF does both.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mini_internvl.engine import hub, load_model
from mini_internvl.engine.backends import openvino as backend
from mini_internvl.engine.backends._signal_stack import kept_signal_stack
from mini_internvl.files import FileError, copy_file, write_json
from mini_internvl.inputs.tokenizer_files import FILES
from mini_internvl.model.adapter import is_adapter, tensors_hash
from mini_internvl.model.files import CONFIG, read_tensors
from mini_internvl.model.layouts import official
from mini_internvl.model.lora import merge_lora
from mini_internvl.model.vlm import InternVL

BITS = (4, 8, 16)
GROUPS = (64, 32, 16)  # columns that share a scale of int4 weights: the first that divides every width
Report = Callable[[str, int, int], None]  # what is done, how far, of how much


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the weights become."""

    bits: int = 4
    """Of the decoder's weights: 4, 8, or 16, which only stores them as float16."""
    encoder_bits: int = 8
    """Of the encoder's weights and activations: 8, or 16 as above."""

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits}; it must be 4, 8 or 16")
        if self.encoder_bits not in (8, 16):
            raise ValueError(f"the encoder's bits are {self.encoder_bits}; they must be 8 or 16")


@dataclass(frozen=True, kw_only=True)
class Source:
    """The model that is quantised, its adapters merged."""

    name: str
    model: InternVL
    files: Path
    """Folder of its configuration and tokenizer; its base's for an adapter."""
    facts: dict[str, Any]
    """Names and hashes of the weights."""


def require() -> None:
    """ValueError with the line that installs what is missing."""
    if problem := backend.missing():
        raise ValueError(problem)
    try:
        version("nncf")
    except ImportError:
        raise ValueError(f"quantising needs nncf; {backend.INSTALL}") from None


def read_source(name: str | None) -> Source:
    """A checkpoint or adapter of any layout, in the type of its files; ValueError says why it cannot be quantised."""
    folder = hub.resolve(name)
    if backend.is_quantised(folder):
        raise FileError(f"{folder} is quantised already; give the checkpoint that it was made from")
    home = hub.base_folder(folder)
    kind = next(tensor.dtype for _, tensor in read_tensors(home))
    adapted = is_adapter(folder)
    model = load_model(folder, dtype=torch.float32 if adapted else kind)
    backend.check_supported(model.config, folder)
    if adapted:
        model = merge_lora(model)
    facts = {"base": str(home), "base_sha256": tensors_hash(home), "adapter": str(folder) if adapted else None}
    return Source(name=name or "nano", model=model.eval(), files=home, facts=facts)


def write(source: Source, plan: Plan, tiles: Sequence[Tensor], folder: Path, report: Report) -> dict[str, Any]:
    """Write everything but the agreement into a folder; returns the facts of :data:`backend.FACTS`.

    ``tiles`` are normalised (3, S, S) pictures, on which the ranges of an int8 encoder are measured.
    """
    import openvino as ov

    from mini_internvl.engine.backends import _openvino_graph as graphs

    began = time.monotonic()
    model, config = source.model, source.model.config
    for name in FILES:
        if (source.files / name).exists():
            copy_file(source.files / name, folder / name)
    write_json(folder / CONFIG, official.from_official_config(config.official, model.image_token_id, "float32"))
    report("decoder", 0, 1)
    decoder = _compressed(graphs.decoder_graph(model.language_model), plan, _group(model))
    ov.save_model(decoder, folder / backend.DECODER, compress_to_fp16=plan.bits == 16)
    del decoder
    report("decoder", 1, 1)
    model.vision_model.float(), model.mlp1.float()
    encoder = graphs.encoder_graph(model)
    if plan.encoder_bits == 8:
        encoder = _calibrated(encoder, tiles, report)
    ov.save_model(encoder, folder / backend.ENCODER, compress_to_fp16=True)
    facts = {
        "model": source.name,
        **source.facts,
        **asdict(plan),
        "group": _group(model) if plan.bits == 4 else None,
        "pictures": len(tiles) if plan.encoder_bits == 8 else 0,
        "seconds": round(time.monotonic() - began, 1),
        "openvino": ov.__version__.partition("-")[0],
        "nncf": version("nncf"),
    }
    write_json(folder / backend.FACTS, facts)
    return facts


def _group(model: InternVL) -> int:
    """Columns that share a scale; -1, all of a row, where no size of :data:`GROUPS` fits."""
    llm = model.config.llm
    widths = (llm.hidden_size, llm.intermediate_size, llm.heads * llm.head_dim)
    return next((size for size in GROUPS if all(width % size == 0 for width in widths)), -1)


def _compressed(graph: Any, plan: Plan, group: int) -> Any:
    """The decoder's graph with narrow weights."""
    if plan.bits == 16:
        return graph
    with _quiet_nncf() as nncf:
        if plan.bits == 8:
            return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
        kinds = {"mode": nncf.CompressWeightsMode.INT4_SYM, "backup_mode": nncf.BackupMode.INT8_SYM}
        return nncf.compress_weights(graph, **kinds, group_size=group, ratio=1.0)


def _calibrated(graph: Any, tiles: Sequence[Tensor], report: Report) -> Any:
    """The encoder's graph in int8, its ranges measured on the tiles."""
    if not tiles:
        raise ValueError("there are no pictures to measure the encoder's ranges on; give some, or keep it at 16 bits")
    done = 0

    def given(tile: Tensor) -> dict[str, Any]:
        nonlocal done
        done = done % len(tiles) + 1
        report("encoder", done, len(tiles) + 1)
        return {"pixel_values": tile[None].numpy()}

    with _quiet_nncf() as nncf:
        quantised = nncf.quantize(
            graph,
            nncf.Dataset(list(tiles), given),
            subset_size=len(tiles),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.PERFORMANCE,
        )
    report("encoder", len(tiles) + 1, len(tiles) + 1)
    return quantised


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[Any]:
    """NNCF without its bars and lines, and without the telemetry that it would send."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    import nncf
    from nncf.common.logging import nncf_logger

    level = nncf_logger.level
    nncf_logger.setLevel(logging.ERROR)  # nncf.set_log_level would set its handlers too, also those of others
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
            kept_signal_stack(),
        ):
            yield nncf
    finally:
        nncf_logger.setLevel(level)
