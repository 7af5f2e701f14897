"""InternViT: the vision encoder of every size (300M), of the 6B teacher and of nano.

Unusual next to other ViTs: no norm after the embedding or after the last block, a learned scale on each residual
branch (layer scale), and, in the 6B, RMSNorm with queries and keys normalised over all heads together.
Parameter names are those of the official checkpoints. Blocks and their parts take and give (N, T, hidden).
Source: ``internvl/model/internvl_chat/modeling_intern_vit.py``; paper section 3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mini_internvl.model.attention import attend
from mini_internvl.model.config import VisionConfig


class RMSNorm(nn.Module):
    """Root-mean-square norm computed in float32, scaled in the input's type."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


def _norm(config: VisionConfig) -> nn.Module:
    if config.norm_type == "rms_norm":
        return RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)


class Embeddings(nn.Module):
    """Patches, one class token and a position table that is resized to the image's grid."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.grid = config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.empty(1, 1, config.hidden_size).normal_())
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)
        self.position_embedding = nn.Parameter(torch.empty(1, self.grid**2 + 1, config.hidden_size).normal_())

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1 + H/patch * W/patch, hidden)."""
        patches = self.patch_embedding(pixel_values)  # (N, hidden, rows, columns)
        rows, columns = patches.shape[-2:]
        patches = patches.flatten(2).transpose(1, 2)
        class_token = self.class_embedding.to(patches.dtype).repeat(len(patches), 1, 1)
        x = torch.cat([class_token, patches], dim=1)
        return x + self._positions(rows, columns).to(x.dtype)

    def _positions(self, rows: int, columns: int) -> Tensor:
        table = self.position_embedding
        if (rows, columns) == (self.grid, self.grid):
            return table
        return resized_positions(table, rows, columns)


def resized_positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """A position table (1, 1 + side * side, hidden) for another grid: (1, 1 + rows * columns, hidden), float32."""
    side = int((table.shape[1] - 1) ** 0.5)
    square = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(rows, columns), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1].float(), square.flatten(2).transpose(1, 2)], dim=1)


class Attention(nn.Module):
    """Full self-attention over one tile."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.hidden_size, config.norm_eps)
            self.k_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.qk_norm = config.qk_norm

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.qk_norm:  # over all heads together, before they are split
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.reshape(n, t, self.heads, c // self.heads).transpose(1, 2) for part in (q, k, v))
        x = attend(q, k, v, dropout=self.dropout if self.training else 0.0)
        return self.proj(x.transpose(1, 2).reshape(n, t, c))


class MLP(nn.Module):
    """Two linear layers with the exact (erf) GELU between."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm block: x + ls1 * attention(norm1(x)), then x + ls2 * mlp(norm2(x))."""

    def __init__(self, config: VisionConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(config), _norm(config)
        self.attn, self.mlp = Attention(config), MLP(config)
        self.ls1 = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale))
        self.ls2 = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale))
        self.drop_path = drop_path
        self.checkpointing = False  # keep the input alone for the backward pass, and compute the rest again

    def _drop(self, branch: Tensor) -> Tensor:
        """Drop whole tiles of a residual branch while training (stochastic depth)."""
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        return branch * branch.new_empty(len(branch), 1, 1).bernoulli_(keep).div_(keep)

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self._drop(self.ls1 * self.attn(self.norm1(x)))
        return x + self._drop(self.ls2 * self.mlp(self.norm2(x)))


class Encoder(nn.Module):
    """The blocks; drop path grows linearly from 0 to the configured rate."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        rates = torch.linspace(0, config.drop_path_rate, config.layers, device="cpu").tolist()
        self.layers = nn.ModuleList(Block(config, rate) for rate in rates)


class InternViT(nn.Module):
    """Image tiles -> one row of features per patch, the class token first."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.embeddings.patch_embedding.weight.dtype

    def blocks(self, select_layer: int = -1) -> nn.ModuleList:
        """Those that run for the chosen one of :meth:`hidden_states`."""
        states = len(self.encoder.layers) + 1
        if not -states <= select_layer < states:
            raise ValueError(f"select_layer {select_layer} is outside this encoder's {states} hidden states")
        return self.encoder.layers[: select_layer % states]

    def forward(self, pixel_values: Tensor, select_layer: int = -1) -> Tensor:
        """Normalised (N, 3, H, W) -> (N, 1 + patches, hidden), the chosen one of :meth:`hidden_states`.

        Blocks after it are not run.
        """
        blocks = self.blocks(select_layer)
        x = self.embeddings(pixel_values)
        for block in blocks:
            x = block(x)
        return x

    def hidden_states(self, pixel_values: Tensor) -> list[Tensor]:
        """Embedding output and every block's output, each (N, 1 + patches, hidden)."""
        return self.last_states(pixel_values, len(self.encoder.layers) + 1)

    def last_states(self, pixel_values: Tensor, count: int) -> list[Tensor]:
        """The last ``count`` of :meth:`hidden_states`, in their order; no other is kept."""
        x = self.embeddings(pixel_values)
        states = [x]
        for block in self.encoder.layers:
            x = block(x)
            states = [*states, x][-count:]
        return states
