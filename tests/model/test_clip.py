"""A CLIP encoder as an InternViT: exact where it can be, and how far off where it cannot, against transformers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mini_internvl.model import clip
from mini_internvl.model.checkpoint import load_vision
from mini_internvl.model.config import VisionConfig
from mini_internvl.model.fields import ConfigError
from mini_internvl.model.files import CheckpointError
from mini_internvl.model.vision import InternViT

transformers = pytest.importorskip("transformers")

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 14}


def twin(image_size=56, seed=0, **changes):
    """A tiny CLIP with weights that hide nothing: norms and biases are not at one and zero."""
    torch.manual_seed(seed)
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TINY, image_size=image_size, **changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) if "embedding" not in name else 0)
    return model


def converted(model, image_size=56, **options):
    raw = model.config.to_dict()
    config = clip.internvit_config(raw, image_size=image_size)
    encoder = InternViT(VisionConfig.from_official(config)).eval()
    state = dict(clip.internvit_tensors(raw, model.state_dict().items(), image_size=image_size, **options))
    encoder.load_state_dict(state, strict=True)
    return encoder


def for_clip(pixels):
    """InternViT's pixels as CLIP takes them."""
    mean, std, clip_mean, clip_std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (clip.MEAN, clip.STD, clip.CLIP_MEAN, clip.CLIP_STD)
    )
    return (pixels * std + mean - clip_mean) / clip_std


@torch.no_grad()
def states(model, encoder, pixels):
    theirs = model(for_clip(pixels), output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
    return list(zip(encoder.hidden_states(pixels), theirs, strict=True))


def test_without_pre_norm_and_with_exact_gelu_all_is_exact():
    model = twin(hidden_act="gelu")
    model.pre_layrnorm = torch.nn.Identity()
    encoder = converted_without_norm(model)
    for mine, theirs in states(model, encoder, torch.randn(2, 3, 56, 56)):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-5)


def converted_without_norm(model):
    state = {**model.state_dict(), "pre_layrnorm.weight": torch.ones(32), "pre_layrnorm.bias": torch.zeros(32)}
    encoder = InternViT(VisionConfig.from_official(clip.internvit_config(model.config.to_dict(), image_size=56))).eval()
    encoder.load_state_dict(
        dict(clip.internvit_tensors(model.config.to_dict(), state.items(), image_size=56, pre_norm="omit"))
    )
    return encoder


def test_the_position_table_is_resized_as_transformers_resizes_it():
    model = twin(hidden_act="gelu")
    model.pre_layrnorm = torch.nn.Identity()
    raw = model.config.to_dict()
    state = {**model.state_dict(), "pre_layrnorm.weight": torch.ones(32), "pre_layrnorm.bias": torch.zeros(32)}
    encoder = InternViT(VisionConfig.from_official(clip.internvit_config(raw, image_size=84))).eval()
    encoder.load_state_dict(dict(clip.internvit_tensors(raw, state.items(), image_size=84, pre_norm="omit")))
    for mine, theirs in states(model, encoder, torch.randn(2, 3, 84, 84)):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-5)


def test_the_class_token_passes_the_norm_exactly_and_patches_nearly():
    model = twin()
    pixels = clip.generated_pictures(56, seed=5)
    mine, theirs = states(model, converted(model), pixels)[0]
    torch.testing.assert_close(mine[:, 0], theirs[:, 0], atol=1e-5, rtol=1e-5)
    omitted, _ = states(model, converted(model, pre_norm="omit"), pixels)[0]
    folded_error, omitted_error = ((one - theirs).norm() / theirs.norm() for one in (mine, omitted))
    assert folded_error < 0.35
    assert folded_error < 0.5 * omitted_error
    assert F.cosine_similarity(mine, theirs, dim=-1).mean() > 0.95


def test_the_constant_is_the_best_one():
    model = twin()
    pixels = clip.generated_pictures(56)  # those that it was measured on
    encoder = converted(model)
    mine, theirs = states(model, encoder, pixels)[0]
    gain, shift = model.pre_layrnorm.weight.detach(), model.pre_layrnorm.bias.detach()
    error = [(((scale * (mine - shift) + shift - theirs) / gain)[:, 1:]).norm() for scale in (0.98, 1.0, 1.02)]
    assert error[1] < min(error[0], error[2])


