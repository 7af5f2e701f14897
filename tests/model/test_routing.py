"""A model without a router gets one: the second projector begins as means of the first, and the files are Flash's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mini_internvl.model.checkpoint import load_model, read_config, save_model
from mini_internvl.model.config import ConfigError, FlashConfig
from mini_internvl.model.flash import kept_places
from mini_internvl.model.routing import add_router, begin_near, routed_config

THRESHOLDS = FlashConfig(relative=0.25, absolute=0.5)


@pytest.fixture
def routed(checkpoint):
    model = load_model(checkpoint).double()
    add_router(model, THRESHOLDS, seed=1)
    return model


def test_equal_patches_give_few_tokens_what_all_of_them_give(routed):
    """Means of equal tokens are these tokens, through norm, non-linearity and all."""
    patch = torch.randn(2, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tile = patch.expand(2, 16, 32).contiguous()
    few, full = (routed.project_patches(tile, short=short) for short in (True, False))
    assert (few.shape[1], full.shape[1]) == (1, 4)
    torch.testing.assert_close(few, full[:, :1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_few_tokens_are_means_over_halves_of_the_tokens_in_their_place(routed, version):
    """Without norm, against the first projector's own arithmetic, in both orders of the grid."""
    routed.config = replace(routed.config, ps_version=version)
    begin_near(routed)
    norms = routed.mlp1[0], routed.mlp2[0]
    routed.mlp1[0], routed.mlp2[0] = torch.nn.Identity(), torch.nn.Identity()
    first, gelu, last = routed.mlp1[1:]
    tile = torch.randn(1, 64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    seen: list[torch.Tensor] = []
    handle = first.register_forward_hook(lambda module, given, output: seen.append(output))
    routed.project_patches(tile)
    few = routed.project_patches(tile, short=True)
    handle.remove()
    routed.mlp1[0], routed.mlp2[0] = norms
    grid = seen[0].view(2, 2, 2, 2, -1).transpose(1, 2).reshape(4, 2, 2, -1)  # four places of two rows and columns
    torch.testing.assert_close(few[0], last(gelu(grid.mean(2)).mean(1)), atol=1e-6, rtol=0)


def test_the_folder_is_a_flash_model(routed, checkpoint, tmp_path):
    routed.float()
    files = [path for path in checkpoint.iterdir() if path.suffix != ".safetensors" and path.name != "config.json"]
    folder = save_model(routed, tmp_path / "flash", extra_files=files)
    assert read_config(folder).flash == THRESHOLDS
    loaded = load_model(folder)
    for name, value in routed.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    kept = {name: value.clone() for name, value in loaded.state_dict().items()}
    add_router(loaded, FlashConfig(relative=0.5, absolute=0.1), seed=9)  # has one: the thresholds alone change
    assert loaded.config.flash == FlashConfig(relative=0.5, absolute=0.1)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in kept.items())


def test_sizes_that_allow_no_router_are_refused(checkpoint):
    config = read_config(checkpoint)
    narrow = replace(config, vision=replace(config.vision, hidden_size=24, heads=2))
    with pytest.raises(ConfigError, match="16 heads, which 24 channels do not divide"):
        routed_config(narrow, THRESHOLDS)
    with pytest.raises(ConfigError, match=r"short tiles have 0\.5 tokens a side"):
        routed_config(replace(config, image_size=28), THRESHOLDS)


def test_places_are_those_of_rows_one_after_the_other():
    ids = torch.tensor([[1, 9, 9, 9, 9, 2], [9, 9, 9, 9, 0, 0]])
    kept = kept_places(ids, 9, 4, 1, torch.tensor([False, True]))
    assert kept.tolist() == [[True] * 6, [True, False, False, False, True, True]]
