"""A stage-1 starting point from its parts: an InternViT, a plain language model and a fresh projector.

As in the original's fine-tuning script, nine tokens follow the base tokenizer's own, both vocabulary tables get exactly
as many rows as the tokenizer has tokens (base models carry spare rows, which go), and a new row of the output matrix is
the mean of the kept ones. Qwen3's spare rows stay, as in the released 3.5. Unlike in the original, new input rows are
always drawn afresh, also where the base had spare rows.
Source: ``internvl/train/internvl_chat_finetune.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mini_internvl.files import check_new, new_folder, write_json
from mini_internvl.inputs import chat
from mini_internvl.inputs.tokenizer import SentencePieceTokenizer, Tokenizer, TokenizerError
from mini_internvl.inputs.tokenizer_files import load_tokenizer
from mini_internvl.model import layouts, llms
from mini_internvl.model.checkpoint import read_vision_config, to_official, vision_tensors
from mini_internvl.model.config import ConfigError, VLMConfig
from mini_internvl.model.files import CONFIG, CheckpointError, read_json, read_tensors, write_tensors
from mini_internvl.model.sizes import compose
from mini_internvl.model.vlm import InternVL

MAX_LENGTH = 8192  # ``model_max_length`` of the released tokenizers
STOPS = {"phi3-chat": ("</s>", "<|endoftext|>", "<|end|>"), "": ("<|im_start|>", "<|im_end|>")}
"""Tokens that end an answer, by template; "" for the rest."""
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Fields of special_tokens_map.json beside the additional tokens."""
FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
DROPPED = ("auto_map", "transformers_version", "_commit_hash")
"""Fields of a part's config.json that make no sense in the whole."""
EMBEDDINGS = ("model.embed_tokens.weight", "model.tok_embeddings.weight")
HEADS = ("lm_head.weight", "output.weight")


def join_parts(
    vision: Path, llm: Path, output: Path, *, template: str | None = None, seed: int = 0, max_tiles: int = 12
) -> Path:
    """Write a checkpoint in the official layout from a vision encoder and a language model.

    Tensors pass one shard at a time and keep their types; the projector takes the language model's.

    Args:
        vision: bare InternViT folder, the folder of a whole model whose encoder is taken, or of a CLIP model.
        llm: Qwen2, InternLM2 or Phi-3 in its plain Hugging Face form, with its tokenizer files.
        output: folder that does not exist yet, or is empty.
        template: chat template; ``None`` takes the one of the language model's file.
        seed: of the projector and the new input rows.
        max_tiles: most tiles of an image, thumbnail not counted.

    Raises:
        CheckpointError, ConfigError, TokenizerError, ChatError: a part is missing, of another kind, or does not fit.
    """
    vision, llm, output = Path(vision), Path(llm), Path(output)
    check_new(output)
    if max_tiles < 1:
        raise ConfigError(f"max_tiles is {max_tiles}; it must be at least 1")
    llm_raw, vision_raw = _llm_config(llm), _vision_config(vision)
    template = template or str(llms.find(llm_raw["architectures"][0]).TEMPLATE)
    chat.find_template(template)
    with new_folder(output) as folder:
        old, tokenizer = _write_tokenizer(llm, folder, template)
        _check_released(llm, llm_raw, tokenizer)
        spare = llm_raw["vocab_size"] if llms.find(llm_raw["architectures"][0]).IMAGE_TOKEN else 0
        llm_raw = {**llm_raw, "vocab_size": max(spare, tokenizer.size), "tie_word_embeddings": False}
        raw = compose(
            vision_raw,
            llm_raw,
            image_size=int(vision_raw.get("image_size", 448)),
            max_tiles=max_tiles,
            template=template,
            img_context_token_id=tokenizer.token_id(chat.IMAGE_CONTEXT),
        )
        config = VLMConfig.from_official(raw)
        kept: dict[str, torch.dtype] = {}
        write_tensors(_checked(_joined(vision, llm, config, old=old, seed=seed), config, kept), folder)
        raw["torch_dtype"] = str(kept["mlp1.1.weight"]).removeprefix("torch.")
        write_json(folder / CONFIG, raw)
    return output


def _llm_config(folder: Path) -> dict[str, Any]:
    """config.json of a plain language model, without what points at code."""
    raw = read_json(folder / CONFIG)
    names = raw.get("architectures") or ["unknown"]
    if _is_whole(raw) or names[0] not in llms.backbones():
        raise ConfigError(
            f"{folder / CONFIG} is of {names[0]}, not of a plain language model; known: {', '.join(llms.backbones())}"
        )
    try:
        plain = _plain_rope({key: value for key, value in raw.items() if key not in DROPPED})
        llms.read_config(plain)
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from None
    return plain


