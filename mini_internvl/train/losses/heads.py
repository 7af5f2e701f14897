"""Regression and classification from hidden states: heads that read numbers and classes where text would begin.

``loss: {heads: {heads: {speed: {kind: regression}, turn: {kind: classification, classes: [left, right]}}}}`` trains two
heads on the rows' ``targets`` (``{"targets": {"speed": 3.2, "turn": "left"}}``), alone or beside ``answers``. They are
saved beside the model (``model.heads``), and ``Engine.predict`` gives what they say.

A target holds for the whole sample. With ``at: last`` it is learnt at the last token of the prompt, where the answer to
the last question begins, and at that of every question where they are independent, as each would be asked alone; the
last token of the row would see the answer, which is not there when the head is used. With ``at: visual`` it is learnt
once from the mean over the sample's visual tokens, which see no question. What a sample has no target for is left out.

The loss of a place is the sum over its heads: smooth L1 (quadratic up to one standard deviation) or the square, over
numbers scaled by mean and standard deviation, or cross entropy. Sums are divided by the number of places with a target;
beside ``answers`` by what those count, so ``weight`` then weighs a place against a token.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_internvl.data import DataError
from mini_internvl.inputs.prepare import CutImage
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.heads import KINDS, PLACES, SETTINGS, HeadConfig, Heads, HeadsConfig, mean_states, read_heads
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import LossSettings, RecipeError, from_dict
from mini_internvl.records import Batch, Sample, Target
from mini_internvl.train.learner import Features

IGNORE = -100
REACHES = ("vision", "projector", "llm")
REGRESSIONS = ("smooth_l1", "square")
CONSTANT = 1e-6  # standard deviation, over the mean, below which a number is taken for constant and not scaled


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """One head."""

    kind: str
    """``regression`` or ``classification``."""
    size: int = 1
    """Numbers of a regression: one, or a list of so many."""
    classes: tuple[str, ...] = ()
    """Names of a classification's classes."""
    mean: tuple[float, ...] | float | None = None
    """Of the targets of a regression, one or one for each number; measured when left out."""
    std: tuple[float, ...] | float | None = None
    """Their standard deviation."""
    loss: str = "smooth_l1"
    """Of a regression: ``smooth_l1``, or ``square``, which far targets dominate."""
    weight: float = 1.0
    """Factor beside the other heads."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RecipeError(f'kind is "{self.kind}"; known: {", ".join(KINDS)}')
        if self.loss not in REGRESSIONS:
            raise RecipeError(f'loss is "{self.loss}"; known: {", ".join(REGRESSIONS)}')
        if self.weight <= 0:
            raise RecipeError(f"weight is {self.weight}; it must be above 0")
        if self.size < 1:
            raise RecipeError(f"size is {self.size}; it must be at least 1")
        if self.kind == "classification":
            if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
                raise RecipeError("classes must name at least two different classes")
            if self.size != 1 or (self.mean, self.std) != (None, None):
                raise RecipeError("size, mean and std are of a regression; leave them out")
        elif self.classes:
            raise RecipeError("classes are of a classification; leave them out")
        if (self.mean is None) != (self.std is None):
            raise RecipeError("give both mean and std, or neither to have them measured")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is None:
                continue
            if isinstance(values, tuple) and len(values) != self.size:
                raise RecipeError(f"{name} holds {len(values)} numbers; the head has size {self.size}")
            if name == "std" and min(values if isinstance(values, tuple) else [values]) <= 0:
                raise RecipeError(f"std is {values}; it must be above 0")

    def numbers(self, name: str) -> tuple[float, ...]:
        """``mean`` or ``std`` of each number; empty where it is to be measured."""
        given = getattr(self, name)
        return () if given is None else given if isinstance(given, tuple) else (given,) * self.size

    def tensor(self, target: Target | None) -> Tensor:
        """(1, size) float32 or (1,) int64 of a target, NaN or -100 without one; ValueError says what it must be."""
        if self.kind == "classification":
            if target is not None and target not in self.classes:
                raise ValueError(f"is {target!r}; the classes are {', '.join(self.classes)}")
            return torch.tensor([IGNORE if target is None else self.classes.index(str(target))])
        if target is None:
            return torch.full((1, self.size), torch.nan)
        given = target if isinstance(target, tuple) else (target,)
        if any(isinstance(number, str) for number in given) or len(given) != self.size:
            what = "a number" if self.size == 1 else f"a list of {self.size} numbers"
            raise ValueError(f"is {list(given) if isinstance(target, tuple) else target!r}; it must be {what}")
        return torch.tensor([given], dtype=torch.float32)


@dataclass(frozen=True, kw_only=True)
class Settings(LossSettings):
    """Settings of the heads."""

    heads: Mapping[str, Any]
    """Name of each head, and of its targets in the rows -> its settings."""
    layers: int | None = None
    """Decoder blocks before the hidden state; the later ones are not run for it. All when left out."""
    at: str = "last"
    """``last``: the last token of the prompt; ``visual``: the mean over the visual tokens."""
    measured: int = 1000
    """First samples of the stage that mean and standard deviation are measured on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.heads:
            raise RecipeError("heads.heads is empty; name a head, for instance speed: {kind: regression}")
        if self.at not in PLACES:
            raise RecipeError(f'heads.at is "{self.at}"; known: {", ".join(PLACES)}')
        for name in ("layers", "measured"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"heads.{name} is {value}; it must be at least 1")
        heads: dict[str, HeadSettings] = {}
        for name, given in self.heads.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
                raise RecipeError(f"heads.heads.{name}: a name has letters, digits and _, a letter first")
            try:
                heads[name] = from_dict(HeadSettings, given)
            except RecipeError as error:
                raise RecipeError(f"heads.heads.{name}: {error}") from None
        object.__setattr__(self, "heads", heads)


