"""``minivl doctor``: what a checkpoint folder is, what is wrong with it and how to fix it.

Nothing of the folder is run, weights are known by their headers, and no fault hides another: every check goes on with
what the others could not read.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mini_internvl import terminal
from mini_internvl.commands import _doctor_tokens as tokens
from mini_internvl.commands import _doctor_weights as weights
from mini_internvl.commands._doctor_folder import LAYOUTS, Diagnosis, Folder, listed, plain
from mini_internvl.commands._options import AsJson, echo_json
from mini_internvl.engine.engine import Engine
from mini_internvl.inputs.tokenizer_files import PROCESSOR
from mini_internvl.model.adapter import WEIGHTS, find_base, load_adapted, read_weights
from mini_internvl.model.adapter_config import read_adapter
from mini_internvl.model.checkpoint import load_model, load_vision
from mini_internvl.model.config import ConfigError, VisionConfig, VLMConfig
from mini_internvl.model.files import ADAPTER, CONFIG, CheckpointError
from mini_internvl.model.heads import SETTINGS, load_heads
from mini_internvl.model.layouts import layouts
from mini_internvl.model.vlm import InternVL

EXAMPLE = "minivl doctor checkpoints/InternVL2-1B --deep"
COLOURS = {"error": "red", "warning": "yellow", "note": "bright_black"}


def command(
    folder: Annotated[Path, typer.Argument(help="Checkpoint or adapter folder.")],
    deep: Annotated[bool, typer.Option("--deep", help="Also read every tensor and look for NaN and infinity.")] = False,
    json: AsJson = False,
) -> None:
    """Diagnose a checkpoint or adapter folder: its kind, what is wrong, how to fix it. Exit code 1 on any error."""
    diagnosis = diagnose(folder, deep=deep, progress=terminal.ProgressBar("reading tensors"))
    if json:
        echo_json({**dataclasses.asdict(diagnosis), "healthy": diagnosis.healthy})
    else:
        for line, colour in _lines(diagnosis):
            typer.secho(line, fg=colour if sys.stdout.isatty() else None)
    raise typer.Exit(0 if diagnosis.healthy else 1)


def diagnose(folder: Path, *, deep: bool = False, progress: weights.Progress = lambda done, total: None) -> Diagnosis:
    """Examine a local folder, which need not exist; never raises for what is in it.

    ``deep`` also reads every tensor and looks for NaN and infinity; ``progress`` gets (tensors read, all) meanwhile.
    """
    patient = Folder(Path(folder))
    layout = "unknown"
    _guard(patient, "the folder", lambda: _leftovers(patient))
    if not patient.path.is_dir():
        what = "is a file, not a folder" if patient.path.exists() else "does not exist"
        patient.add("error", patient.path.name or str(folder), what, "give the folder that holds config.json")
    else:
        layout = _guard(patient, CONFIG, patient.layout) or "unknown"
        _examine(patient, layout, deep, progress)
    findings = sorted(dict.fromkeys(patient.findings), key=lambda finding: [*COLOURS].index(finding.severity))
    return Diagnosis(folder=str(folder), layout=layout, facts=patient.facts, findings=tuple(findings))


def _lines(diagnosis: Diagnosis) -> Iterator[tuple[str, str | None]]:
    """Text and colour of every printed line."""
    yield f"{plain(diagnosis.folder)}: {LAYOUTS.get(diagnosis.layout, diagnosis.layout)}", None
    for name, value in diagnosis.facts.items():
        yield f"  {name:16} {f'{value:,}' if isinstance(value, int) else plain(value)}", None
    for finding in diagnosis.findings:
        yield f"{finding.severity:8} {finding.file}: {finding.what}", COLOURS[finding.severity]
        if finding.remedy:
            yield f"         fix: {finding.remedy}", None
    counts = {name: sum(finding.severity == name for finding in diagnosis.findings) for name in COLOURS}
    summary = ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count)
    yield f"{'healthy' if diagnosis.healthy else 'must be mended'}{f' ({summary})' if summary else ''}", None


def _guard(folder: Folder, file: str, check: Callable[[], Any]) -> Any:
    """Run one check; what it cannot cope with becomes a finding, so that the others still run."""
    try:
        return check()
    except Exception as error:  # files of any content come here, and one must not hide the faults of the rest
        what = f"could not be examined ({type(error).__name__}: {error})"
        folder.add("error", file, what, "fetch the file again from where it came")
        return None


def _examine(folder: Folder, layout: str, deep: bool, progress: weights.Progress) -> None:
    raw = folder.json(CONFIG) or {}
    single = WEIGHTS if layout == "adapter" else weights.WEIGHTS
    files = _guard(folder, single, lambda: weights.read_files(folder, single)) or {}
    if layout == "adapter":
        _guard(folder, ADAPTER, lambda: _adapter(folder, files))
    else:
        _guard(folder, CONFIG, lambda: _model(folder, layout, raw, files))
    _guard(folder, single, lambda: weights.sum_up(folder, files))
    _guard(folder, CONFIG, lambda: _remote_code(folder))
    if deep:
        _guard(folder, single, lambda: weights.check_values(folder, files, progress))
    if all(finding.severity != "error" for finding in folder.findings):
        _guard(folder, CONFIG, lambda: _try_loading(folder, layout))


def _try_loading(folder: Folder, layout: str) -> None:
    """Load as every command does, but for the weights: what that refuses is no healthy folder."""
    try:
        if layout == "vision":
            load_vision(folder.path, device="meta")
        elif layout != "adapter":
            model = load_model(folder.path, device="meta")
            Engine(model, folder.path)
            _heads(folder, model)
        elif Path(base := find_base(folder.path, None) if read_adapter(folder.path).base else "").is_dir() and base:
            model = load_adapted(folder.path, device="meta", allow_other_base=True)
            Engine(model, Path(base))
            _heads(folder, model)
    except ValueError as error:
        folder.add_error(CONFIG, error)


def _heads(folder: Folder, model: InternVL) -> None:
    """The heads beside a model."""
    llm = model.config.llm
    try:
        heads = load_heads(folder.path, hidden_size=llm.hidden_size, layers=llm.layers)
    except ValueError as error:
        folder.add_error(SETTINGS, error)
        return
    if heads is not None:
        where = f"the first {heads.config.layers} blocks" if heads.config.layers < llm.layers else "all blocks"
        folder.facts["heads"] = f"{', '.join(heads.config.heads)}, after {where}"


def _model(folder: Folder, layout: str, raw: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> None:
    """Config, tensors and tokenizer of a model."""
    tensors = {name: stored for held in files.values() for name, stored in held.items()}
    config = _guard(folder, CONFIG, lambda: _config(folder, layout, raw))
    model = config if isinstance(config, VLMConfig) else None
    if layout != "llm":
        tensors = weights.unwrap(folder, tensors, model.official if model else raw)
    if model:
        _guard(folder, PROCESSOR[0], lambda: _processor(folder, model))
    complete = bool(files) and not any(
        f.severity == "error" and f.file.endswith(("tensors", "index.json")) for f in folder.findings
    )
    if config is not None and complete:
        weights.compare(folder, tensors, config, layout)
    if layout in layouts():
        vocabulary = model.llm.vocab_size if model else None
        rows = _guard(folder, CONFIG, lambda: weights.check_rows(folder, tensors, vocabulary))
        _guard(folder, tokens.SETTINGS, lambda: tokens.check_tokens(folder, model, rows))


def _processor(folder: Folder, config: VLMConfig) -> None:
    """A processor of transformers that would show every image in one tile, where the model reads several."""
    for name in PROCESSOR:
        settings = folder.json(name) or {}
        inner = settings.get("image_processor")
        for place in (settings, inner if isinstance(inner, dict) else {}):
            if place.get("crop_to_patches") is False and config.max_tiles > 1:
                side = config.image_size
                what = f"crop_to_patches is false: transformers would show every image in one tile of {side} px"
                remedy = f"set it to true, with max_patches {config.max_tiles}; here images are cut as config.json says"
                folder.add("warning", name, what, remedy)


def _config(folder: Folder, layout: str, raw: Mapping[str, Any]) -> VLMConfig | VisionConfig | None:
    """The typed configuration; ``None`` and a finding when a field is wrong."""
    try:
        if layout == "vision":
            config: VLMConfig | VisionConfig = VisionConfig.from_official(raw)
        elif layout in layouts() and layouts()[layout].matches(raw):
            config = VLMConfig.from_official(layouts()[layout].to_official_config(raw))
        else:
            return None
    except ConfigError as error:
        folder.add("error", CONFIG, str(error), "copy config.json from the original checkpoint")
        return None
    if isinstance(config, VLMConfig):
        folder.facts["language model"] = config.llm.architecture
        folder.facts["tile"] = f"{config.image_size} px, {config.tokens_per_tile} tokens, up to {config.max_tiles}"
        if config.defaults:
            what = f"does not say everything; taken for granted: {listed(list(config.defaults), 12)}"
            folder.add("warning", CONFIG, what, "compare with the original checkpoint and write these fields down")
    return config


def _adapter(folder: Folder, files: weights.Files) -> None:
    """A PEFT adapter: its settings, its pairs of matrices, its base."""
    settings = folder.json(ADAPTER) or {}
    kind, rank, base = (settings.get(name) for name in ("peft_type", "r", "base_model_name_or_path"))
    folder.facts["adapter"] = f"{kind}, rank {rank}, of {base or 'an unnamed base'}"
    place = Path(str(base))
    if not base:
        remedy = "set base_model_name_or_path to the checkpoint it was trained on"
        folder.add("warning", ADAPTER, "does not say what it adapts", remedy)
    elif (str(base).startswith(".") or place.is_absolute()) and not ((folder.path / place).is_dir() or place.is_dir()):
        remedy = "set base_model_name_or_path to where the base is now, or give the base when loading"
        folder.add("warning", ADAPTER, f"names a base that is not here: {base}", remedy)
    names = [name for held in files.values() for name in held]
    ups = {name for name in names if "lora_B" in name}
    alone = sorted(ups ^ {name.replace("lora_A", "lora_B") for name in names if "lora_A" in name})
    if alone or (files and not ups):
        what = f"low-rank matrices without their partner: {listed(alone)}" if alone else "holds no low-rank matrices"
        folder.add("error", WEIGHTS, what, "save or fetch the adapter again")
    try:
        adapter = read_adapter(folder.path)
        for line in read_weights(adapter)[2] if ups and not alone else ():
            folder.add("warning", ADAPTER, line, "correct the name, or leave the field out")
    except CheckpointError as error:
        folder.add_error(ADAPTER, error)


def _remote_code(folder: Folder) -> None:
    """Code that comes with the folder, which is never run here, or that auto_map names and does not come."""
    present = folder.names("*.py")
    if present:
        folder.add("note", present[0], f"code of the folder is not run: {listed(present)}", "")
    for name in (CONFIG, tokens.SETTINGS):
        entries = (folder.json(name) or {}).get("auto_map")
        texts = re.findall(r"[\w\-./]+\.\w+", json.dumps(entries)) if entries else []
        wanted = {f"{text.rpartition('.')[0]}.py" for text in texts if "--" not in text}
        missing = sorted(wanted - set(present))
        if missing:
            what = f"auto_map names code that is not in the folder: {listed(missing)}"
            remedy = "nothing here needs it; for programs that run such code copy these files, else delete auto_map"
            folder.add("warning", name, what, remedy)


def _leftovers(folder: Folder) -> None:
    """Temporary folders of a save that was stopped half way."""
    place = folder.path.absolute()
    if not place.name or not place.parent.is_dir():
        return
    begin = f".{place.name}."
    for path in sorted(place.parent.iterdir()):
        if path.name.startswith(begin) and path.is_dir():
            what = "is left from a save that was interrupted"
            if path.name == f"{begin}old" and not place.exists():
                what += ", and is the only copy that is whole"
                folder.add("error", path.name, what, f"rename {path} to {place}")
            else:
                folder.add("warning", path.name, what, f"if no save is running, delete {path}")
