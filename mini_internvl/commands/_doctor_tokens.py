"""The doctor's look at the tokenizer, the template and the special tokens of both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mini_internvl.commands._doctor_folder import Folder, listed
from mini_internvl.inputs import chat
from mini_internvl.inputs.tokenizer import Tokenizer, TokenizerError
from mini_internvl.inputs.tokenizer_files import load_tokenizer
from mini_internvl.model import llms
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.files import CONFIG
from mini_internvl.records import ChatTemplate

TOKENIZER_FILES = ("special_tokens_map.json", "merges.txt", "tokenizer.model", "tokenizer.json", "vocab.json")
ADDED, SETTINGS, GENERATION = "added_tokens.json", "tokenizer_config.json", "generation_config.json"


def check_tokens(folder: Folder, config: VLMConfig | None, rows: int | None) -> None:
    """Tokenizer files, sizes, added tokens, template and stop tokens."""
    template = None
    if config is not None:
        folder.facts["template"] = str(config.template)
        template = chat.TEMPLATES.get(config.template)
        if template is None:
            what = f'names the unknown chat template "{config.template}"'
            folder.add("error", CONFIG, what, f'set "template" to one of {", ".join(chat.TEMPLATES)}')
    if not _files_there(folder, config):
        return
    try:
        tokenizer = load_tokenizer(folder.path)
    except TokenizerError as error:
        if not any(finding.file in str(error) for finding in folder.findings):
            text = str(error)
            places = [(text.find(name), name) for name in (SETTINGS, ADDED, *TOKENIZER_FILES) if name in text]
            folder.add_error(min(places, default=(0, SETTINGS))[1], error)
        return
    folder.facts["tokenizer"] = f"{tokenizer.kind}, {tokenizer.size:,} tokens"
    _sizes(folder, tokenizer, rows, config)
    _family_tokens(folder, tokenizer, config)
    _spellings(folder)
    if template is not None:
        _template_tokens(folder, tokenizer, template)
    _stop_tokens(folder, tokenizer, template)


def _files_there(folder: Folder, config: VLMConfig | None) -> bool:
    """Whether there is a tokenizer to load; what is missing is reported by name."""
    native = (folder.json(CONFIG) or {}).get("model_type") == "internvl"
    wanted = llms.find(config.llm.architecture).TOKENIZER if config and not native else ()
    missing = [name for name in wanted if not folder.has(name)]
    if any(all(map(folder.has, backbone.TOKENIZER)) for backbone in llms.backbones().values()):
        return True
    if folder.has("tokenizer.json"):
        if missing:
            what = f"is the only tokenizer file; the released checkpoints come with {' and '.join(missing)}"
            remedy = f"for the same ids as in training copy {' and '.join(missing)} from the original checkpoint"
            folder.add("warning", "tokenizer.json", what, remedy)
        return True
    halves = ("vocab.json", "merges.txt")
    missing = missing or [name for name in halves if not folder.has(name)]
    missing = missing if wanted or len(missing) == 1 else ["tokenizer.json"]
    backbone = f" of {config.llm.architecture}" if config else ""
    what = f"is missing: the tokenizer{backbone} needs {' and '.join(wanted or missing)}"
    folder.add("error", missing[0], what, f"copy {' and '.join(missing)} from the original checkpoint")
    return False


def _sizes(folder: Folder, tokenizer: Tokenizer, rows: int | None, config: VLMConfig | None) -> None:
    largest = 1 + max((token.id for token in tokenizer.added.values()), default=-1)
    size = max(tokenizer.size, largest)
    if rows is None or size == rows:
        return
    what = f"the tokenizer has {size:,} tokens, the embedding table {rows:,} rows"
    if size > rows:
        beyond = [token.content for token in tokenizer.added.values() if token.id >= rows]
        which = f"; without a row are {listed(beyond)}" if beyond else ""
        remedy = "take tokenizer and weights from one checkpoint, or resize the tables to the tokenizer and train them"
        folder.add("error", SETTINGS, what + which, remedy)
    else:
        usual = config is not None and llms.find(config.llm.architecture).IMAGE_TOKEN is not None
        remedy = f"check that {ADDED} is the checkpoint's own; spare rows do no harm otherwise"
        remedy = "the released checkpoints have such rows, too; nothing is to be done" if usual else remedy
        folder.add("note" if usual else "warning", ADDED, f"{what}: {rows - size:,} rows have no token", remedy)


def _family_tokens(folder: Folder, tokenizer: Tokenizer, config: VLMConfig | None) -> None:
    missing = [token for token in chat.FAMILY_TOKENS if token not in tokenizer.added]
    file = ADDED if folder.has(ADDED) or tokenizer.kind != "json" else "tokenizer.json"
    if missing:
        remedy = f"copy {ADDED}, {SETTINGS} and special_tokens_map.json from the original checkpoint"
        folder.add("error", file, f"special tokens are missing: {listed(missing, 9)}", remedy)
    wanted = config.image_token_id if config else None
    there = tokenizer.added.get("<IMG_CONTEXT>")
    if wanted is not None and there is not None and there.id != wanted:
        what = f"img_context_token_id is {wanted}, but the tokenizer gives <IMG_CONTEXT> the id {there.id}"
        remedy = f"set img_context_token_id to {there.id}, or copy the tokenizer files that belong to these weights"
        folder.add("error", CONFIG, what, remedy)
    ids = [tokenizer.added[token].id for token in chat.FAMILY_TOKENS if token in tokenizer.added]
    if not missing and ids != list(range(ids[0], ids[0] + 9)):
        order = ", ".join(f"{token} {number}" for token, number in zip(chat.FAMILY_TOKENS, ids, strict=True))
        remedy = "leave them if the model was trained so; else copy the tokenizer files of the original checkpoint"
        folder.add("warning", file, f"the nine special tokens are not in the official order: {order}", remedy)


def _spellings(folder: Folder) -> None:
    """added_tokens.json against added_tokens_decoder of tokenizer_config.json."""
    plain_ids, settings = folder.json(ADDED) or {}, folder.json(SETTINGS) or {}
    rows = settings.get("added_tokens_decoder")
    decoder: Mapping[str, Any] = rows if isinstance(rows, dict) else {}
    ids = {row.get("content"): number for number, row in decoder.items() if isinstance(row, dict)}
    wrong = [token for token, number in plain_ids.items() if token in ids and str(ids[token]) != str(number)]
    if wrong:
        token = wrong[0]
        what = f"gives {token} the id {plain_ids[token]}, {SETTINGS} gives it {ids[token]}"
        folder.add("error", ADDED, what, f"copy {ADDED} and {SETTINGS} from one checkpoint")


def _template_tokens(folder: Folder, tokenizer: Tokenizer, template: ChatTemplate) -> None:
    text = template.system_role + template.user_role + template.assistant_role + template.sep
    marks = list(dict.fromkeys(re.findall(r"<\|[^|]*\|>", text)))
    missing = [mark for mark in marks if mark not in tokenizer.added]
    if missing:
        file = "tokenizer.json" if tokenizer.kind == "json" else SETTINGS
        what = f'lacks tokens of the template "{template.name}": {listed(missing)}'
        remedy = f'copy the tokenizer files of the original checkpoint, or correct "template" in {CONFIG}'
        folder.add("error", file, what, remedy)


def _stop_tokens(folder: Folder, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
    """generation_config.json should stop at the template's separator."""
    end = tokenizer.added.get(template.sep.strip()) if template else None
    if not (folder.path / GENERATION).exists():
        hint = f': {{"eos_token_id": [{end.id}]}}' if end else ""
        what = "is missing: other programs will not know where an answer ends"
        folder.add("warning", GENERATION, what, f"copy it from the original checkpoint, or write it{hint}")
        return
    settings = folder.json(GENERATION)
    if settings is None:
        return
    value = settings.get("eos_token_id")
    stops = value if isinstance(value, list) else [value]
    if value is None or not all(isinstance(stop, int) for stop in stops):
        remedy = f"set it to [{end.id}]" if end else "copy the file from the original checkpoint"
        folder.add("warning", GENERATION, f"eos_token_id is {value!r}: no token ends an answer", remedy)
    elif end is not None and end.id not in stops:
        what = f"eos_token_id {value} lacks {end.id}, the separator {end.content} of the template"
        folder.add("warning", GENERATION, what, f"add {end.id} to eos_token_id")
