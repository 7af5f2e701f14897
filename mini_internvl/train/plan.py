"""What a run needs before it begins: memory by parts, steps, tokens, tiles and time, from shapes and sizes of samples.

Memory is that of one process: a step is traced on shapes alone (``trace.py``) with the micro batch that needs most of
it, and what a process takes beside tensors is added. Which micro batches there are, and how much work, follows from the
sizes of the samples (``sizes.py``, ``workload.py``). Time is operations (``model/flops.py``) over the speed of the
machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mini_internvl import plugins
from mini_internvl.data import DataError
from mini_internvl.data.pictures import picture_folder
from mini_internvl.engine import hub
from mini_internvl.inputs.tokenizer_files import load_tokenizer
from mini_internvl.model import adapter as adapters
from mini_internvl.model.checkpoint import CheckpointError, image_token_id, read_config, released_image_token
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.files import CONFIG
from mini_internvl.model.flops import Flops
from mini_internvl.model.lora import LORA_INFIX, add_lora
from mini_internvl.model.routing import routed_config
from mini_internvl.model.sizes import official_config, shapes_only, size_of_release
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import Recipe, SourceRecipe, StageRecipe
from mini_internvl.records import Batch, Size
from mini_internvl.train import trace
from mini_internvl.train.features import is_projected, kept_shape
from mini_internvl.train.initial import Base, sample_processor, thresholds, weights_trained
from mini_internvl.train.learner import Learner
from mini_internvl.train.machines import GB, Machine
from mini_internvl.train.nf4 import quantize_base
from mini_internvl.train.parts import set_checkpointing, set_drop_path, set_trainable
from mini_internvl.train.processor import SampleProcessor
from mini_internvl.train.sizes import Sized, SizeReader, tell
from mini_internvl.train.student import shaped_student
from mini_internvl.train.workload import Workload, assumed, drawn, made, made_example

PROCESS, ALLOCATOR, GATHERED = "process", "allocator", "gathered shards"
CPU_PROCESS = 0.45e9  # resident memory of Python with torch and this package
GPU_PROCESS = 0.6e9  # a CUDA context with the workspaces of cuBLAS
GPU_SPARE = 0.05  # share of the tensors' memory that torch's allocator loses to gaps between them


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What one stage needs."""

    stage: str
    memory: Mapping[str, float]  # bytes by part at the highest moment of a step
    moment: str  # which that is
    steps: int
    samples: float  # of the whole stage, as all that follows
    tokens: float
    supervised: float
    tiles: float
    flops: Flops = field(repr=False)
    seconds: float
    sizes: str  # where the sizes of the samples come from
    missing: Sequence[str]  # why of some sources nothing is counted
    batch: str  # the micro batch that needs most memory
    most: Size  # tokens and tiles of the samples that have most of them
    kept: float = 0.0  # bytes on disk of the features that the stage keeps

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.memory.values())


