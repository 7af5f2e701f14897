"""The files beside the weights in a Hugging Face native folder, made from an official folder's, and back.

transformers then loads tokenizer and processor with no network and no code from the folder, from ``tokenizer.json``
alone (see ``fast_json``). The official tokenizer files lie beside it unread, and those whose names are taken travel
inside tokenizer_config.json under ``official_files``, so that the way back loses nothing.

Not equal to :func:`chat.encode` in three rare texts: one that is nothing but a single added token without a role (Phi-3
loses the lone space in front), a base piece's own name where an added token took its number
("[UNUSED_TOKEN_141]", InternLM2), and the control characters 0x1c to 0x1f next to a token that strips (Phi-3).
Source: ``processing_internvl.py`` and ``image_processing_got_ocr2.py`` of transformers 5; generation stops as released.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mini_internvl.files import copy_file
from mini_internvl.inputs import chat, fast_json, jinja
from mini_internvl.inputs.tiles import MEAN, STD
from mini_internvl.inputs.tokenizer import Tokenizer, TokenizerError
from mini_internvl.inputs.tokenizer_files import REPLACED, VOCABULARIES, load_tokenizer, read_settings, stop_ids
from mini_internvl.records import ChatTemplate

if TYPE_CHECKING:
    import tokenizers

    from mini_internvl.model.config import VLMConfig

OFFICIAL = "official_files"  # key of a native tokenizer_config.json: official file name -> its content
VIDEO_TOKENS = ("<video>", "<|placeholder1|>", "<|plugin|>", "<quad>")
"""The processor wants a video placeholder: the first of these in the vocabulary, so that no row is added."""
STOPS = {
    "Hermes-2": ("<|im_start|>", "<|im_end|>"),
    "internlm2-chat": ("<|im_end|>", "<|im_start|>"),
    "phi3-chat": ("</s>", "<|endoftext|>", "<|end|>"),
}
"""Tokens that end an answer, in the order of the released generation_config.json files."""


def write_native_files(source: Path, target: Path, config: VLMConfig) -> list[Path]:
    """Write tokenizer, processor, chat template and generation settings for transformers; returns the files.

    ``source`` holds the official tokenizer files; ``target`` is the native folder, made when missing. TokenizerError
    when the source holds no tokenizer, or one that tokenizer.json cannot express; ChatError for an unknown template.
    """
    tokenizer = load_tokenizer(source)
    template = chat.find_template(config.template)
    backend = fast_json.backend(tokenizer)
    target.mkdir(parents=True, exist_ok=True)
    files = [target / "tokenizer.json"]
    backend.save(str(files[0]))
    vocabularies = [name for name in VOCABULARIES if (source / name).exists()]
    files += [copy_file(source / name, target / name) for name in vocabularies]
    official = {name: read_settings(source / name) for name in REPLACED if (source / name).exists()}
    bos = jinja.bos_token(tokenizer)
    contents: dict[str, Mapping[str, Any] | str] = {
        "tokenizer_config.json": _tokenizer_config(tokenizer, backend, official, bos),
        "special_tokens_map.json": official.get("special_tokens_map.json") or _roles(official),
        "generation_config.json": _generation_config(tokenizer, template, official, stop_ids(source, tokenizer)),
        "chat_template.jinja": jinja.chat_template(template, jinja.begin(tokenizer, template), config.system_message),
        **_processor_files(config),
    }
    return files + [_write(target / name, content) for name, content in contents.items()]


def write_official_files(source: Path, target: Path) -> list[Path]:
    """Write the tokenizer files of an official folder, made when missing, from a native one; returns the files.

    A folder written by :func:`write_native_files` gives its official files back. Of a folder made elsewhere the
    vocabulary files are copied; where it has only tokenizer.json, that is kept, with added_tokens.json beside it.
    TokenizerError when it holds no tokenizer.
    """
    target.mkdir(parents=True, exist_ok=True)
    settings = read_settings(source / "tokenizer_config.json", missing_ok=True)
    official = settings.pop(OFFICIAL, None)
    names = [name for name in VOCABULARIES if (source / name).exists()]
    bare = not {"tokenizer.model", "vocab.json"} & set(names)
    if bare and not (source / "tokenizer.json").exists():
        raise TokenizerError(f"{source} holds no tokenizer: needed is at least tokenizer.json; copy it there")
    if bare:
        names.append("tokenizer.json")
    files = [copy_file(source / name, target / name) for name in names]
    if bare and "added_tokens.json" not in names:
        rows = read_settings(source / "tokenizer.json").get("added_tokens", [])
        files.append(_write(target / "added_tokens.json", {row["content"]: row["id"] for row in rows}))
    if official is None:
        unread = ("chat_template", "processor_class", "auto_map")
        official = {"tokenizer_config.json": {key: value for key, value in settings.items() if key not in unread}}
        others = (name for name in REPLACED[1:] if (source / name).exists())
        official |= {name: read_settings(source / name) for name in others}
    return files + [_write(target / name, content) for name, content in official.items()]


def _roles(official: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens with a role, from whichever official file has them."""
    known = {**official.get("tokenizer_config.json", {}), **official.get("special_tokens_map.json", {})}
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "additional_special_tokens")
    return {name: known[name] for name in names if known.get(name)}