def targets(
    sample: Sample, images: Sequence[CutImage], config: VLMConfig, settings: Settings, *, auxiliary: bool
) -> Mapping[str, Tensor]:
    """``heads.NAME``: one row of the sample's target. ValueError names a target of another kind."""
    found = {}
    for name, head in settings.heads.items():
        try:
            found[f"heads.{name}"] = head.tensor(sample.targets.get(name))
        except ValueError as error:
            raise ValueError(f"targets.{name} {error}") from None
    if settings.at == "visual" and not images and not sample.targets.keys().isdisjoint(settings.heads):
        raise ValueError("it has targets but no image; heads that read visual tokens (at: visual) need one")
    return found


class Loss(nn.Module):
    """The heads, and their loss summed over places with a target."""

    def __init__(self, settings: Settings, config: VLMConfig) -> None:
        super().__init__()
        if settings.layers is not None and settings.layers > config.llm.layers:
            raise RecipeError(f"heads.layers is {settings.layers}; the decoder has {config.llm.layers} blocks")
        self.settings, self.layers = settings, settings.layers
        heads = {
            name: HeadConfig(
                kind=head.kind,
                size=head.size,
                classes=head.classes,
                mean=head.numbers("mean"),
                std=head.numbers("std"),
            )
            for name, head in settings.heads.items()
        }
        self.blocks, self.width = config.llm.layers, config.llm.hidden_size
        layers = settings.layers or self.blocks
        self.heads = Heads(HeadsConfig(heads=heads, layers=layers, at=settings.at), self.width)

    def forward(self, model: InternVL, batch: Batch, images: Features) -> Tensor:
        """The sum over ``count`` places, float32."""
        hidden = images.hidden(self.layers)
        rows, places, owners = self._places(batch)
        if self.settings.at == "visual":
            documents, count = batch_documents(batch)
            assert model.image_token_id is not None
            seen = torch.eq(batch.input_ids, model.image_token_id)
            state = mean_states(hidden, documents.to(hidden.device).where(seen, -1), count)
        else:
            flat = (rows * hidden.shape[1] + places).to(hidden.device, non_blocking=True)
            state = hidden.flatten(0, 1).index_select(0, flat)
        owners = owners.to(hidden.device, non_blocking=True)
        total = hidden.new_zeros((), dtype=torch.float32)
        for name, head in self.settings.heads.items():
            target = batch.extras[f"heads.{name}"].index_select(0, owners)
            total = total + head.weight * self._sum(name, head, self.heads.output(name, state), target)
        return total

    def count(self, batch: Batch) -> float:
        """Places with a target."""
        *_, owners = self._places(batch)
        known = torch.stack([_known(batch.extras[f"heads.{name}"]) for name in self.settings.heads]).any(0)
        return float(known.cpu()[owners].sum())

    def reached(self, model: InternVL) -> Iterator[nn.Parameter]:
        """What gets a gradient of the model: all but the blocks behind the hidden state, and what makes logits."""
        llm = model.language_model
        for part in (model.vision_model, model.mlp1, llm.embed_tokens, llm.layers[: self.layers], llm.norm):
            yield from part.parameters()

    def files(self) -> dict[str, bytes]:
        """What is kept beside the model."""
        return self.heads.files()

    @torch.no_grad()
    def begin(self, samples: Iterable[Sample], beside: Mapping[str, bytes] = MappingProxyType({})) -> None:
        """Measure mean and standard deviation where they are not given; train on with heads of the same kind.

        DataError where a head has no target at all.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in self.settings.heads}
        names: set[str] = set()
        looked = 0
        for sample in itertools.islice(samples, self.settings.measured):
            looked += 1
            names |= sample.targets.keys()
            for name in found.keys() & sample.targets.keys():
                with suppress(ValueError):  # of another kind: an error when the sample is made into an example
                    found[name].append(self.settings.heads[name].tensor(sample.targets[name]))
        for name, head in self.settings.heads.items():
            if not found[name]:
                known = f"they have {', '.join(sorted(names))}" if names else "they have none at all"
                raise DataError(
                    f"none of the first {looked} samples has a target for the head {name}: {known}; write "
                    f'"targets": {{"{name}": ...}} into the rows, or take the head out'
                )
            if head.kind == "regression" and head.mean is None:
                every = torch.cat(found[name]).double()
                mean, std = every.mean(0), every.std(0, correction=0)
                constant = std <= CONSTANT * mean.abs().clamp(min=CONSTANT)
                self.heads.set_scale(name, mean, std.where(~constant, 1.0))
        if SETTINGS in beside:
            self.heads.take(read_heads(beside, hidden_size=self.width, layers=self.blocks))

    def _places(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Row and place of each hidden state, and the document (over all rows) whose targets it learns; on the CPU."""
        documents, count = batch_documents(batch)
        if self.settings.at == "visual":
            every = torch.arange(count)
            return every, every, every  # of no use but for their number
        return prompt_ends(batch, documents)

    def _sum(self, name: str, head: HeadSettings, output: Tensor, target: Tensor) -> Tensor:
        if head.kind == "classification":
            return F.cross_entropy(output, target, ignore_index=IGNORE, reduction="sum")
        known = _known(target)
        wanted = self.heads.scaled(name, target.nan_to_num())
        function = F.smooth_l1_loss if head.loss == "smooth_l1" else F.mse_loss
        return (function(output, wanted, reduction="none").mean(-1) * known).sum()


