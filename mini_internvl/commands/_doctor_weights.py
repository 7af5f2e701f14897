"""The doctor's look at weights: files, index, names and shapes, all from headers; values only when asked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from mini_internvl.commands._doctor_folder import Folder, listed
from mini_internvl.model.config import VisionConfig, VLMConfig
from mini_internvl.model.files import CONFIG, INDEX, PICKLES, WEIGHTS, CheckpointError, stays_inside
from mini_internvl.model.headers import Stored, read_header
from mini_internvl.model.layouts import layouts, native, official
from mini_internvl.model.sizes import shapes_only
from mini_internvl.model.vision import InternViT
from mini_internvl.model.vlm import InternVL

Progress = Callable[[int, int], None]
LORA = ("lora_A", "lora_B", "lora_embedding_", ".base_layer.", "base_model.model.")
EMBEDDINGS = ("embed_tokens.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "language_model.output.weight")
IN_MEMORY = {
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
"""Native folders: the names in memory, which some were saved with -> those on disk."""


def read_files(folder: Folder, single: str = WEIGHTS) -> dict[str, dict[str, Stored]]:
    """File -> tensors of every weight file that would be loaded; missing, damaged and unused files are reported."""
    present = folder.names("*.safetensors")
    headers: dict[str, dict[str, Stored]] = {}
    for name in present:
        _read(folder, name, headers)
    pickled = sorted(name for pattern in PICKLES for name in folder.names(pattern))
    weights = folder.json(INDEX)
    if weights is not None:
        used = _by_index(folder, weights, headers, present)
    elif single in present:
        used = [single]
        _idle(folder, [name for name in present if name != single], f"{single} alone is read")
    elif present:
        remedy = f"fetch {INDEX}, which says which tensor is in which file"
        folder.tell("error", INDEX, f"is missing although there are shards ({listed(present)})", remedy)
        used = present
    else:
        used = []
        if pickled:
            what = "holds the weights as a pickle, which can run code when it is loaded and is refused"
            folder.tell("error", pickled[0], what, f"convert the weights to safetensors and save them as {single}")
        elif not (folder.path / INDEX).exists():
            folder.tell("error", single, "is missing: the folder holds no weights", "fetch the safetensors files")
    if pickled and present:
        folder.tell("note", pickled[0], "is a pickle and is not read", "")
    return {name: headers[name] for name in used if name in headers}


def _read(folder: Folder, name: str, headers: dict[str, dict[str, Stored]]) -> None:
    try:
        headers[name] = dict(read_header(folder.path / name).tensors)
    except CheckpointError as error:
        folder.tell_error(name, error)


def _by_index(
    folder: Folder, index: Mapping[str, object], headers: dict[str, dict[str, Stored]], present: list[str]
) -> list[str]:
    """Files that the index names; shards that are missing, unused or do not hold what they should are reported."""
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        folder.tell("error", INDEX, "names no files", "fetch the index again")
        return present
    named = sorted(set(places.values()))
    outside = [name for name in named if not stays_inside(name)]
    if outside:
        folder.tell("error", INDEX, f"names files outside the folder: {listed(outside)}", "put the weights beside it")
        return present
    for name in named:
        if name not in headers and name not in present and folder.has(name):
            _read(folder, name, headers)
    missing = [name for name in named if not folder.has(name)]
    if missing:
        folder.tell("error", INDEX, f"names shards that are missing: {listed(missing)}", "fetch these files as well")
    _idle(folder, [name for name in present if name not in named], f"{INDEX} does not name it")
    for name in named:
        held = headers.get(name)
        if isinstance(held, dict):
            promised = {key for key, place in places.items() if place == name}
            lacking, extra = sorted(promised - held.keys()), sorted(held.keys() - promised)
            if lacking or extra:
                parts = [f"lacks {listed(lacking)}"] if lacking else []
                parts += [f"holds {listed(extra)} on top"] if extra else []
                what = f"is not the file that {INDEX} describes: it {' and '.join(parts)}"
                folder.tell("error", name, what, "fetch the shards and the index again, all of one version")
    return named


def _idle(folder: Folder, names: list[str], why: str) -> None:
    names = [name for name in names if not name.startswith("adapter_")]
    if names:
        remedy = "delete it if it is left from an earlier save; if it is needed, fetch the index that names it"
        folder.tell("warning", names[0], f"is not read ({why}): {listed(names)}", remedy)


def unwrap(folder: Folder, tensors: Mapping[str, Stored], raw: Mapping[str, object]) -> dict[str, Stored]:
    """Tensors without what low-rank adapters wrap around them; wrapped ones and stale settings are reported."""
    wrapped = sorted(name for name in tensors if any(mark in name for mark in LORA))
    ranks = {name: raw.get(name) for name in ("use_llm_lora", "use_backbone_lora") if raw.get(name)}
    settings = " and ".join(f"{name} {value}" for name, value in ranks.items())
    if wrapped:
        folder.tell(
            "error",
            CONFIG if ranks else WEIGHTS,
            f"{len(wrapped):,} tensors are wrapped by a low-rank adapter that was saved inside the full weights"
            f"{f' ({settings})' if ranks else ''}: {listed(wrapped, 2)}",
            "merge the adapter into the weights and save them under their plain names (merge_lora.py of the original "
            "repository does it), then set use_llm_lora and use_backbone_lora to 0 in config.json",
        )
    elif ranks:
        what = f"says {settings}, but the weights hold no adapter: the original code would add a fresh one"
        folder.tell("warning", CONFIG, what, f"set {' and '.join(ranks)} to 0")
    kept = {}
    for name, stored in tensors.items():
        if not any(mark in name for mark in LORA[:3]):
            kept[name.replace("base_model.model.", "").replace(".base_layer.", ".")] = stored
    return kept


def expected(config: VLMConfig | VisionConfig, layout: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a configuration asks for, in the layout's spelling; nothing is allocated."""
    with shapes_only():
        if isinstance(config, VisionConfig):
            state: Iterable[tuple[str, Tensor]] = InternViT(config).state_dict().items()
        else:
            state = layouts()[layout].write(InternVL(config).state_dict(), config)
        shapes = {name: tuple(tensor.shape) for name, tensor in state}
    return shapes


