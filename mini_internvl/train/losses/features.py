"""Distillation: an encoder learns the features of a larger one, its teacher.

``loss: {features: {teacher: OpenGVLab/InternViT-6B-448px-V1-5}}`` pairs the last six hidden states of both in their
order, class token and patches. Where their widths differ, the student's side of each pair passes a linear map of its
own, which is thrown away after the stage. The teacher never trains, computes without gradients in a type of its own,
and is not saved.

``objective`` says how a pair is compared, ``normalise`` what the teacher's features are scaled by before:

- ``cosine``: minus the cosine of each token, the mean over tokens and pairs (Mini-InternVL, section 3.1);
- ``smooth_l1``: the mean over channels, for features that are normalised;
- ``relation``: cosines among the pictures of a micro batch, from the mean of their patches, against the teacher's: mean
  of their squared differences. It needs no map, and depends on which pictures a micro batch holds.

Source: paper section 3.1 and the published script, in which the number of states and the maps stand.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mini_internvl.data import DataError
from mini_internvl.inputs.messages import image_parts
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.flops import Flops, encoder_flops
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import LossSettings, RecipeError, StageRecipe
from mini_internvl.records import Batch, Sample
from mini_internvl.train.kept import FORMS, KeptFeatures, tile_bytes
from mini_internvl.train.learner import ImageFeatures, tile_count
from mini_internvl.train.losses._teacher import DTYPES, Normaliser, Teacher, exactly, weights_hash
from mini_internvl.train.pictures import whole_picture

REACHES = ("vision",)
OBJECTIVES = ("cosine", "smooth_l1", "relation")
NORMALISERS = ("none", "standardise", "phi_s")
MAPS = ("auto", "always")
MEASURED = 8  # pictures that the teacher reads at once while its statistics are measured


@dataclass(frozen=True, kw_only=True)
class Settings(LossSettings):
    """Settings of distillation."""

    teacher: str
    """Folder or hub id of an InternViT, or of a whole model whose encoder teaches."""
    layers: int = 6
    """Last hidden states of both that are paired."""
    objective: str = "cosine"
    """``cosine``, ``smooth_l1`` or ``relation``."""
    normalise: str = "none"
    """The teacher's features: as they are (``none``), each channel by its own mean and standard deviation
    (``standardise``), or turned so that one scale fits all (``phi_s``)."""
    statistics: int = 256
    """First pictures of the stage that these are measured on."""
    maps: str = "auto"
    """Linear maps on the student's side: where widths differ (``auto``), or ``always``."""
    teacher_dtype: str = "fp32"
    """What the teacher is held in and computes in: ``fp32`` or ``bf16``."""
    keep: str = ""
    """The teacher's hidden states are kept on disk and read in later epochs and runs: ``bf16``, or ``int8`` with a
    scale for each token. Left out, the teacher runs for every picture."""
    teacher_device: str = ""
    """Where it runs, for instance ``cuda:1``; beside the student when left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {"objective": OBJECTIVES, "normalise": NORMALISERS, "maps": MAPS, "teacher_dtype": tuple(DTYPES)}
        known["keep"] = ("", *FORMS)
        for field, names in known.items():
            if getattr(self, field) not in names:
                raise RecipeError(
                    f'features.{field} is "{getattr(self, field)}"; known: {", ".join(filter(None, names))}'
                )
        for field in ("layers", "statistics"):
            if getattr(self, field) < 1:
                raise RecipeError(f"features.{field} is {getattr(self, field)}; it must be at least 1")

    def check_student(self, stage: StageRecipe) -> None:
        """RecipeError where pictures are compared with each other, but come one by one."""
        if self.objective == "relation" and min(stage.batch_size, stage.micro_batch) < 2:
            raise RecipeError(
                f"stage {stage.name}: features.objective relation compares the pictures of a micro batch, which has "
                "one; raise micro_batch and batch_size to 2 or more"
            )


def fingerprint(settings: Settings) -> str:
    """Of the teacher's weights: a run goes on with the same."""
    return weights_hash(settings.teacher)