def _known(target: Tensor) -> Tensor:
    """(N,) whether there is a target."""
    return target != IGNORE if target.ndim == 1 else ~target[:, 0].isnan()


def batch_documents(batch: Batch) -> tuple[Tensor, int]:
    """(B, T) the document of each token, counted over all rows, and their number; what padding has is of no use."""
    if batch.document_ids is None:
        return torch.arange(len(batch.labels))[:, None].expand_as(batch.labels), len(batch.labels)
    ids = batch.document_ids.cpu()
    counts = ids.amax(1) + 1
    before = counts.cumsum(0) - counts
    return (ids + before[:, None]).where(ids >= 0, -1), int(counts.sum())


def prompt_ends(batch: Batch, documents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the last answer of each document begins, or the one of each of its independent questions: row and place of
    the token before it, and the document (see :func:`batch_documents`)."""
    segments = torch.zeros_like(documents) if batch.segment_ids is None else batch.segment_ids.cpu()
    supervised = batch.labels.cpu() != IGNORE
    one = (documents[:, 1:] == documents[:, :-1]) & (segments[:, 1:] == segments[:, :-1])
    rows, places = (supervised[:, 1:] & ~supervised[:, :-1] & one).nonzero(as_tuple=True)
    owners = torch.stack([documents[rows, places], segments[rows, places]])
    _, counts = owners.unique_consecutive(dim=1, return_counts=True)
    last = counts.cumsum(0) - 1
    return rows[last], places[last], owners[0][last]