def _tokenizer_config(
    tokenizer: Tokenizer, backend: tokenizers.Tokenizer, official: Mapping[str, Any], bos: str
) -> dict[str, Any]:
    tokens = backend.get_added_tokens_decoder()
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    original = official.get("tokenizer_config.json", {})
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "InternVLProcessor",
        "added_tokens_decoder": {
            str(number): {flag: getattr(token, flag) for flag in flags} for number, token in sorted(tokens.items())
        },
        **_roles(official),
        "clean_up_tokenization_spaces": False,
        "model_max_length": original.get("model_max_length", 8192),
        "extra_special_tokens": {
            "context_image_token": chat.IMAGE_CONTEXT,
            "end_image_token": chat.IMAGE_END,
            "start_image_token": chat.IMAGE_START,
            "video_token": next((token for token in VIDEO_TOKENS if token in tokenizer.added), chat.IMAGE_END),
        },
        OFFICIAL: official,
    }
    return config | {"add_bos_token": True, "add_eos_token": False, "bos_token": bos} if bos else config


def _generation_config(
    tokenizer: Tokenizer, template: ChatTemplate, official: Mapping[str, Any], stops: list[int]
) -> dict[str, Any]:
    """The official generation_config.json with the template's stop tokens added to its own."""
    config = dict(official.get("generation_config.json", {}))
    more = (*STOPS.get(template.name, ()), template.sep.strip())
    stops += [tokenizer.token_id(token) for token in more if token in tokenizer.added]
    config["eos_token_id"] = list(dict.fromkeys(stops))
    if tokenizer.pad_token:
        config["pad_token_id"] = tokenizer.token_id(tokenizer.pad_token)
    if bos := jinja.bos_token(tokenizer):
        config["bos_token_id"] = tokenizer.token_id(bos)
    return config


def _processor_files(config: VLMConfig) -> dict[str, Mapping[str, Any]]:
    """preprocessor_config.json, video_preprocessor_config.json and processor_config.json.

    The processor always adds the thumbnail to an image of several tiles, and gives every image of a conversation the
    whole tile limit. With torchvision it resizes in another order than Pillow: most pixels are equal, the others differ
    by one step of 255, in tall images of high contrast by more.
    """
    side = {"height": config.image_size, "width": config.image_size}
    pixels = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "processor_class": "InternVLProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": side,
    }
    tiles = {"crop_to_patches": config.max_tiles > 1, "min_patches": config.min_tiles, "max_patches": config.max_tiles}
    return {
        "preprocessor_config.json": {**pixels, **tiles, "image_processor_type": "GotOcr2ImageProcessorFast"},
        "video_preprocessor_config.json": {**pixels, "video_processor_type": "InternVLVideoProcessor"},
        "processor_config.json": {"image_seq_length": config.tokens_per_tile, "processor_class": "InternVLProcessor"},
    }


def _write(path: Path, content: Mapping[str, Any] | str) -> Path:
    text = content if isinstance(content, str) else json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")
    return path