def _plain_rope(raw: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings in the official spelling; current transformers keeps them all under ``rope_parameters``."""
    given = dict(raw.get("rope_parameters") or {})
    if not given:
        return raw
    raw = {key: value for key, value in raw.items() if key != "rope_parameters"}
    theta, part = given.pop("rope_theta", None), given.pop("partial_rotary_factor", 1.0)
    if part != 1.0:
        raise ConfigError(f"rope_parameters.partial_rotary_factor is {part}; this family turns whole heads")
    if theta is not None:
        raw["rope_theta"] = theta
    kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
    raw["rope_scaling"] = None if kind == "default" else {"type": kind, **given}
    original = given.get("original_max_position_embeddings")
    return {"original_max_position_embeddings": original, **raw} if original else raw


def _vision_config(folder: Path) -> dict[str, Any]:
    """Configuration of the encoder, bare, of a whole model or of what CLIP becomes."""
    return {key: value for key, value in read_vision_config(folder).items() if key not in DROPPED}


def _is_whole(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a vision-language model."""
    return any(layout.matches(raw) for layout in layouts.layouts().values())


def _joined(vision: Path, llm: Path, config: VLMConfig, *, old: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the new checkpoint: encoder, language model, projector."""
    yield from ((f"vision_model.{name}", tensor) for name, tensor in vision_tensors(vision))
    generator = torch.Generator().manual_seed(seed)
    size, std = config.llm.vocab_size, config.llm.initializer_range
    embeddings: Tensor | None = None
    has_head, dtype = False, torch.float32
    for name, tensor in read_tensors(llm):
        if name in EMBEDDINGS:
            embeddings, dtype = tensor, tensor.dtype
            tensor = _resized_input(tensor, old, size, std, generator)
        elif name in HEADS:
            has_head = True
            tensor = _resized_output(tensor, old, size)
        if not name.endswith("rotary_emb.inv_freq"):
            yield f"language_model.{name}", tensor
    if embeddings is None:
        raise CheckpointError(f"{llm} holds none of {', '.join(EMBEDDINGS)}; give a plain language model's folder")
    if not has_head:
        if read_json(llm / CONFIG).get("tie_word_embeddings") is False:
            raise CheckpointError(f"{llm} holds no output matrix ({' or '.join(HEADS)}); fetch its weights again")
        head = HEADS[1] if config.llm.architecture == "InternLM2ForCausalLM" else HEADS[0]
        yield f"language_model.{head}", _resized_output(embeddings, old, size)
    for name, tensor in _projector(config, generator):
        yield name, tensor.to(dtype)


def _resized_input(table: Tensor, old: int, size: int, std: float, generator: torch.Generator) -> Tensor:
    """(rows, hidden) -> (size, hidden): the first ``old`` rows stay, the rest is normal."""
    kept = table[:old]
    fresh = torch.empty(size - len(kept), table.shape[1]).normal_(0.0, std, generator=generator)
    return torch.cat([kept, fresh.to(table.dtype)])


def _resized_output(table: Tensor, old: int, size: int) -> Tensor:
    """(rows, hidden) -> (size, hidden): the first ``old`` rows stay, the rest is their mean."""
    kept = table[:old]
    mean = kept.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([kept, mean.expand(size - len(kept), -1)])


def _projector(config: VLMConfig, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """LayerNorm at one, linear weights normal, biases zero."""
    wide, hidden, std = config.projector_input, config.llm.hidden_size, config.llm.initializer_range
    yield "mlp1.0.weight", torch.ones(wide)
    yield "mlp1.0.bias", torch.zeros(wide)
    for name, shape in (("mlp1.1", (hidden, wide)), ("mlp1.3", (hidden, hidden))):
        yield f"{name}.weight", torch.empty(shape).normal_(0.0, std, generator=generator)
        yield f"{name}.bias", torch.zeros(hidden)


def _checked(
    tensors: Iterator[tuple[str, Tensor]], config: VLMConfig, kept: dict[str, torch.dtype]
) -> Iterator[tuple[str, Tensor]]:
    """The same tensors, held against what the configuration asks for; their types are noted in ``kept``."""
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in to_official(InternVL(config)).items()}
    for name, tensor in tensors:
        part = "vision encoder" if name.startswith("vision") else "language model"
        if name not in wanted:
            raise CheckpointError(f"the {part} holds {name}, which its config.json does not ask for; fetch both again")
        if tensor.shape != wanted[name]:
            raise CheckpointError(
                f"{name} has shape {tuple(tensor.shape)}, the {part}'s config.json asks for {tuple(wanted[name])}"
            )
        kept[name] = tensor.dtype
        yield name, tensor
    missing = sorted(wanted.keys() - kept.keys())
    if missing:
        raise CheckpointError(f"the parts lack {len(missing)} tensors, first {missing[0]}; fetch their weights again")


def _check_released(llm: Path, raw: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    """A base model of a released size must give the released vocabulary and ids."""
    backbone, shape = llms.find(raw["architectures"][0]), ("hidden_size", "num_hidden_layers")
    rows = [row for row in backbone.SIZES.values() if all(row[name] == raw[name] for name in shape)]
    first = backbone.IMAGE_TOKEN - 2 if backbone.IMAGE_TOKEN else None
    released = [(first or row["vocab_size"] - 9) + 9 for row in rows]
    context = tokenizer.token_id(chat.IMAGE_CONTEXT)
    if released and (tokenizer.size, context) not in [(size, size - 7) for size in released]:
        known = " or ".join(f"{size} and {size - 7}" for size in dict.fromkeys(released))
        raise TokenizerError(
            f"{llm}: with the nine tokens the tokenizer has {tokenizer.size} and <IMG_CONTEXT> is {context}; the "
            f"released model has {known}; copy the tokenizer files of the original base model"
        )


def _write_tokenizer(source: Path, folder: Path, template: str) -> tuple[int, Tokenizer]:
    """Copy the base's tokenizer files with the nine tokens added; the number of tokens before, and the new tokenizer.

    TokenizerError where the base has no tokenizer, or lacks the template's tokens.
    """
    base = load_tokenizer(source)
    old = base.size
    new = {token: old + i for i, token in enumerate(token for token in chat.FAMILY_TOKENS if token not in base.added)}
    if base.kind == "json":
        _add_to_json(source / "tokenizer.json", folder / "tokenizer.json", new)
    else:
        for name in ("vocab.json", "merges.txt") if base.kind == "bpe" else ("tokenizer.model",):
            shutil.copyfile(source / name, folder / name)
    _write_settings(source, folder, base, new)
    tokenizer = load_tokenizer(folder)
    sep = chat.find_template(template).sep.strip()
    stops = [token for token in STOPS.get(template, STOPS[""]) if token in tokenizer.added]
    if sep not in tokenizer.added:
        raise TokenizerError(f'{source}: the tokenizer has no token {sep}, which the template "{template}" needs')
    eos = sorted({tokenizer.token_id(token) for token in (*stops, sep)})
    write_json(folder / "generation_config.json", {"_from_model_config": False, "eos_token_id": eos})
    wrong = [token for token, number in new.items() if tokenizer.token_id(token) != number]
    if wrong or tokenizer.size != old + len(new):
        raise TokenizerError(f"{source}: added tokens do not follow the base vocabulary of {old}; copy its files again")
    return old, tokenizer


def _write_settings(source: Path, folder: Path, base: Tokenizer, new: Mapping[str, int]) -> None:
    """added_tokens.json, tokenizer_config.json and special_tokens_map.json with the new tokens."""

    def read(name: str) -> dict[str, Any]:
        return read_json(source / name) if (source / name).exists() else {}

    settings, special = read("tokenizer_config.json"), read("special_tokens_map.json")
    base_size = _base_size(source, base)
    beyond = {token.content: token.id for token in base.added.values() if token.id >= base_size} | dict(new)
    write_json(folder / "added_tokens.json", dict(sorted(beyond.items(), key=lambda item: item[1])))
    decoder: dict[int, Any] = {}
    for token in base.added.values():
        flags = {name: getattr(token, name) for name in FLAGS if name != "normalized"}
        decoder[token.id] = {"content": token.content, **FLAGS, **flags}
    decoder |= {number: {"content": token, **FLAGS} for token, number in new.items()}
    for number, row in (settings.get("added_tokens_decoder") or {}).items():
        decoder[int(number)] = row
    named = settings.get("additional_special_tokens") or special.get("additional_special_tokens") or []
    texts = [token["content"] if isinstance(token, dict) else token for token in named]
    texts += [token for token in chat.FAMILY_TOKENS if token not in texts]
    dropped = ("auto_map", "add_eos_token")
    settings = {key: value for key, value in settings.items() if key not in dropped} | {
        "added_tokens_decoder": {str(number): decoder[number] for number in sorted(decoder)},
        "additional_special_tokens": texts,
        "add_eos_token": False,
        "model_max_length": MAX_LENGTH,
    }
    write_json(folder / "tokenizer_config.json", settings)
    roles = {role: special.get(role) or settings.get(role) for role in ROLES}
    written = {"additional_special_tokens": texts} | {role: token for role, token in roles.items() if token}
    write_json(folder / "special_tokens_map.json", written)


def _base_size(source: Path, base: Tokenizer) -> int:
    """Tokens of the vocabulary file alone."""
    if base.kind == "bpe":
        return len(read_json(source / "vocab.json"))
    if base.kind == "json":
        return base.size - len(base.added)
    assert isinstance(base, SentencePieceTokenizer)
    return int(base.model.get_piece_size())


def _add_to_json(source: Path, target: Path, new: Mapping[str, int]) -> None:
    """tokenizer.json with further special tokens."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(source))
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in new])
    target.write_text(json.dumps(json.loads(backend.to_str()), ensure_ascii=False), encoding="utf-8")