class Loss(nn.Module):
    """How far the student's last hidden states are from the teacher's, and the linear maps between them."""

    def __init__(self, settings: Settings, config: VLMConfig) -> None:
        """RecipeError where the two cannot be compared."""
        super().__init__()
        teacher = Teacher(
            settings.teacher, count=settings.layers, dtype=settings.teacher_dtype, device=settings.teacher_device
        )
        _check(settings, config, teacher)
        self.settings, self.config, self.last_states = settings, config, settings.layers
        self.frozen, self.store = {"teacher": teacher}, None  # type: tuple[dict[str, Teacher], KeptFeatures | None]
        narrow, wide = config.vision.hidden_size, teacher.config.hidden_size
        mapped = settings.maps == "always" or (narrow != wide and settings.objective != "relation")
        self.maps = nn.ModuleList(nn.Linear(narrow, wide) for _ in range(settings.layers if mapped else 0))
        self.normaliser = Normaliser(settings.normalise, settings.layers, wide)
        self.tokens = 1 + (config.image_size // config.vision.patch_size) ** 2

    def forward(self, model: InternVL, batch: Batch, images: ImageFeatures) -> Tensor:
        """The sum over ``count`` tokens, or pictures of ``relation``, of the mean over pairs; float32."""
        wanted = self._taught(batch.tiles, batch)
        compare = {"cosine": _cosine, "smooth_l1": _smooth_l1, "relation": _relation}[self.settings.objective]
        total = batch.tiles.new_zeros((), dtype=torch.float32)
        for pair, (found, goal) in enumerate(zip(images.last_states[-len(wanted) :], wanted, strict=True)):
            mapped = self.maps[pair](found) if len(self.maps) else found
            with exactly(mapped.device):
                total = total + compare(mapped.float(), self.normaliser(goal, pair))
        return total / self.settings.layers

    def open_store(self, folder: Path, limit: int) -> KeptFeatures | None:
        """Where the teacher's hidden states are kept."""
        if self.settings.keep:
            teacher, form = self.frozen["teacher"], self.settings.keep
            self.store = KeptFeatures(folder, teacher.key(form), shape=self.kept_shape, limit=limit, form=form)
        return self.store

    @property
    def kept_shape(self) -> tuple[int, int]:
        """Rows and width of what is kept of a picture: all its hidden states, one after the other."""
        return self.settings.layers * self.tokens, self.frozen["teacher"].config.hidden_size

    @property
    def kept_bytes(self) -> int:
        """Of a tile on disk; 0 where nothing is kept."""
        return tile_bytes(self.kept_shape, self.settings.keep) if self.settings.keep else 0

    def _taught(self, tiles: Tensor, batch: Batch | None = None) -> list[Tensor]:
        """The teacher's hidden states of tiles, which are those of ``batch`` if it is given."""
        teacher, store = self.frozen["teacher"], self.store
        if store is None:
            return teacher.states(tiles)
        named = batch.images if batch is not None else ()
        loaded = iter(() if batch is None or batch.features is None else batch.features.split(1))
        found = []
        for place, tile in enumerate(tiles.split(1)):
            if named and named[place].kept:
                found.append(next(loaded))
                continue
            key = named[place].key if named else store.pixels_key(tile)
            kept = store.load(key, 1)
            if kept is None:
                kept = store.pack(torch.cat(teacher.states(tile), 1))  # alone, so that it is a function of the picture
                store.store(key, kept)
            found.append(kept.to(tiles.device))
        return list(store.unpack(torch.cat(found)).split(self.tokens, 1))

    def count(self, batch: Batch) -> float:
        """Tokens, class tokens included; pictures where they are compared with each other."""
        return float(tile_count(batch) * (1 if self.settings.objective == "relation" else self.tokens))

    def tile_flops(self) -> Flops:
        """What a tile costs beside the student: the teacher."""
        vision = self.frozen["teacher"].vision
        return encoder_flops(vision, self.tokens - 1, len(vision.encoder.layers))[0]

    def begin(self, samples: Iterable[Sample], beside: Mapping[str, bytes] = MappingProxyType({})) -> None:
        """Measure the teacher's statistics where they are asked for; DataError where no sample has a picture."""
        if self.settings.normalise == "none":
            return
        device = self.normaliser.mean.device
        pictures = itertools.islice(self._pictures(samples), self.settings.statistics)
        batches = iter(lambda: list(itertools.islice(pictures, MEASURED)), [])
        if not self.normaliser.measure(self._taught(torch.cat(tiles).to(device)) for tiles in batches):
            raise DataError("no sample of the stage has a picture, which the teacher's statistics are measured on")

    def _pictures(self, samples: Iterable[Sample]) -> Iterator[Tensor]:
        """(1, S, S, 3) of every picture that can be read."""
        for sample in samples:
            for part in image_parts(sample.messages):
                try:
                    yield whole_picture(part, self.config.image_size).tiles
                except (ValueError, OSError):  # an error when the sample is made into an example
                    continue


def _check(settings: Settings, config: VLMConfig, teacher: Teacher) -> None:
    if settings.keep and config.llm.layers:
        raise RecipeError("features.keep is for a student that trains alone, on whole pictures; leave it out")
    for whose, blocks in (("the student", config.vision.layers), ("the teacher", teacher.config.layers)):
        if settings.layers > blocks:
            raise RecipeError(f"features.layers is {settings.layers}; {whose} has {blocks} blocks")
    if teacher.config.patch_size != config.vision.patch_size:
        raise RecipeError(
            f"{settings.teacher} has patches of {teacher.config.patch_size} pixels, the student of "
            f"{config.vision.patch_size}; their tokens cannot be paired: take a student with the teacher's patch_size"
        )


def _cosine(found: Tensor, wanted: Tensor) -> Tensor:
    return -F.cosine_similarity(found, wanted, dim=-1).sum()


def _smooth_l1(found: Tensor, wanted: Tensor) -> Tensor:
    return F.smooth_l1_loss(found, wanted, reduction="none").mean(-1).sum()


def _relation(found: Tensor, wanted: Tensor) -> Tensor:
    among = [F.normalize(states[:, 1:].mean(1), dim=-1) for states in (found, wanted)]
    apart = (among[0] @ among[0].T - among[1] @ among[1].T).square()
    others = 1.0 - torch.eye(len(apart), device=apart.device)
    return (apart * others).sum() / max(1, len(apart) - 1)
