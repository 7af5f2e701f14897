"""The doctor's look at weights: files, index, names and shapes, all from headers; values only when asked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from mini_internvl.commands._doctor_folder import Folder, listed
from mini_internvl.model import heads
from mini_internvl.model.config import VisionConfig, VLMConfig
from mini_internvl.model.files import (
    CONFIG,
    INDEX,
    PICKLES,
    QUANTISED,
    WEIGHTS,
    CheckpointError,
    Stored,
    read_header,
    weight_files,
)
from mini_internvl.model.layouts import layouts, native, official
from mini_internvl.model.sizes import shapes_only
from mini_internvl.model.vision import InternViT
from mini_internvl.model.vlm import InternVL

Files = Mapping[str, Mapping[str, Stored]]  # file -> its tensors
Progress = Callable[[int, int], None]
LORA = ("lora_A", "lora_B", "lora_embedding_", ".base_layer.", "base_model.model.")
EMBEDDINGS = ("embed_tokens.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "language_model.output.weight")
ONE_CHECKPOINT = "take config.json and weights from one and the same checkpoint"


def read_files(folder: Folder, single: str = WEIGHTS) -> dict[str, dict[str, Stored]]:
    """File -> tensors of every weight file that would be loaded; missing, damaged and unused files are reported."""
    present = [name for name in folder.names("*.safetensors") if name != heads.WEIGHTS]
    pickled = folder.names(*PICKLES)
    indexed = (folder.path / INDEX).exists()
    used = present
    if single in present and not indexed:
        used = [single]
    elif present and not indexed:
        remedy = f"fetch {INDEX}, which says which tensor is in which file"
        folder.add("error", INDEX, f"is missing although there are shards ({listed(present)})", remedy)
    elif (folder.path / QUANTISED).exists():
        what = "says that minivl quantize wrote this folder, which only answers, through OpenVINO"
        folder.add("error", QUANTISED, what, "to train or convert, take the checkpoint that it names")
    elif pickled and not indexed:
        what = "holds the weights as a pickle, which can run code when it is loaded and is refused"
        folder.add("error", pickled[0], what, f"convert the weights to safetensors and save them as {single}")
    elif not indexed:
        folder.add("error", single, "is missing: the folder holds no weights", "fetch the safetensors files")
    else:
        try:
            used = [path.relative_to(folder.path).as_posix() for path in weight_files(folder.path)]
        except CheckpointError as error:
            folder.add_error(INDEX, error)
            named = set(_places(folder).values())
            used = [name for name in present if name in named] or present
    idle = [name for name in present if name not in used and not name.startswith("adapter_")]
    if idle:
        why = f"{INDEX} does not name it" if indexed else f"{single} alone is read"
        remedy = "delete it if it is left from an earlier save; if it is needed, fetch the index that names it"
        folder.add("warning", idle[0], f"is not read ({why}): {listed(idle)}", remedy)
    if pickled and present:
        folder.add("note", pickled[0], "is a pickle and is not read", "")
    headers = {}
    for name in {**dict.fromkeys(present), **dict.fromkeys(used)}:
        try:
            headers[name] = read_header(folder.path / name)
        except CheckpointError as error:
            folder.add_error(name, error)
    files = {name: headers[name] for name in used if name in headers}
    _check_index(folder, files)
    return files


def _places(folder: Folder) -> dict[str, str]:
    """Tensor -> file as the index has it; nothing where it is broken."""
    places = (folder.json(INDEX) or {}).get("weight_map")
    whole = isinstance(places, dict) and all(isinstance(name, str) for name in places.values())
    return places if isinstance(places, dict) and whole else {}


def _check_index(folder: Folder, files: Files) -> None:
    """Report files that hold other tensors than the index says."""
    places = _places(folder)
    for name, held in files.items():
        promised = {key for key, place in places.items() if place == name}
        differences = ("lacks {}", promised - held.keys()), ("holds {} on top", held.keys() - promised)
        parts = [text.format(listed(sorted(names))) for text, names in differences if names]
        if promised and parts:
            what = f"is not the file that {INDEX} describes: it {' and '.join(parts)}"
            folder.add("error", name, what, "fetch the shards and the index again, all of one version")


def unwrap(folder: Folder, tensors: Mapping[str, Stored], raw: Mapping[str, object]) -> dict[str, Stored]:
    """Tensors without what low-rank adapters wrap around them; wrapped ones and stale settings are reported."""
    wrapped = sorted(name for name in tensors if any(mark in name for mark in LORA))
    ranks = {name: raw.get(name) for name in ("use_llm_lora", "use_backbone_lora") if raw.get(name)}
    settings = " and ".join(f"{name} {value}" for name, value in ranks.items())
    if wrapped:
        folder.add(
            "error",
            CONFIG if ranks else WEIGHTS,
            f"{len(wrapped):,} tensors are wrapped by a low-rank adapter that was saved inside the full weights"
            f"{f' ({settings})' if ranks else ''}: {listed(wrapped, 2)}",
            "merge the adapter into the weights and save them under their plain names (merge_lora.py of the original "
            "repository does it), then set use_llm_lora and use_backbone_lora to 0 in config.json",
        )
    elif ranks:
        what = f"says {settings}, but the weights hold no adapter: the original code would add a fresh one"
        folder.add("warning", CONFIG, what, f"set {' and '.join(ranks)} to 0")
    return {
        name.replace("base_model.model.", "").replace(".base_layer.", "."): stored
        for name, stored in tensors.items()
        if not any(mark in name for mark in LORA[:3])
    }


def compare(folder: Folder, tensors: Mapping[str, Stored], config: VLMConfig | VisionConfig, layout: str) -> None:
    """Report tensors that are missing, unexpected or misshapen, by the names that they have on disk.

    Rows of the two vocabulary tables are left to :func:`check_rows`; a tied model may have its output matrix or not.
    """
    tied = False
    with shapes_only():
        if isinstance(config, VisionConfig):
            state: Iterable[tuple[str, Tensor]] = InternViT(config).state_dict().items()
        else:
            state = layouts()[layout].write(InternVL(config).state_dict(), config)
            tied = official.is_tied(config) or bool(config.official.get(native.TIED))
        wanted = {name: tuple(tensor.shape) for name, tensor in state}
    on_disk = {name: native.one_spelling(name) for name in tensors.keys() - wanted.keys()}  # some save memory's names
    on_disk = {name: other for name, other in on_disk.items() if other in wanted}
    held = {on_disk.get(name, name): stored.shape for name, stored in tensors.items()}
    missing, extra = (
        sorted(name for name in names if not (tied and name.endswith(HEADS)) and not name.endswith("inv_freq"))
        for names in (wanted.keys() - held.keys(), held.keys() - wanted.keys())
    )
    depth = _depth_hint(wanted, held)
    if missing:
        remedy = depth or "fetch or save the weights again: this checkpoint is not complete"
        if len(missing) == 1 and missing[0].endswith(HEADS):
            remedy = "the output matrix was tied to the embedding when it was saved; write a copy of it under this name"
        folder.add("error", WEIGHTS, f"{len(missing):,} tensors are missing: {listed(missing)}", remedy)
    if extra:
        what = f"{len(extra):,} tensors are unexpected: {listed(extra)}"
        folder.add("error", WEIGHTS, what, depth or ONE_CHECKPOINT)
    misshapen = []
    for name in sorted(wanted.keys() & held.keys()):
        skipped = 1 if name.endswith((*EMBEDDINGS, *HEADS)) else 0
        if held[name][skipped:] != wanted[name][skipped:]:
            misshapen.append(name)
    if misshapen:
        name, more = misshapen[0], f" (and {len(misshapen) - 1:,} more do not fit)" if len(misshapen) > 1 else ""
        what = f"{name} has shape {held[name]}, config.json asks for {wanted[name]}{more}"
        folder.add("error", WEIGHTS, what, ONE_CHECKPOINT)


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
    """Report vocabulary tables and a config.json that disagree; returns the embedding table's rows, if known."""
    rows: dict[str, int] = {}
    for label, names in (("embedding rows", EMBEDDINGS), ("lm_head rows", HEADS)):
        shapes = [stored.shape for name, stored in tensors.items() if name.endswith(names) and "vision" not in name]
        if shapes and shapes[0]:
            rows[label] = shapes[0][0]
    tables = set(rows.values())
    if vocab_size is not None:
        rows["vocab_size of config.json"] = vocab_size
    if len(set(rows.values())) > 1:
        remedy = "resize both tables to the tokenizer's size and save the checkpoint again"
        if len(tables) == 1:
            remedy = f"set llm_config.vocab_size to {tables.pop()} in config.json"
        sizes = ", ".join(f"{label} {value:,}" for label, value in rows.items())
        folder.add("error", CONFIG, f"vocabulary sizes disagree: {sizes}", remedy)
    return next(iter(rows.values()), None)


