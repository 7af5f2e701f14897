"""What a run begins from and what it leaves: checkpoints and adapters, read and written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mini_internvl.engine import hub
from mini_internvl.engine.device import resolve_device
from mini_internvl.inputs import chat
from mini_internvl.inputs.prepare import Processor
from mini_internvl.inputs.tokenizer import Tokenizer
from mini_internvl.inputs.tokenizer_files import FILES, load_tokenizer
from mini_internvl.model import adapter as adapters
from mini_internvl.model import heads
from mini_internvl.model.checkpoint import as_dtype, layout_of, load_model, read_config, save_model
from mini_internvl.model.config import ConfigError, FlashConfig, VLMConfig
from mini_internvl.model.encoder import EncoderAlone, save_encoder
from mini_internvl.model.files import CONFIG, read_json, read_tensors
from mini_internvl.model.lora import add_lora, lora_layers, set_dropout, targeted
from mini_internvl.model.routing import add_router, routed_config
from mini_internvl.model.sizes import fresh
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import FLASH_PARTS, Recipe, RecipeError, StageRecipe
from mini_internvl.train import losses
from mini_internvl.train.nf4 import quantize_base
from mini_internvl.train.pictures import PictureProcessor
from mini_internvl.train.processor import SampleProcessor
from mini_internvl.train.run_folder import saving
from mini_internvl.train.student import encoder_folder, open_student, student_config


@dataclass(frozen=True, kw_only=True)
class Base:
    """What is known of a run's model before its weights are read: enough to read data with."""

    folder: Path
    config: VLMConfig
    tokenizer: Tokenizer | None  # ``None`` of an encoder alone


def find_base(recipe: Recipe) -> Base:
    """The folder that a recipe begins from, of an adapter its base's; CheckpointError where it cannot be read."""
    if recipe.student is not None:
        folder = encoder_folder(recipe.student.start) if recipe.student.start else Path()
        return Base(folder=folder, config=student_config(recipe.student), tokenizer=None)
    adapter = bool(recipe.model) and adapters.is_adapter(recipe.model)
    folder = Path(recipe.build)
    if recipe.model:
        folder = hub.resolve(adapters.find_base(recipe.model) if adapter else recipe.model)
    if adapter:
        _check_no_router(recipe)
    config = read_config(folder)
    if recipe.router:
        config = routed_config(config, thresholds(recipe))
        try:
            layout_of(folder).from_official_config(config.official, 0, "bfloat16")
        except ConfigError as error:
            raise RecipeError(
                f"router: {folder} cannot be saved with one: {error}; minivl convert {folder} FOLDER --to official"
            ) from None
    return Base(folder=folder, config=config, tokenizer=load_tokenizer(folder))


def thresholds(recipe: Recipe) -> FlashConfig:
    """Those of the router that a recipe asks for."""
    assert recipe.router is not None, "the recipe asks for no router"
    return FlashConfig(relative=recipe.router.relative, absolute=recipe.router.absolute)


def _check_no_router(recipe: Recipe) -> None:
    """RecipeError where an adapter is to be trained with what is not saved beside adapters."""
    parts = [part for stage in recipe.stages for part in stage.train if part in FLASH_PARTS]
    if recipe.router or parts:
        raise RecipeError(
            f"{recipe.model} is an adapter, beside which {(parts or ['a router'])[0]} is not kept; merge it first: "
            "minivl merge"
        )


@dataclass(frozen=True, kw_only=True)
class InitialCheckpoint:
    """What a run begins from: a model on the device that trains, with adapters where they train."""

    model: InternVL
    tokenizer: Tokenizer | None  # ``None`` of an encoder alone
    folder: Path  # where the tokenizer files are; the base of the adapters
    sha256: str  # hash of all weights that the run begins from
    base_hash: str = ""  # hash of the base's weights where adapters train, else empty
    full: tuple[str, ...] = ()  # modules that go with the adapters in full, by their native names
    beside: Mapping[str, bytes] = field(default_factory=dict)  # contents of files that go beside the model: its heads
    dtype: str = "bfloat16"  # that its weights are saved in; that of their files where none of them trains

    @property
    def config(self) -> VLMConfig:
        return self.model.config


