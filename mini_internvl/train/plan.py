"""What a run needs before it begins: memory by parts, steps, tokens, tiles and time, from shapes and a few samples.

Memory is that of one process: a step is traced on shapes alone (``trace.py``) with the stage's largest micro batch, and
what a process takes beside tensors is added. Time is operations (``model/flops.py``) over the speed of the machine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from mini_internvl import plugins
from mini_internvl.data import DataError
from mini_internvl.engine import hub
from mini_internvl.engine.device import fast_bfloat16, resolve_device
from mini_internvl.inputs.tokenizer_files import load_tokenizer
from mini_internvl.model import adapter as adapters
from mini_internvl.model.checkpoint import CheckpointError, image_token_id, read_config
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.flops import Flops, count_flops
from mini_internvl.model.lora import LORA_INFIX, add_lora
from mini_internvl.model.sizes import official_config, shapes_only
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import Recipe, SourceRecipe, StageRecipe
from mini_internvl.records import Batch, Example, Sample
from mini_internvl.train import trace
from mini_internvl.train.data import MixedDataset, Opener
from mini_internvl.train.initial import InitialCheckpoint, sample_processor
from mini_internvl.train.learner import Learner
from mini_internvl.train.nf4 import quantize_base
from mini_internvl.train.parts import set_checkpointing, set_drop_path, set_trainable
from mini_internvl.train.workload import SAMPLED, Workload, assumed, sampled

GB = 1e9
PROCESS, ALLOCATOR, GATHERED = "process", "allocator", "gathered shards"
CPU_PROCESS = 0.45e9  # resident memory of Python with torch and this package
GPU_PROCESS = 0.6e9  # a CUDA context with the workspaces of cuBLAS
GPU_SPARE = 0.05  # share of the tensors' memory that torch's allocator loses to gaps between them


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run is planned for."""

    name: str
    kind: str  # cpu, cuda or mps
    flops: float  # operations a second that are reached
    note: str  # how that is known
    memory: float | None = None  # bytes; ``None`` where unknown
    bf16: bool = True  # whether it computes in bfloat16 natively


UTILISATION = 0.3
"""Share of the peak that is assumed of GPUs; published runs of models of this kind reach 0.16 to 0.45."""
GPUS = {
    "H200": (989e12, 141), "H100": (989e12, 80), "A100": (312e12, 80), "A100-40": (312e12, 40), "L40S": (362e12, 48),
    "A6000": (155e12, 48), "L4": (121e12, 24), "4090": (165e12, 24), "3090": (71e12, 24), "T4": (65e12, 16),
}  # fmt: skip
"""Peak of dense products in 16 bits, operations a second, and memory in GB, by the makers' data sheets."""


