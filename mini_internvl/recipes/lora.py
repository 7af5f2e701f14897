"""Low-rank adapters: where they stand and how large they are."""

from __future__ import annotations

from dataclasses import dataclass

from mini_internvl.recipes.fields import RecipeError

LORA_PARTS = ("llm", "vision")


@dataclass(frozen=True, kw_only=True)
class LoraTargets:
    """Which linear layers get adapters, by the ends of their names: all linear ones of every block when left out."""

    llm: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Of any language model: fused matrices are named by their parts."""
    vision: tuple[str, ...] = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """Low-rank adapters: the base is frozen, two thin matrices beside each layer learn."""

    rank: int = 16
    """Inner size of the two matrices."""
    alpha: float | None = None
    """The product is scaled by alpha / rank; twice the rank when left out."""
    dropout: float = 0.05
    """On the adapters' inputs while training."""
    parts: tuple[str, ...] = LORA_PARTS
    """Parts of the model that get adapters."""
    targets: LoraTargets = LoraTargets()
    quantize: str = ""
    """``nf4`` holds the layers that have adapters in 4 bits while they train (QLoRA, extra ``lowbit``)."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise RecipeError(f"lora.rank is {self.rank}; it must be at least 1")
        if self.alpha is not None and self.alpha <= 0:
            raise RecipeError(f"lora.alpha is {self.alpha}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise RecipeError(f"lora.dropout is {self.dropout}; it must be in [0, 1)")
        if self.quantize not in ("", "nf4"):
            raise RecipeError(f'lora.quantize is "{self.quantize}"; known: nf4')
        unknown = [part for part in self.parts if part not in LORA_PARTS]
        if unknown or not self.parts:
            raise RecipeError(f"lora.parts holds {unknown or 'nothing'}; known parts: {', '.join(LORA_PARTS)}")
        for part in self.parts:
            known, given = getattr(LoraTargets, part), getattr(self.targets, part)
            unknown = [name for name in given if name not in known]
            if unknown or not given:
                raise RecipeError(f"lora.targets.{part} holds {unknown or 'nothing'}; known: {', '.join(known)}")

    @property
    def scale(self) -> float:
        """Factor of the product."""
        return (2 * self.rank if self.alpha is None else self.alpha) / self.rank
