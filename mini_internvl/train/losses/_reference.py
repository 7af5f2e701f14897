"""The frozen model whose answers one with fewer visual tokens is to keep."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mini_internvl.engine import hub
from mini_internvl.inputs.tiles import normalise
from mini_internvl.model.adapter import is_adapter, tensors_hash
from mini_internvl.model.checkpoint import image_token_id, load_model, read_config
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import shapes_only
from mini_internvl.model.vlm import InternVL
from mini_internvl.recipes import RecipeError
from mini_internvl.records import Batch
from mini_internvl.train.losses._rates import states_of


def reference_hash(name: str) -> str:
    """Of its weights; "" where the model is its own reference."""
    return tensors_hash(hub.resolve(name)) if name else ""


class Reference(nn.Module):
    """A whole model that never trains; its weights are read when they are first needed, in float32."""

    def __init__(self, name: str, config: VLMConfig) -> None:
        """RecipeError where its answers cannot be compared with those of a model of ``config``."""
        super().__init__()
        self.folder = hub.resolve(name)
        if is_adapter(self.folder):
            raise RecipeError(f"the reference {name} is an adapter; merge it first: minivl merge")
        own = read_config(self.folder)
        for what, mine, other in (
            ("vocabulary", own.llm.vocab_size, config.llm.vocab_size),
            ("chat template", own.template, config.template),
            ("tokens a tile", own.tokens_per_tile, config.tokens_per_tile),
            ("tile side", own.image_size, config.image_size),
        ):
            if mine != other:
                raise RecipeError(f"the reference {name} has another {what} ({mine}) than the model ({other})")
        self.device = torch.device("meta")
        with shapes_only():
            self.model = InternVL(own)
        self.model.image_token_id = image_token_id(self.folder, own)

    def place(self, device: torch.device) -> Reference:
        """Where it will run."""
        self.device = device
        return self

    @property
    def head(self) -> nn.Module:
        """Its output matrix."""
        return self.model.language_model.lm_head

    @torch.no_grad()
    def states(self, batch: Batch) -> Tensor:
        """(n, hidden) from which it predicts the batch's supervised tokens, every tile with all its tokens."""
        if self.model.device.type == "meta" != self.device.type:
            self.model = load_model(self.folder, device=str(self.device)).requires_grad_(False).eval()
        visual = self.model.encode_images(normalise(batch.tiles)) if len(batch.tiles) else None
        return states_of(self.model, batch, visual)