def open_initial(recipe: Recipe, local: int | None = None) -> InitialCheckpoint:
    """Load ``recipe.model``, a checkpoint or an adapter, make a fresh model from ``recipe.build``, or open a student.

    A base that adapters freeze is held in bfloat16 where that is the precision, or in 4 bits; whatever trains is
    float32, or what ``recipe.weights`` says. ``local`` is the number of this process on its machine, where there are
    several.

    Raises:
        RecipeError: ``lora`` asks for other adapters than those of the adapter that ``model`` names.
        CheckpointError: a file is missing or damaged, or the adapter's base is another one.
    """
    device = str(resolve_device(recipe.device))
    if local is not None and device == "cuda":
        device = f"cuda:{local}"
    base = find_base(recipe)
    if recipe.student is not None:
        kind = torch.bfloat16 if recipe.weights == "bf16" else torch.float32
        student, sha256 = open_student(recipe.student, recipe.seed, device, kind)
        return InitialCheckpoint(model=student, tokenizer=None, folder=base.folder, sha256=sha256)
    adapter, folder = bool(recipe.model) and adapters.is_adapter(recipe.model), base.folder
    if recipe.model:
        half = recipe.precision == "bf16" and (adapter or recipe.lora is not None)
        dtype, exact = ("bfloat16", ("mlp1.", *weights_trained(recipe))) if half else ("float32", ())
        dtype = "bfloat16" if recipe.weights == "bf16" else dtype
        model, sha256 = load_model(folder, dtype=dtype, device=device, float32=exact), adapters.tensors_hash(folder)
    else:
        model = fresh(base.config, recipe.seed).to(device)
        model.image_token_id = read_json(folder / "added_tokens.json")["<IMG_CONTEXT>"]
        sha256 = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    if recipe.router:
        add_router(model, thresholds(recipe), recipe.seed)
    base_hash, full = "", [adapters.PROJECTOR] if any("projector" in stage.train for stage in recipe.stages) else []
    full += [name for prefix in weights_trained(recipe) for name in adapters.WHOLE[prefix]]
    if adapter:
        info = _put_adapter(model, recipe, sha256)
        base_hash, full = sha256, [*full, *([adapters.PROJECTOR] if info.projector else []), *info.full]
        sha256 = hashlib.sha256(sha256.encode() + (Path(recipe.model) / adapters.WEIGHTS).read_bytes()).hexdigest()
    elif recipe.lora is not None:
        base_hash = sha256
        add_lora(model, recipe.lora, recipe.seed)
    if recipe.lora is not None and recipe.lora.quantize:
        quantize_base(model)
    return InitialCheckpoint(
        model=model,
        tokenizer=base.tokenizer,
        folder=folder,
        sha256=sha256,
        base_hash=base_hash,
        full=tuple(dict.fromkeys(full)),
        beside=heads.stored_files(Path(recipe.model) if adapter else folder),
        dtype="bfloat16" if not recipe.model or any(stage.train for stage in recipe.stages) else _stored_dtype(folder),
    )


def _stored_dtype(folder: Path) -> str:
    """The type of a checkpoint's weights."""
    return str(next(tensor.dtype for _, tensor in read_tensors(folder))).removeprefix("torch.")


def weights_trained(recipe: Recipe) -> list[str]:
    """Begins of the names of parts whose weights train beside adapters of the other part."""
    prefixes = {"vision": "vision_model.", "llm": "language_model."}
    told = {name for stage in recipe.stages for name, part in stage.parts().items() if part.lora is False}
    return [prefix for name, prefix in prefixes.items() if name in told]


def _put_adapter(model: InternVL, recipe: Recipe, base_hash: str) -> adapters.Adapter:
    """Put the adapter that ``recipe.model`` names on its base; ``recipe.lora`` may change its dropout only."""
    wanted = targeted(model, recipe.lora) if recipe.lora else None
    info = adapters.load_adapter(model, recipe.model, base_hash=base_hash)
    layers = lora_layers(model)
    if recipe.lora:
        ranks = {layer.rank for layer in layers.values()}
        scales = {round(layer.scale, 6) for layer in layers.values()}
        asked = {recipe.lora.rank}, {round(recipe.lora.scale, 6)}
        if (ranks, scales) != asked or wanted != sorted(layers):
            raise RecipeError(
                f"lora asks for other adapters than {recipe.model} holds ({len(layers)} layers of rank "
                f"{', '.join(map(str, sorted(ranks)))}); leave lora out to train on, or merge the adapter first"
            )
        set_dropout(model, recipe.lora.dropout)
    return info


def save_checkpoint(start: InitialCheckpoint, folder: Path, metadata: dict[str, str] | None = None) -> None:
    """Save the model of a run: a checkpoint with its tokenizer, its adapters alone, or a bare encoder."""
    with saving(folder):
        if isinstance(start.model, EncoderAlone):
            save_encoder(start.model, folder, dtype=as_dtype(start.dtype), metadata=metadata)
            return
        if not start.base_hash:
            files = [start.folder / name for name in FILES if (start.folder / name).exists()]
            kind: dict[str, Any] = {"dtype": start.dtype, "layout": layout_of(start.folder).NAME, "metadata": metadata}
            save_model(start.model, folder, extra_files=files, beside=start.beside, **kind)
            return
        try:
            base = Path(os.path.relpath(start.folder.resolve(), folder.resolve())).as_posix()
        except ValueError:  # on another drive
            base = start.folder.resolve().as_posix()
        kind = {"base": base, "base_hash": start.base_hash, "full": start.full}
        adapters.save_adapter(start.model, folder, beside=start.beside, **kind)


def sample_processor(start: Base | InitialCheckpoint, stage: StageRecipe) -> SampleProcessor | PictureProcessor:
    """What makes a stage's samples into examples for the model of a run."""
    if start.tokenizer is None:
        return PictureProcessor(config=start.config, targets=losses.targets(stage, start.config))
    return SampleProcessor(
        processor=_processor(start.config, start.tokenizer),
        max_tiles=stage.max_tiles,
        max_length=stage.max_length,
        targets=losses.targets(stage, start.config),
    )


def data_processor(model: str | None, *, max_tiles: int, max_length: int) -> SampleProcessor:
    """What tells how a model reads samples, without its weights; nano for ``None``. CheckpointError as for a run."""
    folder = hub.base_folder(hub.resolve(model))
    processor = _processor(read_config(folder), load_tokenizer(folder))
    return SampleProcessor(processor=processor, max_tiles=max_tiles, max_length=max_length)


def _processor(config: VLMConfig, tokenizer: Tokenizer) -> Processor:
    return Processor(
        tokenizer=tokenizer,
        template=chat.find_template(config.template),
        config=config,
        system_message=config.system_message,
    )
