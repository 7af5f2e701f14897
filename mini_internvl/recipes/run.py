"""The whole of a run: its model, its stages, its precision, and how it is watched."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mini_internvl import plugins
from mini_internvl.recipes.fields import MAY_CHANGE, RecipeError
from mini_internvl.recipes.lora import LoraRecipe
from mini_internvl.recipes.router import RouterRecipe
from mini_internvl.recipes.source import SourceRecipe
from mini_internvl.recipes.stage import FLASH_PARTS, StageRecipe
from mini_internvl.recipes.student import StudentRecipe

PRECISIONS = ("fp32", "bf16", "fp16", "auto")
WEIGHTS = ("fp32", "bf16")
PARALLEL = ("ddp", "fsdp")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run: stages, one after the other. Its name is that of its default folder."""

    name: str = dataclasses.field(metadata=MAY_CHANGE)
    stages: tuple[StageRecipe, ...]
    model: str = dataclasses.field(default="", metadata=MAY_CHANGE)
    """Folder of the starting checkpoint or adapter; empty with ``build`` for a fresh model."""
    build: str = dataclasses.field(default="", metadata=MAY_CHANGE)
    """Folder of a config.json with tokenizer files from which a fresh model is made."""
    student: StudentRecipe | None = None
    """An encoder that trains alone, instead of a model."""
    precision: str = "fp32"
    """Arithmetic: ``fp32``, ``bf16``, ``fp16`` (for cards without bf16; the loss is scaled), or ``auto``: bf16 where
    the processor is fast at it."""
    weights: str = "fp32"
    """What trains is held in: ``fp32``, or ``bf16``, which halves its memory and rounds small updates away."""
    device: str = dataclasses.field(default="auto", metadata=MAY_CHANGE)
    """Where the model trains: ``auto`` (CUDA, else MPS, else CPU), ``cpu``, ``mps``, ``cuda`` or ``cuda:1``."""
    compile: bool = dataclasses.field(default=False, metadata=MAY_CHANGE)
    """Compile the blocks of encoder and decoder (``torch.compile``): a slow first step, faster ones after it."""
    parallel: str = dataclasses.field(default="ddp", metadata=MAY_CHANGE)
    """How several processes share a model: ``ddp`` (each has a copy) or ``fsdp`` (each has a shard)."""
    stall_seconds: float = dataclasses.field(default=1800.0, metadata=MAY_CHANGE)
    """Seconds without progress after which all processes end, naming step and samples; 0: never."""
    max_faults: float = dataclasses.field(default=0.001, metadata=MAY_CHANGE)
    """Share of the rows that may be unusable, at least one row; they are set aside in quarantine.jsonl. 0: none."""
    seed: int = 0
    """Seed of mixing, fresh weights and drop path."""
    held_out: tuple[SourceRecipe, ...] = ()
    """Sources of the held-out loss, which is measured on ``held_out_samples``."""
    held_out_samples: int = 64
    shown_samples: int = dataclasses.field(default=4, metadata=MAY_CHANGE)
    """Held-out samples whose answers are kept at every measurement, below ``samples/`` in the run folder; 0: none."""
    eval_every: int = dataclasses.field(default=200, metadata=MAY_CHANGE)
    """Steps between held-out measurements."""
    patience: int = dataclasses.field(default=0, metadata=MAY_CHANGE)
    """Held-out measurements in a row without a better score after which a stage ends; 0: it never ends early."""
    save_every: int = dataclasses.field(default=200, metadata=MAY_CHANGE)
    """Steps between checkpoints from which a stopped run goes on."""
    cache_gb: float = dataclasses.field(default=50.0, metadata=MAY_CHANGE)
    """Most gigabytes of kept features on disk, those of other runs included; beyond it nothing more is kept."""
    lora: LoraRecipe | None = None
    """Adapters that train instead of the weights; left out, the weights themselves train."""
    router: RouterRecipe | None = None
    """The model begins with a second projector and a router, which make it a Flash model; one that has them keeps them.
    ``{}`` for the usual thresholds."""

    def __post_init__(self) -> None:
        if [bool(self.model), bool(self.build), self.student is not None].count(True) != 1:
            raise RecipeError(
                "give either model (a checkpoint to start from) or build (a config for a fresh model), or student (an "
                "encoder that trains alone)"
            )
        if self.lora and not self.model:
            raise RecipeError("lora adapts a checkpoint: give model instead of build or student")
        self._check_student()
        self._check_router()
        if self.lora and not any(stage.train for stage in self.stages):
            raise RecipeError("lora trains in no stage; name llm or vision in train, or leave lora out")
        if self.precision not in PRECISIONS:
            raise RecipeError(f'precision is "{self.precision}"; known: {", ".join(PRECISIONS)}')
        for field, known in (("weights", WEIGHTS), ("parallel", PARALLEL)):
            if getattr(self, field) not in known:
                raise RecipeError(f'{field} is "{getattr(self, field)}"; known: {", ".join(known)}')
        if not 0 <= self.max_faults <= 1:
            raise RecipeError(f"max_faults is {self.max_faults}; it must be from 0 to 1")
        if self.stall_seconds < 0:
            raise RecipeError(f"stall_seconds is {self.stall_seconds}; it must be 0 or above")
        if self.patience < 0:
            raise RecipeError(f"patience is {self.patience}; it must be 0 or above")
        if self.patience and not self.held_out:
            raise RecipeError(f"patience is {self.patience}, but nothing is measured; give held_out, or leave it out")
        if self.cache_gb < 0:
            raise RecipeError(f"cache_gb is {self.cache_gb}; it must be 0 or above")
        if self.parallel == "fsdp" and any(stage.cache for stage in self.stages):
            raise RecipeError("cache needs an encoder that is whole in every process; write parallel: ddp")
        if self.parallel == "fsdp" and any(stage.optimizer == "adamw8bit" for stage in self.stages):
            raise RecipeError("adamw8bit cannot be sharded; write parallel: ddp, or optimizer: adamw")
        if self.parallel == "fsdp" and self.lora and self.lora.quantize:
            raise RecipeError("lora.quantize cannot be sharded; write parallel: ddp")
        if self.shown_samples < 0:
            raise RecipeError(f"shown_samples is {self.shown_samples}; it must be 0 or above")
        if not self.stages:
            raise RecipeError("stages is empty")
        for field in ("held_out_samples", "eval_every", "save_every"):
            if getattr(self, field) < 1:
                raise RecipeError(f"{field} is {getattr(self, field)}; it must be at least 1")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise RecipeError(f"two stages share a name: {', '.join(names)}")

    def _check_router(self) -> None:
        """What a Flash model has beside others is saved with whole checkpoints, and trained in one piece."""
        if self.router and self.student:
            raise RecipeError("router is of a whole model; leave it out where a student trains")
        parts = [part for stage in self.stages for part in stage.train if part in FLASH_PARTS]
        if self.lora and (self.router or parts):
            raise RecipeError(f"{(parts or ['router'])[0]} is not kept beside adapters; leave lora out")
        named = [(stage, name) for stage in self.stages for name in stage.loss_settings()]
        for stage, name in named if self.parallel == "fsdp" else ():
            if getattr(plugins.find("train.losses", name), "WHOLE", False):
                raise RecipeError(
                    f"stage {stage.name}: loss {name} runs the model several times, which cannot be sharded; write "
                    "parallel: ddp"
                )

    def _check_student(self) -> None:
        """An encoder alone trains as such, and pictures without answers are for it only."""
        for stage in self.stages if self.student else ():
            if tuple(stage.train) != ("vision",):
                raise RecipeError(f"stage {stage.name}: a student has nothing but its encoder; write train: [vision]")
            if stage.reached() != ["vision"]:
                names = " and ".join(stage.loss_settings())
                raise RecipeError(f"stage {stage.name}: loss {names} needs a language model; write loss: features")
            for settings in stage.loss_settings().values():
                settings.check_student(stage)
            if stage.pack:
                raise RecipeError(f"stage {stage.name}: pictures have no tokens to pack; leave pack out")
        sources = [source for stage in self.stages for source in stage.data] + list(self.held_out)
        if self.student is None and any(source.kind == "pictures" for source in sources):
            raise RecipeError("a source of pictures has no answers: it is for a student alone; give rows instead")
