"""Features of a frozen encoder, kept on disk: a stage that does not train it reads each image's features again.

What is kept is the encoder's patches, or where the projector is frozen too, the visual tokens after it, which are
smaller, in bfloat16 (``train.kept``). An image is named by the path, size and time of its file, or by the bytes where
they are given. So an image whose features are kept is neither read nor decoded. Any other, such as a drawn one, is
encoded each time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from mini_internvl import __version__
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.lora import lora_layers
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import FLASH_PARTS, Recipe, StageRecipe
from mini_internvl.records import Batch
from mini_internvl.train.kept import KeptFeatures, as_bytes, features_folder
from mini_internvl.train.learner import ImageFeatures


class FeatureStore(KeptFeatures):
    """The kept features of one encoder, or of encoder and projector (``projected``)."""

    def __init__(self, folder: Path, model: InternVL, *, projected: bool, precision: str, limit: int) -> None:
        self.projected = projected
        encoder, shape = _encoder_key(model, projected, precision), kept_shape(model.config, projected)
        super().__init__(folder, encoder, shape=shape, limit=limit)

    def visual_tokens(self, model: InternVL, batch: Batch) -> Tensor:
        """(tiles, tokens per tile, LLM hidden) of a batch's images in their order; encodes and stores what is new."""
        features = self._features(model, batch)
        return features if self.projected else model.project_patches(features)

    def patches(self, model: InternVL, batch: Batch) -> Tensor:
        """(tiles, patches, encoder hidden) likewise, where the projector's output is not what is kept."""
        assert not self.projected, "visual tokens are kept, not patches"
        return self._features(model, batch)

    def _features(self, model: InternVL, batch: Batch) -> Tensor:
        counts = {kept: [image.tiles for image in batch.images if image.kept == kept] for kept in (True, False)}
        if not counts[False]:
            assert batch.features is not None, "images are marked as kept without features"
            return batch.features
        kept = iter(() if batch.features is None else batch.features.split(counts[True]))
        cut, made = iter(batch.tiles.split(counts[False])), dict[str, Tensor]()
        found = []
        for image in batch.images:
            if image.kept:
                found.append(next(kept))
                continue
            tiles = next(cut)
            if not image.key or image.key not in made:
                made[image.key] = self._encode(model, tiles)
                self.store(image.key, made[image.key])
            found.append(made[image.key])
        return torch.cat(found)

    @torch.no_grad()
    def _encode(self, model: InternVL, tiles: Tensor) -> Tensor:
        """One image alone, so that its features are a function of it; dropout of frozen adapters rests."""
        training = model.vision_model.training
        model.vision_model.eval()
        try:
            images = ImageFeatures(model, tiles)
            made = images.visual_tokens if self.projected else images.vision[:, 1:]
        finally:
            model.vision_model.train(training)
        return self.pack(made)


def is_projected(stage: StageRecipe) -> bool:
    """Whether what a stage keeps are visual tokens: where nothing behind the encoder's patches trains either."""
    return stage.parts().keys().isdisjoint(("projector", *FLASH_PARTS))


def kept_shape(config: VLMConfig, projected: bool) -> tuple[int, int]:
    """Of a tile's features."""
    if projected:
        return config.tokens_per_tile, config.llm.hidden_size
    return (config.image_size // config.vision.patch_size) ** 2, config.vision.hidden_size


def open_store(model: InternVL, recipe: Recipe, stage: StageRecipe) -> FeatureStore:
    """That of a stage whose model has the weights that it trains with."""
    return FeatureStore(
        features_folder(),
        model,
        projected=is_projected(stage),
        precision=recipe.precision,
        limit=int(recipe.cache_gb * 1e9),
    )


def _encoder_key(model: InternVL, projected: bool, precision: str) -> str:
    """Hash of all that decides an image's features, but for the image."""
    config = model.config
    parts: list[nn.Module] = [model.vision_model, *([model.mlp1] if projected else [])]
    facts = [__version__, precision, model.device.type, config.select_layer, repr(config.vision)]
    facts += [config.downsample_ratio, config.ps_version] if projected else []
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16)
    for part in parts:
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(as_bytes(tensor).data)
        for name, layer in lora_layers(part).items():  # what is held in 4 bits is in no state
            digest.update(name.encode())
            digest.update(as_bytes(layer.base_weight()).data)
    return digest.hexdigest()