def find_machine(name: str) -> Machine:
    """A GPU of the table, or a device of this computer, whose speed is measured; ValueError lists the known ones."""
    if name.upper() in GPUS:
        peak, memory = GPUS[name.upper()]
        note = f"{UTILISATION:.0%} of {peak / 1e12:.0f} TFLOP/s assumed"
        return Machine(
            name=name.upper(), kind="cuda", flops=peak * UTILISATION, note=note, memory=memory * GB,
            bf16=name.upper() != "T4",
        )  # fmt: skip
    try:
        device = resolve_device(name)
    except ValueError as error:
        raise ValueError(f"{error}; or a GPU to plan for: {', '.join(GPUS)}") from None
    speed, total = _measured(device), None
    if device.type == "cuda":
        total = float(torch.cuda.get_device_properties(device).total_memory)
    note = f"{speed / 1e9:,.0f} GFLOP/s measured on products of matrices, {CPU_SHARE:.0%} of it assumed"
    return Machine(
        name=str(device), kind=device.type, flops=speed * CPU_SHARE, note=note, memory=total,
        bf16=fast_bfloat16(device),
    )  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """Of a GPU of the table, in 16 bits; ``None`` of any other device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = [gpu for gpu in GPUS if gpu.split("-")[0] in name.replace("-", " ").split()]
    return GPUS[known[0]][0] if known else None


CPU_SHARE = 0.6  # of the speed of plain products that a whole step reaches


def _measured(device: torch.device) -> float:
    """Operations a second of a product of matrices, in the type that ``auto`` would train in."""
    dtype = torch.bfloat16 if fast_bfloat16(device) else torch.float32
    side = 1024 if device.type == "cpu" else 8192
    x = torch.ones(side, side, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        (x @ x)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


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
    batch: str  # the largest micro batch

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
        self.workloads: dict[tuple[object, ...], Workload] = {}

    def plan(self, recipe: Recipe) -> list[StagePlan]:
        """All stages; errors are those that training the recipe would begin with."""
        return [self.plan_stage(recipe, stage) for stage in recipe.stages]

    def plan_stage(self, recipe: Recipe, stage: StageRecipe, batch: Batch | None = None) -> StagePlan:
        """One stage, with its largest micro batch or a given one."""
        recipe = self._settled(recipe)
        model, folder = planned_model(recipe)
        work = self._workload(recipe, stage, model, folder)
        share = -(-stage.batch_size // self.gpus)
        batch = work.largest(replace(stage, batch_size=share)) if batch is None else batch
        set_trainable(model, stage.parts())
        set_drop_path(model, stage.drop_path)
        set_checkpointing(model, stage.checkpointing)
        learner = Learner(model, stage)
        per_step = work.samples_per_step(stage)
        sizes = work.sizes
        samples = per_step * stage.steps
        flops = count_flops(model, stage.checkpointing).step(sizes) * (samples / len(sizes))
        total = {name: samples * sum(getattr(s, name) for s in sizes) / len(sizes) for name in SIZES}
        micro = 1 if stage.pack else stage.micro_batch
        traced = trace.trace_step(
            learner,
            stage,
            batch,
            precision=recipe.precision,
            device=self.machine.kind,
            accumulates=share > micro,
        )
        return StagePlan(
            stage=stage.name,
            memory=self._whole(traced, total["tiles"] / stage.steps, model, recipe.parallel),
            moment=traced.peak_moment,
            steps=stage.steps,
            samples=samples,
            flops=flops,
            seconds=(flops.useful + flops.recomputed) / (self.machine.flops * self.gpus),
            sizes=work.source,
            batch=f"{len(batch.input_ids)} x {batch.input_ids.shape[1]:,} tokens, {len(batch.tiles)} tiles",
            **total,
        )

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

    def _workload(self, recipe: Recipe, stage: StageRecipe, model: InternVL, folder: Path | None) -> Workload:
        key = (stage.data, stage.max_tiles, stage.max_length, str(stage.loss))
        if key not in self.workloads:
            self.workloads[key] = _read_workload(recipe, stage, model, folder)
        return self.workloads[key]


SIZES = ("tokens", "supervised", "tiles")
PARTS = (
    trace.WEIGHTS, trace.COPIES, trace.GRADIENTS, trace.OPTIMISER, trace.ENCODER, trace.PROJECTOR, trace.DECODER,
    trace.LOSS, trace.WORKSPACE, trace.DATA,
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


def no_example(sample: Sample) -> Example:
    """In place of a processor, where no tokenizer is at hand."""
    raise DataError(f"sample {sample.id}: the model's tokenizer is not on this computer")


def _read_workload(recipe: Recipe, stage: StageRecipe, model: InternVL, folder: Path | None) -> Workload:
    """From the sources that can be opened; assumed where none can."""
    data, missing = list[SourceRecipe](), list[str]()
    opener = Opener(strict=False)
    start = folder and InitialCheckpoint(model=model, tokenizer=load_tokenizer(folder), folder=folder, sha256="")
    process = sample_processor(start, stage) if start else no_example
    for source in stage.data:
        try:
            opener(source, process)
            data.append(source)
        except DataError as error:
            missing.append(f"{source.name or source.path}: {' '.join(str(error).split())}")
    if start and data:
        short = replace(stage, steps=1, batch_size=max(stage.batch_size, SAMPLED), data=tuple(data))
        work = sampled(MixedDataset(short, process, seed=recipe.seed, opener=opener))
    else:
        missing += [] if folder else [f"{recipe.model}: not on this computer"]
        work = assumed(stage, model.config, model.image_token_id or 0)
        if wanted := [name for name in stage.loss_settings() if hasattr(plugins.find("train.losses", name), "targets")]:
            raise DataError(f"stage {stage.name}: loss {wanted[0]} cannot be planned without its data: {missing[0]}")
    return replace(work, source="; ".join([work.source, *(f"without {reason}" for reason in missing)]))


def planned_model(recipe: Recipe) -> tuple[InternVL, Path | None]:
    """The model that a recipe trains, on ``meta``, in the types that ``run.open_initial`` gives it, and its folder.

    Of a released size that is not on this computer the shapes are known, the folder is not.
    """
    adapter = bool(recipe.model) and adapters.is_adapter(recipe.model)
    name = adapters.find_base(recipe.model) if adapter else recipe.model or recipe.build
    known = re.search(r"InternVL2-(1B|2B|4B)$", name)
    if known and not Path(name).exists():
        config, folder = VLMConfig.from_official(official_config(known[1])), None
    else:
        try:
            folder = Path(hub.resolve(name) if recipe.model else name)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; a plan needs its shapes alone: add model=OpenGVLab/InternVL2-1B") from None
        config = read_config(folder)
    with shapes_only():
        model = InternVL(config)
        if adapter:
            adapters.load_adapter(model, recipe.model)
        elif recipe.lora:
            add_lora(model, recipe.lora)
    model.image_token_id = image_token_id(folder, config) if folder else config.llm.vocab_size - 7
    half = recipe.precision == "bf16" and (adapter or recipe.lora is not None)
    if recipe.model and (half or recipe.weights == "bf16"):
        exact = ("mlp1.",) if half else ()
        for name, parameter in model.named_parameters():
            if LORA_INFIX not in name and not name.startswith(exact or ("-",)):
                parameter.data = parameter.data.to(torch.bfloat16)
    if recipe.lora and recipe.lora.quantize:
        quantize_base(model)
    return model, folder
