"""Tokenizers from a checkpoint folder's own files, without running code from the folder.

Three kinds: ``vocab.json`` + ``merges.txt`` (Qwen2's byte-level BPE), ``tokenizer.model`` (sentencepiece, with the
habits of the slow Llama and InternLM2 tokenizers, which the released models were trained with), ``tokenizer.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mini_internvl.files import read_bytes, read_object, read_text
from mini_internvl.inputs.tokenizer import AddedToken, FastTokenizer, SentencePieceTokenizer, Tokenizer, TokenizerError

if TYPE_CHECKING:
    import tokenizers

QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's pre-tokenisation (``tokenization_qwen2.py``)."""
VOCABULARIES = ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
"""Official tokenizer files that transformers leaves alone beside a tokenizer.json."""
REPLACED = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
"""Official files whose names the native ones need."""
PROCESSOR = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
FILES = (*VOCABULARIES, *REPLACED, *PROCESSOR, "tokenizer.json", "chat_template.jinja")
"""Files beside the weights that a checkpoint needs to talk; they go along when it is saved or converted."""
FLAGS = ("lstrip", "rstrip", "single_word", "special")  # of an added token
MAX_ID = 10_000_000  # ids from here on are taken for damage
NO_SPACE_IN_FRONT = b"\x1a\x02\x18\x00"
"""``normalizer_spec { add_dummy_prefix: false }`` as protobuf; appended to a model file it overrides the field."""


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder; TokenizerError when it has no tokenizer files, or broken ones."""
    folder = Path(folder)
    config = read_settings(folder / "tokenizer_config.json", missing_ok=True)
    try:
        config |= (config.get("official_files") or {}).get("tokenizer_config.json") or {}  # of a native folder
        added = _added_tokens(folder, config)
        roles = _roles({**config, **read_settings(folder / "special_tokens_map.json", missing_ok=True)})
    except TokenizerError:
        raise
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerError(
            f"{folder}: the added tokens cannot be read ({type(error).__name__}: {error}); copy tokenizer_config.json, "
            "added_tokens.json and special_tokens_map.json again"
        ) from None
    pad_token = roles.get("pad_token")
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return _bpe(folder, added, pad_token)
    if (folder / "tokenizer.model").exists():
        return _sentencepiece(folder, added, config, roles)
    if (folder / "tokenizer.json").exists():
        return _json(folder, pad_token)
    raise TokenizerError(
        f"{folder} holds no tokenizer: needed are vocab.json and merges.txt, or tokenizer.model, or tokenizer.json; "
        "copy them from the original checkpoint"
    )


def _bpe(folder: Path, added: Sequence[AddedToken], pad_token: str | None) -> Tokenizer:
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    vocab = read_settings(folder / "vocab.json")
    lines = read_text(folder / "merges.txt", error=TokenizerError).split("\n")
    try:
        # The original's reader takes every line that begins with "#" for a comment, so that "##" stays two tokens.
        pairs = (line.split() for line in lines if line.strip() and not line.startswith("#"))
        merges = [(left, right) for left, right in pairs]
        model = models.BPE(vocab, merges)
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(
            f"{folder}/merges.txt is broken or of another vocab.json ({_line(error)}); copy both again"
        ) from None
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_PIECES), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    backend.decoder = decoders.ByteLevel()
    for token in sorted(added, key=lambda token: token.id):
        backend.add_tokens([backend_token(token)])
        if backend.token_to_id(token.content) != token.id:
            raise TokenizerError(
                f'{folder}: added token "{token.content}" has id {token.id} but comes at '
                f"{backend.token_to_id(token.content)}; vocab.json and added_tokens.json are of different models"
            )
    return FastTokenizer(backend, added, "bpe", pad_token)


def backend_token(token: AddedToken, *, normalized: bool = False) -> tokenizers.AddedToken:
    """The token as the ``tokenizers`` library knows it; ``normalized`` looks for it in normalised text."""
    import tokenizers

    flags = {name: getattr(token, name) for name in FLAGS}
    return tokenizers.AddedToken(token.content, normalized=normalized, **flags)


def _sentencepiece(
    folder: Path, added: Sequence[AddedToken], config: Mapping[str, Any], roles: Mapping[str, str]
) -> Tokenizer:
    import sentencepiece

    sentencepiece.set_min_log_level(2)  # it warns of a null character in every InternLM2 model
    llama = str(config.get("tokenizer_class", "")).startswith("Llama")
    every_piece = not llama or bool(config.get("legacy", True))
    proto = read_bytes(folder / "tokenizer.model", error=TokenizerError) + (b"" if every_piece else NO_SPACE_IN_FRONT)
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=proto)
    except RuntimeError as error:
        raise TokenizerError(f"{folder}/tokenizer.model is broken ({_line(error)}); copy it again") from None
    return SentencePieceTokenizer(
        model,
        added,
        prefix_every_piece=every_piece,
        add_bos=bool(config.get("add_bos_token", True)),
        named=frozenset(roles.values()),
        pad_token=roles.get("pad_token"),
    )


def _json(folder: Path, pad_token: str | None) -> Tokenizer:
    import tokenizers

    rows = read_settings(folder / "tokenizer.json").get("added_tokens") or []
    try:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        added = [_added(row["id"], row) for row in rows]
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{folder}/tokenizer.json is broken ({_line(error)}); copy it again") from None
    return FastTokenizer(backend, added, "json", pad_token)


def stop_ids(folder: str | Path, tokenizer: Tokenizer) -> list[int]:
    """Ids that end an answer by generation_config.json: numbers or texts of tokens; null and no file mean none.

    TokenizerError when one is neither a number nor a token, or has no place in the vocabulary.
    """
    path = Path(folder) / "generation_config.json"
    value = read_settings(path, missing_ok=True).get("eos_token_id")
    found = []
    for stop in value if isinstance(value, list) else [value]:
        if isinstance(stop, str):
            found.append(tokenizer.token_id(stop))
        elif isinstance(stop, int) and not isinstance(stop, bool) and 0 <= stop < MAX_ID:
            found.append(stop)
        elif stop is not None:
            raise TokenizerError(f"{path}: eos_token_id holds {stop!r:.60}; it must be the id or the text of a token")
    return found


def _added_tokens(folder: Path, config: Mapping[str, Any]) -> list[AddedToken]:
    """From ``added_tokens_decoder`` (with flags), completed by added_tokens.json (without)."""
    rows = config.get("added_tokens_decoder") or {}
    tokens = {row["content"]: _added(number, row) for number, row in rows.items()}
    for content, number in read_settings(folder / "added_tokens.json", missing_ok=True).items():
        tokens.setdefault(content, _added(number, {"content": content, "special": True}))
    return list(tokens.values())


def _added(number: int | str, row: Mapping[str, Any]) -> AddedToken:
    flags = {name: bool(row.get(name, False)) for name in FLAGS}
    content, number = row["content"], int(number)
    if not isinstance(content, str) or not content or not 0 <= number < MAX_ID:
        raise ValueError(f"token {content!r:.60} has the id {number:.3g}")
    return AddedToken(content=content, id=number, **flags)


def _roles(config: Mapping[str, Any]) -> dict[str, str]:
    """Role ("bos_token", ...) -> token; the additional special tokens under their own text."""
    names = [f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
    more = [_text(token) for token in config.get("additional_special_tokens") or ()]
    return {name: _text(config[name]) for name in names if config.get(name)} | {token: token for token in more}


def _text(token: Any) -> str:
    text = token["content"] if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ValueError(f"{text!r:.60} is no token")
    return text


def _line(error: Exception) -> str:
    """A library's message in one line."""
    return " ".join(str(error).split())


def read_settings(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """The object of a JSON file of a tokenizer, empty where it may be missing and is."""
    if missing_ok and not path.exists():
        return {}
    return read_object(path, error=TokenizerError)