def check_values(folder: Folder, files: Files, progress: Progress) -> None:
    """Read every tensor once and report those that hold NaN or infinity."""
    from safetensors import SafetensorError, safe_open

    total, done = sum(map(len, files.values())), 0
    for name, tensors in files.items():
        bad = []
        try:
            with safe_open(folder.path / name, framework="pt") as file:
                for key in tensors:
                    values = file.get_tensor(key).flatten()
                    parts = values.split(1 << 22) if values.is_floating_point() else ()
                    if not all(bool(part.float().isfinite().all()) for part in parts):
                        bad.append(key)
                    done += 1
                    progress(done, total)
        except (SafetensorError, OSError, RuntimeError) as error:
            folder.add("error", name, f"cannot be read ({error})", "fetch or save it again")
        if bad:
            what = f"{len(bad):,} tensors hold NaN or infinity: {listed(bad)}"
            folder.add("error", name, what, "go back to an earlier checkpoint: training has diverged before this save")


def sum_up(folder: Folder, files: Files) -> None:
    """Parameters, types and files among the facts."""
    counts: Counter[str] = Counter()
    for tensor in (tensor for tensors in files.values() for tensor in tensors.values()):
        counts[tensor.dtype] += tensor.count
    if not counts:
        return
    total, size = counts.total(), sum((folder.path / name).stat().st_size for name in files)
    folder.facts["parameters"] = total
    folder.facts["types"] = ", ".join(f"{name} {100 * n / max(1, total):.3g} %" for name, n in counts.most_common())
    folder.facts["weights"] = f"{len(files)} file{'s' * (len(files) > 1)}, {size / 1e6:,.1f} MB"