class Planner:
    """Plans the stages of recipes for one machine; what was read of the data serves changed recipes too.

    On several ``gpus``, memory is that of each, and time is divided by their number: what they wait for each other, and
    the exchange of gradients, is not counted.
    """

    def __init__(self, machine: Machine, gpus: int = 1) -> None:
        self.machine, self.gpus = machine, gpus
        self.read = SizeReader()
        self.plans: dict[str, StagePlan] = {}

    def plan(self, recipe: Recipe, measured: Recipe | None = None) -> list[StagePlan]:
        """All stages; errors are those that training the recipe would begin with.

        With ``measured``, a recipe that was planned before and whose limits are not below those of this one, no source
        is read as a whole again: sizes are told from its.
        """
        return [self.plan_stage(recipe, number, measured=measured) for number in range(len(recipe.stages))]

    def plan_stage(
        self, recipe: Recipe, number: int, *, measured: Recipe | None = None, work: Workload | None = None,
        batch: Batch | None = None,
    ) -> StagePlan:  # fmt: skip
        """One stage, with its own samples or given ones, and its largest micro batch or a given one."""
        stage = recipe.stages[number]
        key = repr((replace(recipe, stages=(stage,)), number)) if work is None and batch is None else ""
        if key not in self.plans:
            recipe = self._settled(recipe)
            work = work or self._workload(recipe, number, (measured or recipe).stages[number])
            plan = self._plan(recipe, stage, work, batch)
            if not key:
                return plan
            self.plans[key] = plan
        return self.plans[key]

    def _plan(self, recipe: Recipe, stage: StageRecipe, work: Workload, batch: Batch | None) -> StagePlan:
        learner, batch, traced = self._highest(recipe, stage, work, batch)
        model = learner.model
        mean, samples = work.mean, work.samples_per_step * stage.steps
        cost, tiles = learner.flops(stage.checkpointing), samples * mean.tiles
        flops, kept = cost.work(**vars(mean)) * samples, 0.0
        if stage.cache:
            places, width = kept_shape(model.config, is_projected(stage))
            encoded, kept = self._encoded(recipe, work, tiles, places * width * 2)
            fewer = cost.kept(is_projected(stage))
            flops = fewer.work(**vars(mean)) * samples + (cost.tile + fewer.tile * -1.0) * encoded
        own: list[Any] = list(learner.loss.values())
        for loss in own:
            if size := float(getattr(loss, "kept_bytes", 0)):
                encoded, kept = self._encoded(recipe, work, tiles, size)
                flops += loss.tile_flops() * (encoded - tiles)
        return StagePlan(
            stage=stage.name,
            memory=self._whole(traced, tiles / stage.steps, model, recipe.parallel),
            moment=traced.peak_moment,
            steps=stage.steps,
            samples=samples,
            tokens=samples * mean.tokens,
            supervised=samples * mean.supervised,
            tiles=tiles,
            flops=flops,
            seconds=(flops.useful + flops.recomputed) / (self.machine.flops * self.gpus),
            sizes=work.told,
            missing=work.missing,
            batch=f"{len(batch.input_ids)} x {batch.input_ids.shape[1]:,} tokens, {len(batch.tiles)} tiles",
            most=work.most,
            kept=kept,
        )

    @staticmethod
    def _encoded(recipe: Recipe, work: Workload, tiles: float, size: float) -> tuple[float, float]:
        """Tiles that are encoded though features are kept, and the bytes of those features, ``size`` of each tile.

        Each tile once, and those again for which the limit on disk leaves no room. Where it is not known how many
        different ones there are, none is taken to come twice.
        """
        once = min(tiles, work.different_tiles)
        kept = min(1.0, recipe.cache_gb * GB / (once * size)) if once else 1.0
        return kept * once + (1 - kept) * tiles, kept * once * size

    def _highest(
        self, recipe: Recipe, stage: StageRecipe, work: Workload, batch: Batch | None
    ) -> tuple[Learner, Batch, trace.MemoryTrace]:
        """The micro batch that needs most memory, or the given one, traced.

        That of most tokens is traced first. What it needs for a token, a supervised token and a tile then tells whether
        another one needs more, for instance one of many tiles where the encoder trains.
        """
        if batch is not None:
            return self._trace(recipe, stage, batch)
        costs = work.micro_batches.costs
        first = int(np.lexsort((costs[:, 2], costs[:, 0]))[-1])
        found = self._trace(recipe, stage, work.batch(first))
        peak = found[2].peak
        needed = peak[trace.DECODER], peak[trace.LOSS], peak[trace.ENCODER] + peak[trace.PROJECTOR]
        each = [total / count if count else 0.0 for total, count in zip(needed, costs[first].tolist(), strict=True)]
        guessed = costs @ np.array(each)
        other = int(guessed.argmax() if costs[first, 2] else costs[:, 2].argmax())
        if guessed[other] > guessed[first] + 0.01 * found[2].highest or costs[other, 2] > 0 == costs[first, 2]:
            found = max(found, self._trace(recipe, stage, work.batch(other)), key=lambda one: one[2].highest)
        return found

    def _trace(
        self, recipe: Recipe, stage: StageRecipe, batch: Batch
    ) -> tuple[Learner, Batch, trace.MemoryTrace]:  # fmt: skip
        """A step of a stage; the learner is then of fake tensors."""
        model, _ = planned_model(recipe)
        set_trainable(model, stage.parts())
        set_drop_path(model, stage.drop_path)
        set_checkpointing(model, stage.checkpointing)
        micro = 1 if stage.pack else stage.micro_batch
        learner = Learner(model, stage)
        traced = trace.trace_step(
            learner,
            stage,
            batch,
            precision=recipe.precision,
            device=self.machine.kind,
            accumulates=-(-stage.batch_size // self.gpus) > micro,
        )
        return learner, batch, traced

    def _settled(self, recipe: Recipe) -> Recipe:
        if recipe.precision != "auto":
            return recipe
        return replace(recipe, precision="bf16" if self.machine.bf16 else "fp32")

    def _whole(self, traced: trace.MemoryTrace, tiles: float, model: InternVL, parallel: str) -> dict[str, float]:
        """The tensors of a step and what the process takes beside them."""
        memory = {name: float(traced.peak[name]) for name in PARTS}
        if parallel == "fsdp" and self.gpus > 1:
            for name in (trace.WEIGHTS, trace.GRADIENTS, trace.OPTIMISER):
                memory[name] /= self.gpus
            memory[GATHERED] = gathered(model)
        if self.machine.kind == "cpu":  # all micro batches of a step lie there
            memory[trace.DATA] = max(memory[trace.DATA], tiles / self.gpus * 3 * model.config.image_size**2)
            memory[ALLOCATOR] = traced.gaps
            memory[PROCESS] = CPU_PROCESS
        else:
            memory[ALLOCATOR] = GPU_SPARE * sum(memory.values())
            memory[PROCESS] = GPU_PROCESS
        return memory

    def _workload(self, recipe: Recipe, number: int, measured: StageRecipe) -> Workload:
        """From the sources that can be opened; assumed where none can, or where the tokenizer is not there."""
        stage = recipe.stages[number]
        model, folder = planned_model(recipe)
        if recipe.student is not None:
            return self._pictures(stage, model)
        if folder is None:
            return self._assumed(stage, model, [f"{recipe.model} is not on this computer"])
        base = Base(folder=folder, config=model.config, tokenizer=load_tokenizer(folder))
        process, before = sample_processor(base, stage), sample_processor(base, measured)
        assert isinstance(process, SampleProcessor), "the model has a tokenizer"
        assert isinstance(before, SampleProcessor), "the model has a tokenizer"
        found, missing = list[tuple[SourceRecipe, Sized]](), list[str]()
        for place, source in enumerate(stage.data):
            try:
                self.read(source, before, 1 / (len(stage.data) - place))
                found.append((source, self.read.lowered(source, process, before)))
            except DataError as error:
                missing.append(" ".join(str(error).split()))
        if not found:
            return self._assumed(stage, model, missing)
        data, sized = zip(*found, strict=True)
        work = drawn(
            replace(stage, data=data),
            [one.source for one in sized],
            process,
            seed=recipe.seed + number,
            told=tell(sized),
            processes=self.gpus,
        )
        return replace(work, missing=missing, different_tiles=_different_tiles(sized))

    def _pictures(self, stage: StageRecipe, model: InternVL) -> Workload:
        """Of an encoder alone, whose samples are all of one size."""
        paths = [source.path for source in stage.data if source.path and not Path(source.path).exists()]
        example = made_example(Size(tokens=1, supervised=0, tiles=1), model.config, 1)
        work = made(stage, [example], told="one tile a picture", processes=self.gpus)
        known = all(source.kind == "pictures" for source in stage.data) and not paths
        different = sum(len(picture_folder(Path(source.path))) for source in stage.data) if known else math.inf
        return replace(
            work, missing=[f"{path} is not on this computer" for path in paths], different_tiles=float(different)
        )

    def _assumed(self, stage: StageRecipe, model: InternVL, missing: Sequence[str]) -> Workload:
        if wanted := [name for name in stage.loss_settings() if hasattr(plugins.find("train.losses", name), "targets")]:
            raise DataError(f"stage {stage.name}: loss {wanted[0]} cannot be planned without its data: {missing[0]}")
        work = assumed(stage, model.config, model.image_token_id or 0, processes=self.gpus)
        return replace(work, missing=missing)


def _different_tiles(found: Sequence[Sized]) -> float:
    if not all(one.whole for one in found):
        return math.inf
    return float(sum(one.source.sizes.columns[2].sum() for one in found if one.source.sizes))


PARTS = (
    trace.WEIGHTS, trace.COPIES, trace.GRADIENTS, trace.OPTIMISER, trace.ENCODER, trace.PROJECTOR, trace.DECODER,
    trace.TEACHER, trace.LOSS, trace.WORKSPACE, trace.DATA,
)  # fmt: skip


def gathered(model: InternVL) -> float:
    """Bytes that a process of FSDP gathers at a time: what is in no block, and two blocks, for the next comes early.

    Gradients are whole until they are spread.
    """
    blocks = [*model.vision_model.encoder.layers, *model.language_model.layers]
    sizes = [_bytes(block.parameters()) for block in blocks]
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    rest = _bytes(parameter for parameter in model.parameters() if id(parameter) not in inside)
    return rest + 2 * max(sizes)


def _bytes(parameters: Iterable[Tensor]) -> float:
    return float(sum(p.nbytes * (2 if p.requires_grad else 1) for p in parameters))


def planned_model(recipe: Recipe) -> tuple[InternVL, Path | None]:
    """The model that a recipe trains, on ``meta``, in the types that ``run.open_initial`` gives it, and its folder.

    Of a released size that is not on this computer the shapes are known, the folder is not.
    """
    if recipe.student is not None:
        student = shaped_student(recipe.student)
        return (student.to(torch.bfloat16) if recipe.weights == "bf16" else student), None
    adapter = bool(recipe.model) and adapters.is_adapter(recipe.model)
    name = adapters.find_base(recipe.model) if adapter else recipe.model or recipe.build
    size = size_of_release(name)
    fetched = {row.partition("@")[0] for row, folder, _ in hub.cached() if (folder / CONFIG).exists()} if size else ()
    if size and name not in fetched and not Path(name).exists():
        config, folder = VLMConfig.from_official(official_config(size)), None
    else:
        try:
            folder = Path(hub.resolve(name) if recipe.model else name)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; a plan needs its shapes alone: add model=OpenGVLab/InternVL2-1B") from None
        config = read_config(folder)
    if recipe.router:
        config = routed_config(config, thresholds(recipe))
    with shapes_only():
        model = InternVL(config)
        if adapter:
            adapters.load_adapter(model, recipe.model)
        elif recipe.lora:
            add_lora(model, recipe.lora)
    model.image_token_id = image_token_id(folder, config) if folder else released_image_token(config)
    half = recipe.precision == "bf16" and (adapter or recipe.lora is not None)
    if recipe.model and (half or recipe.weights == "bf16"):
        exact = ("mlp1.", *weights_trained(recipe)) if half else ()
        for name, parameter in model.named_parameters():
            if LORA_INFIX not in name and not name.startswith(exact or ("-",)):
                parameter.data = parameter.data.to(torch.bfloat16)
    if recipe.lora and recipe.lora.quantize:
        quantize_base(model)
    return model, folder
