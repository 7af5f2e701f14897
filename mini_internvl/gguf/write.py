"""Two GGUF files of a checkpoint or an adapter, in a new folder: ``NAME-TYPE.gguf`` and ``mmproj-NAME-TYPE.gguf``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mini_internvl.engine import hub
from mini_internvl.files import check_new, new_folder
from mini_internvl.gguf import language, run, vision, vocabulary
from mini_internvl.gguf.tensors import FILE_TYPES, TYPES, Pair, library, write_tensors
from mini_internvl.inputs.tokenizer import Tokenizer
from mini_internvl.inputs.tokenizer_files import load_tokenizer, stop_ids
from mini_internvl.model import llms
from mini_internvl.model.adapter import is_adapter, load_adapted
from mini_internvl.model.checkpoint import check_state, read_config, read_state
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.heads import stored_files
from mini_internvl.model.lora import merge_lora

MADE_BY_LLAMA_CPP = ("q4_k_m", "q4_k_s", "q5_k_m", "q5_k_s", "q6_k", "q3_k_m", "q2_k")
"""Types that llama.cpp makes of a float16 file, and the gguf package cannot."""


def write_gguf(
    source: str | Path,
    target: Path,
    *,
    kind: str = "f16",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write a checkpoint for llama.cpp; an adapter is merged into its base in memory, in float32.

    Args:
        kind: a name of :data:`TYPES` or :data:`MADE_BY_LLAMA_CPP`. Where it is quantised, the mmproj is float16.
        progress: called with the tensors written and their number.

    Returns:
        Folder, files, bytes, number of tensors by their types, the context that llama.cpp computes as the model, and
        the files of heads, which it does not compute.

    Raises:
        ValueError: the gguf package is not there, the type is unknown, the folder's name begins with mmproj, a weight
            has no place in the type, or the model is one that llama.cpp does not compute; nothing is written.
    """
    check_new(target)
    kind = _known(kind)
    library()
    folder = hub.resolve(source)
    home = hub.base_folder(folder)
    config, tokenizer = _checked(home)
    state = _state(folder, home)
    name = target.resolve().name
    if name.startswith("mmproj"):
        raise ValueError(f"{target}: files whose names begin with mmproj hold the encoder; give another name")
    title = _title(name, phi3=vocabulary.strips_like_phi3(tokenizer))
    stops = stop_ids(home, tokenizer)
    check_state(state, config, home)
    jobs = _jobs(state, config)
    total, done = sum(len(list(pairs(True))) for _, pairs in jobs.values()), 0

    def step(size: int) -> None:
        nonlocal done
        done += 1
        progress(done, total)

    counts: dict[str, dict[str, int]] = {}
    with new_folder(target) as temporary:
        for part, (architecture, pairs) in jobs.items():
            stored, path = _place(temporary, name, part, kind)
            writer = _writer(path, architecture, title, stored)
            if part == "mmproj":
                vision.add_keys(writer, config)
            else:
                writer.add_type(library().GGUFType.MODEL)
                language.add_keys(writer, config.llm)
                vocabulary.add_keys(writer, tokenizer, stops, config)
            counts[path.name] = write_tensors(writer, pairs, stored, step)
            if part == "model" and kind != stored:
                counts[f"{name}-{kind}.gguf"] = _made_by_llama_cpp(path, temporary / f"{name}-{kind}.gguf", kind)
                del counts[path.name]
    files = {file: (target / file).stat().st_size for file in counts}
    return {
        "source": str(folder),
        "folder": str(target),
        "files": list(files),
        "bytes": sum(files.values()),
        "tensors": counts,
        "context": language.context_length(config.llm),
        "left_out": list(stored_files(folder)),
    }


def _checked(home: Path) -> tuple[VLMConfig, Tokenizer]:
    """A model that llama.cpp computes, and its tokenizer, which it can rebuild; ValueError for any other."""
    config = read_config(home)
    vision.check(config)
    language.check(config.llm)
    tokenizer = load_tokenizer(home)
    vocabulary.vocabulary(tokenizer, config.llm.vocab_size)
    return config, tokenizer


def _writer(path: Path, architecture: str, title: str, stored: str) -> Any:
    package = library()
    writer = package.GGUFWriter(path, architecture)
    writer.add_name(title)
    writer.add_file_type(package.LlamaFileType[FILE_TYPES[stored]])
    writer.add_quantization_version(package.GGML_QUANT_VERSION)
    return writer


def _known(kind: str) -> str:
    """llama.cpp's name of a type; ValueError lists the known ones, or says what is missing to make another."""
    wanted = kind.lower()
    if wanted in MADE_BY_LLAMA_CPP:
        try:
            run.library()
        except ValueError as error:
            raise ValueError(
                f"{error}; or write f16 and make {wanted} of it: "
                f"llama-quantize NAME-F16.gguf NAME-{wanted.upper()}.gguf {wanted.upper()}"
            ) from None
        return wanted.upper()
    if wanted not in TYPES:
        raise ValueError(f'unknown GGUF type "{kind}"; known: {", ".join((*TYPES, *MADE_BY_LLAMA_CPP))}')
    return TYPES[wanted]


def _place(folder: Path, name: str, part: str, kind: str) -> tuple[str, Path]:
    """The type that a part is written in here, and its file."""
    if part == "mmproj":
        stored = kind if kind in ("F32", "F16", "BF16") else "F16"
        return stored, folder / f"mmproj-{name}-{stored}.gguf"
    stored = kind if kind in FILE_TYPES else "F16"
    return stored, folder / f"{name}-{stored}.gguf"


def _made_by_llama_cpp(source: Path, target: Path, kind: str) -> dict[str, int]:
    """Make a type of the float16 file, which goes; how many tensors are stored in which type."""
    run.quantize(source, target, kind)
    source.unlink()
    return dict(Counter(tensor.tensor_type.name for tensor in library().GGUFReader(target).tensors))


def _state(folder: Path, home: Path) -> Mapping[str, Tensor]:
    """A checkpoint's tensors under our names, memory-mapped; of an adapter those of the merged model."""
    if not is_adapter(folder):
        return dict(read_state(home))
    return merge_lora(load_adapted(folder, base=home)).state_dict()


def _title(name: str, *, phi3: bool) -> str:
    """``general.name``, by which llama.cpp tells a Phi-3 and how it strips white space."""
    plain = re.sub("phi-?3", "phi", name, flags=re.IGNORECASE)
    return f"{plain} (phi-3)" if phi3 else plain


def _jobs(state: Mapping[str, Tensor], config: VLMConfig) -> dict[str, tuple[str, Callable[[bool], Iterable[Pair]]]]:
    """Part -> its architecture in llama.cpp, and what gives its tensors, or empty ones of their shapes."""
    shapes = {name: tensor.to("meta") for name, tensor in state.items()}
    architecture = llms.find(config.llm.architecture).GGUF.architecture
    return {
        "model": (architecture, lambda empty: language.tensors(shapes if empty else state, config.llm)),
        "mmproj": ("clip", lambda empty: vision.tensors(shapes if empty else state, config)),
    }
