"""InternViT: position table, stochastic depth, query and key norms, hidden states."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mini_internvl.model.config import ConfigError, VisionConfig
from mini_internvl.model.vision import Attention, Block, InternViT


def config(**changes):
    fields = {"hidden_size": 8, "intermediate_size": 12, "layers": 4, "heads": 2, "image_size": 56, "patch_size": 14}
    return VisionConfig(**(fields | changes))


def test_the_position_table_is_used_as_it_is_at_its_own_size():
    model = InternViT(config())
    assert model.embeddings._positions(4, 4) is model.embeddings.position_embedding


def test_the_position_table_is_resized_along_the_right_axes():
    embeddings = InternViT(config()).embeddings
    with torch.no_grad():
        grid = torch.zeros(4, 4, 8)
        grid[..., 0] = torch.arange(4.0)[:, None]  # grows downwards
        grid[..., 1] = torch.arange(4.0)[None, :]  # grows to the right
        grid[..., 2] = 5.0
        embeddings.position_embedding[0, 1:] = grid.reshape(16, 8)
    table = embeddings._positions(2, 8)
    assert table.shape == (1, 17, 8)
    assert torch.equal(table[0, 0], embeddings.position_embedding[0, 0])  # the class token has no place
    resized = table[0, 1:].reshape(2, 8, 8)
    assert resized[..., 2].sub(5).abs().max() < 1e-5
    assert (resized[..., 0] - resized[:, :1, 0]).abs().max() < 1e-5
    assert (resized[..., 1] - resized[:1, :, 1]).abs().max() < 1e-5
    assert (resized[..., 0].diff(dim=0) > 0).all()
    assert (resized[..., 1].diff(dim=1) > 0).all()
    torch.testing.assert_close(resized[0, :, 1], bicubic(torch.arange(4.0), 8))
    torch.testing.assert_close(resized[:, 0, 0], bicubic(torch.arange(4.0), 2))


def bicubic(values, size):
    """One dimension by Keys' kernel with a = -0.75, half-pixel centres and a border that repeats."""
    out = []
    for i in range(size):
        place = (i + 0.5) * len(values) / size - 0.5
        left = math.floor(place)
        total = 0.0
        for tap in range(left - 1, left + 3):
            d = abs(place - tap)
            near = (-0.75 + 2) * d**3 - (-0.75 + 3) * d**2 + 1
            far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            total += (near if d <= 1 else far) * float(values[min(max(tap, 0), len(values) - 1)])
        out.append(total)
    return torch.tensor(out)


def test_other_image_sizes_run():
    model = InternViT(config()).eval()
    assert model(torch.randn(1, 3, 28, 84)).shape == (1, 1 + 2 * 6, 8)


def test_patches_are_numbered_row_by_row():
    model = InternViT(config())
    pixels = torch.zeros(1, 3, 56, 56)
    pixels[:, :, 14:28, 42:56] = 1.0  # row 1, column 3
    with torch.no_grad():
        change = (model.embeddings(pixels) - model.embeddings(torch.zeros_like(pixels))).abs().sum(-1)[0]
    assert change.nonzero().flatten().tolist() == [1 + 1 * 4 + 3]


def test_drop_path_grows_from_zero_to_the_rate():
    rates = [block.drop_path for block in InternViT(config(drop_path_rate=0.3)).encoder.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_drop_path_drops_whole_tiles_and_keeps_the_mean():
    block = Block(config(), drop_path=0.25).train()
    torch.manual_seed(0)
    dropped = block._drop(torch.ones(4000, 3, 8))
    first = dropped[:, :1, :1]
    assert (dropped == first).all()
    assert first.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert first.mean().item() == pytest.approx(1.0, abs=0.05)


def test_drop_path_is_off_when_not_training():
    torch.manual_seed(0)
    model = InternViT(config(drop_path_rate=0.9, layer_scale=1.0))
    still = InternViT(config(drop_path_rate=0.0))
    still.load_state_dict(model.state_dict())
    pixels = torch.randn(3, 3, 56, 56)
    with torch.no_grad():
        assert torch.equal(model.eval()(pixels), still.eval()(pixels))
        assert not torch.equal(model.train()(pixels), still.train()(pixels))


def test_queries_and_keys_are_normalised_over_all_heads_together():
    torch.manual_seed(0)
    layer = Attention(config(qk_norm=True)).eval()
    with torch.no_grad():
        layer.q_norm.weight.uniform_(0.5, 2.0)
        layer.k_norm.weight.uniform_(0.5, 2.0)
        x = torch.randn(2, 5, 8)
        q, k, v = F.linear(x, layer.qkv.weight, layer.qkv.bias).split(8, dim=-1)
        q = q / (q.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * layer.q_norm.weight
        k = k / (k.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * layer.k_norm.weight
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            weights = (q[..., head] @ k[..., head].transpose(1, 2) / 2.0).softmax(-1)
            heads.append(weights @ v[..., head])
        torch.testing.assert_close(layer(x), layer.proj(torch.cat(heads, dim=-1)))


def test_attention_sees_every_patch():
    torch.manual_seed(0)
    layer = Attention(config()).eval()
    x = torch.randn(1, 5, 8)
    y = x.clone()
    y[0, 4] += 1.0
    with torch.no_grad():
        assert (layer(x)[0, 0] - layer(y)[0, 0]).abs().max() > 1e-4


def test_layer_scale_multiplies_each_branch():
    torch.manual_seed(0)
    block = Block(config(), 0.0).eval()
    x = torch.randn(1, 3, 8)
    with torch.no_grad():
        block.ls1.zero_()
        torch.testing.assert_close(block(x), x + block.ls2 * block.mlp(block.norm2(x)))
        block.ls2.zero_()
        assert torch.equal(block(x), x)


def test_the_selected_layer_is_one_of_the_hidden_states():
    torch.manual_seed(0)
    model = InternViT(config()).eval()
    pixels = torch.randn(1, 3, 56, 56)
    with torch.no_grad():
        states = model.hidden_states(pixels)
        assert len(states) == 5
        for layer in range(-5, 5):
            assert torch.equal(model(pixels, layer), states[layer])
        with pytest.raises(ValueError, match="select_layer -6 is outside this encoder's 5 hidden states"):
            model(pixels, -6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "batch_norm"}, "norm_type"),
        ({"heads": 3}, "no multiple of 3 heads"),
        ({"image_size": 60}, "60 is no multiple of 14"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_missing_fields_take_the_defaults_of_the_original():
    raw = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    read = VisionConfig.from_official(raw)
    assert (read.norm_type, read.qk_norm, read.qkv_bias, read.image_size) == ("rms_norm", True, False, 224)
    with pytest.raises(ConfigError, match='"hidden_size" is missing'):
        VisionConfig.from_official({key: value for key, value in raw.items() if key != "hidden_size"})
    with pytest.raises(ConfigError, match="hidden_act"):
        VisionConfig.from_official({**raw, "hidden_act": "relu"})