def test_a_whole_clip_model_gives_the_same_encoder():
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(text_config=text, vision_config={**TINY, "image_size": 56}, projection_dim=8)
    whole = transformers.CLIPModel(config)
    tensors = dict(clip.internvit_tensors(config.to_dict(), whole.state_dict().items(), image_size=56))
    raw = config.to_dict()["vision_config"]
    bare = dict(clip.internvit_tensors(raw, whole.vision_model.state_dict().items(), image_size=56))
    assert tensors.keys() == bare.keys()
    assert all(torch.equal(tensors[name], bare[name]) for name in bare)


def test_the_largest_released_clip_becomes_the_300m():
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    raw = {"model_type": "clip", "vision_config": {**vision, "image_size": 336, "patch_size": 14}}
    with torch.device("meta"):
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**raw["vision_config"]))
        encoder = InternViT(VisionConfig.from_official(clip.internvit_config(raw)))
    found = {name: tensor.shape for name, tensor in clip.internvit_tensors(raw, model.state_dict().items())}
    assert found == {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    assert sum(shape.numel() for shape in found.values()) == 304_012_288


def test_types_stay_and_embeddings_are_computed_in_float32():
    model = twin()
    half = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    made = dict(clip.internvit_tensors(model.config.to_dict(), half.items(), image_size=56))
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model_type": "siglip"}, 'config of "siglip", not of CLIP'),
        ({"model_type": "clip_vision_model", "hidden_act": "relu"}, 'hidden_act of the CLIP encoder is "relu"'),
        ({"model_type": "clip_vision_model", "patch_size": 15}, "image_size 448 is no multiple of 15"),
        ({"model_type": "clip_vision_model", "hidden_size": 770}, "770 is no multiple of 12 heads"),
    ],
)
def test_configs_of_another_kind(raw, message):
    with pytest.raises(ConfigError, match=message):
        clip.internvit_config(raw)


def test_weights_of_another_kind():
    model = twin()
    raw, state = model.config.to_dict(), dict(model.state_dict())
    with pytest.raises(ConfigError, match=r"holds head\.weight, which CLIP has not"):
        dict(clip.internvit_tensors(raw, {**state, "head.weight": torch.zeros(1)}.items(), image_size=56))
    state.pop("pre_layrnorm.bias")
    with pytest.raises(ConfigError, match=r"lacks pre_layrnorm\.bias"):
        dict(clip.internvit_tensors(raw, state.items(), image_size=56))
    state = dict(model.state_dict())
    state.pop("encoder.layers.1.self_attn.k_proj.weight")
    with pytest.raises(ConfigError, match="without its two neighbours"):
        dict(clip.internvit_tensors(raw, state.items(), image_size=56))


def test_a_folder_of_clip_loads_as_an_internvit(tmp_path):
    model = twin(image_size=28)
    model.save_pretrained(tmp_path / "clip")
    encoder = load_vision(tmp_path / "clip")
    assert (encoder.config.image_size, encoder.config.patch_size) == (448, 14)
    expected = converted(model, image_size=448)
    for name, tensor in encoder.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], msg=name)
    on_meta = load_vision(tmp_path / "clip", device="meta").state_dict()
    assert {name: tensor.shape for name, tensor in on_meta.items()} == {
        name: tensor.shape for name, tensor in encoder.state_dict().items()
    }


def test_an_encoder_of_another_family_is_named(tmp_path):
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipVisionConfig(**vision, image_size=28, patch_size=14)
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path / "siglip")
    with pytest.raises(ConfigError, match='one of "siglip_vision_model"; give a bare InternViT'):
        load_vision(tmp_path / "siglip")


def test_weights_that_do_not_fit_name_their_folder(tmp_path):
    model = twin(image_size=28)
    model.save_pretrained(tmp_path / "clip")
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    lost = next(name for name in weights if name.endswith("pre_layrnorm.bias"))
    del weights[lost]
    save_file(weights, tmp_path / "clip" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"clip: the vision encoder lacks pre_layrnorm\.bias"):
        load_vision(tmp_path / "clip")