def is_tied(config: VLMConfig | VisionConfig) -> bool:
    """Whether the output matrix may be left out of the files, since it is the embedding table."""
    return isinstance(config, VLMConfig) and (official.is_tied(config) or bool(config.official.get(native.TIED)))


def compare(
    folder: Folder, tensors: Mapping[str, Stored], wanted: Mapping[str, tuple[int, ...]], *, tied: bool = False
) -> None:
    """Tell which tensors are missing, unexpected or misshapen; rows of the two vocabulary tables are left out.

    A tied model may have its output matrix in the files or not.
    """
    held = {_on_disk(name, wanted): stored.shape for name, stored in tensors.items()}
    held = {name: shape for name, shape in held.items() if not name.endswith("rotary_emb.inv_freq")}
    missing, extra = sorted(wanted.keys() - held.keys()), sorted(held.keys() - wanted.keys())
    if tied:
        missing, extra = ([n for n in names if not n.endswith(HEADS)] for names in (missing, extra))
    depth = _depth_hint(wanted, held)
    if missing:
        remedy = depth or "fetch or save the weights again: this checkpoint is not complete"
        if len(missing) == 1 and missing[0].endswith(HEADS):
            remedy = "the output matrix was tied to the embedding when it was saved; write a copy of it under this name"
        folder.tell("error", WEIGHTS, f"{len(missing):,} tensors are missing: {listed(missing)}", remedy)
    if extra:
        remedy = depth or "take config.json and weights from one and the same checkpoint"
        folder.tell("error", WEIGHTS, f"{len(extra):,} tensors are unexpected: {listed(extra)}", remedy)
    tables = (*EMBEDDINGS, *HEADS)
    for name in sorted(wanted.keys() & held.keys()):
        is_table = name.endswith(tables) and held[name][1:] == wanted[name][1:]
        if held[name] != wanted[name] and not is_table:
            others = sum(held[other] != wanted[other] for other in wanted.keys() & held.keys()) - 1
            more = f" (and {others:,} more do not fit)" if others > 0 else ""
            what = f"{name} has shape {held[name]}, config.json asks for {wanted[name]}{more}"
            folder.tell("error", WEIGHTS, what, "take config.json and weights from one and the same checkpoint")
            return


def _on_disk(name: str, wanted: Mapping[str, object]) -> str:
    if name not in wanted:
        for old, new in IN_MEMORY.items():
            if name.startswith(old) and new + name.removeprefix(old) in wanted:
                return new + name.removeprefix(old)
    return name


def _depth_hint(wanted: Iterable[str], held: Iterable[str]) -> str:
    """A remedy when only the number of blocks differs."""
    for part, field in (("vision", "vision_config"), ("language_model", "llm_config")):
        depths = []
        for names in (wanted, held):
            numbers = [re.search(r"layers?\.(\d{1,6})\.", name) for name in names if part in name]
            depths.append(1 + max((int(number[1]) for number in numbers if number), default=-1))
        if depths[0] != depths[1] and all(depths):
            setting = f"{field}.num_hidden_layers"
            return f"the weights have {depths[1]} {part} blocks: set {setting} to {depths[1]}, not {depths[0]}"
    return ""


def check_rows(folder: Folder, tensors: Mapping[str, Stored], vocab_size: int | None) -> int | None:
    """Tell when the two vocabulary tables and config.json disagree.

    Returns:
        Rows of the embedding table, or of what else is known.
    """
    rows: dict[str, int] = {}
    for label, names in (("embedding rows", EMBEDDINGS), ("lm_head rows", HEADS)):
        shapes = [stored.shape for name, stored in tensors.items() if name.endswith(names) and "vision" not in name]
        if shapes and shapes[0]:
            rows[label] = shapes[0][0]
    if vocab_size is not None:
        rows["vocab_size of config.json"] = vocab_size
    if len(set(rows.values())) > 1:
        tables = {value for label, value in rows.items() if "rows" in label}
        remedy = "resize both tables to the tokenizer's size and save the checkpoint again"
        if len(tables) == 1:
            remedy = f"set llm_config.vocab_size to {tables.pop()} in config.json"
        told = ", ".join(f"{label} {value:,}" for label, value in rows.items())
        folder.tell("error", CONFIG, f"vocabulary sizes disagree: {told}", remedy)
    return next(iter(rows.values()), None)


def check_values(folder: Folder, files: Mapping[str, Mapping[str, Stored]], progress: Progress) -> None:
    """Read every tensor once and tell which hold NaN or infinity."""
    from safetensors import SafetensorError, safe_open

    total, done = sum(map(len, files.values())), 0
    for name, tensors in files.items():
        bad = []
        try:
            with safe_open(folder.path / name, framework="pt") as file:
                for key in tensors:
                    values = file.get_tensor(key).flatten()
                    if values.is_floating_point() and not all(_finite(part) for part in values.split(1 << 22)):
                        bad.append(key)
                    done += 1
                    progress(done, total)
        except (SafetensorError, OSError, RuntimeError) as error:
            folder.tell("error", name, f"cannot be read ({error})", "fetch or save it again")
        if bad:
            what = f"{len(bad):,} tensors hold NaN or infinity: {listed(bad)}"
            folder.tell("error", name, what, "go back to an earlier checkpoint: training has diverged before this save")


def _finite(values: Tensor) -> bool:
    return bool(values.float().isfinite().all())


def sum_up(folder: Folder, files: Mapping[str, Mapping[str, Stored]]) -> None:
    """Parameters, types and files among the facts."""
    stored = [tensor for tensors in files.values() for tensor in tensors.values()]
    if not stored:
        return
    counts: Counter[str] = Counter()
    for tensor in stored:
        counts[tensor.dtype] += tensor.count
    total = sum(counts.values())
    folder.facts["parameters"] = total
    folder.facts["types"] = ", ".join(f"{name} {100 * n / max(1, total):.3g} %" for name, n in counts.most_common())
    size = sum((folder.path / name).stat().st_size for name in files)
    folder.facts["weights"] = f"{len(files)} file{'s' * (len(files) > 1)}, {size / 1e6:,.1f} MB"
