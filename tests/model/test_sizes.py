"""The released sizes, counted on shapes, and fresh models."""

from __future__ import annotations

import pytest
import torch

from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import count_parameters, fresh, official_config, size_names, size_of_release


@pytest.mark.parametrize(
    ("size", "projector", "llm", "total"),
    [
        ("1B", 4_482_816, 629_663_872, 938_158_976),
        ("2B", 12_595_200, 1_889_146_880, 2_205_754_368),
        ("4B", 22_034_432, 3_820_809_216, 4_146_855_936),
        ("2.5-1B", 4_482_816, 629_697_920, 938_193_024),
        ("2.5-2B", 12_595_200, 1_889_146_880, 2_205_754_368),
        ("2.5-4B", 12_595_200, 3_396_030_464, 3_712_637_952),
        ("3-1B", 4_482_816, 629_697_920, 938_193_024),
        ("3-2B", 8_662_016, 1_776_283_136, 2_088_957_440),
        ("3.5-1B", 5_253_120, 751_632_384, 1_060_897_792),
        ("3.5-2B", 12_595_200, 2_031_739_904, 2_348_347_392),
        ("3.5-4B", 17_052_672, 4_411_424_256, 4_732_489_216),
    ],
)
def test_parameters_are_the_published_ones(size, projector, llm, total):
    config = VLMConfig.from_official(official_config(size))
    assert count_parameters(config) == {"vision": 304_012_288, "projector": projector, "llm": llm, "total": total}
    assert config.tokens_per_tile == 256


def test_a_flash_model_has_another_projector_and_a_router_more():
    config = VLMConfig.from_official(official_config("3.5-1B-Flash"))
    assert config.flash
    assert config.flash.enabled
    counts = count_parameters(config)
    # mlp2: LayerNorm of 16 patches of 1024, then 16,384 -> 2,048 -> 2,048 -> 1,024 with biases
    second = 2 * 16_384 + (16_384 + 1) * 2_048 + (2_048 + 1) * 2_048 + (2_048 + 1) * 1_024
    assert counts["projector"] == 5_253_120 + second
    # four attentions of 1024 with norms and a query; four MLPs of 4096 with norms; LayerNorm and two logits
    attention, mlp = 4 * (1_024 + 1) * 1_024, (1_024 + 1) * 4_096 + (4_096 + 1) * 1_024
    assert counts["router"] == 4 * (attention + 2_048) + 1_024 + 4 * (mlp + 2_048) + 2_048 + (1_024 + 1) * 2
    assert counts["total"] == 304_012_288 + 751_632_384 + counts["projector"] + counts["router"]


def test_templates_follow_the_language_model_in_the_first_generation_alone():
    templates = {size: official_config(size)["template"] for size in size_names()}
    first = {"1B": "Hermes-2", "2B": "internlm2-chat", "4B": "phi3-chat"}
    assert templates == {**dict.fromkeys(size_names(), "internvl2_5"), **first}


PUBLISHED = {
    **{"1B": 0.94, "2B": 2.21, "4B": 4.15, "2.5-1B": 0.94, "2.5-2B": 2.21, "2.5-4B": 3.71, "3-1B": 0.94, "3-2B": 2.09},
    **{"3.5-1B": 1.1, "3.5-2B": 2.3, "3.5-4B": 4.7},
}
"""Billions of parameters, as the model cards print them."""


def test_totals_round_to_the_published_ones():
    assert size_names() == [*PUBLISHED, "3.5-1B-Flash", "3.5-2B-Flash", "3.5-4B-Flash"]
    for size, published in PUBLISHED.items():
        total = count_parameters(VLMConfig.from_official(official_config(size)))["total"] / 1e9
        assert round(total, 1 if published in (1.1, 2.3, 4.7) else 2) == published, size


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("OpenGVLab/InternVL2-1B", "1B"),
        ("OpenGVLab/InternVL2_5-4B-MPO", "2.5-4B"),
        ("InternVL3-2B-hf", "3-2B"),
        ("OpenGVLab/InternVL3_5-4B-Instruct-HF", "3.5-4B"),
        ("OpenGVLab/InternVL3-4B", ""),
        ("OpenGVLab/InternVL3_5-1B-Flash", "3.5-1B-Flash"),
        ("OpenGVLab/InternVL3-1B-Flash", ""),
        ("Mini-InternVL2-1B-DA-Drivelm", ""),
        ("myInternVL2-1B", ""),
    ],
)
def test_released_names_have_a_size_and_others_none(name, size):
    assert size_of_release(name) == size


def test_an_unknown_size_names_the_known_ones():
    with pytest.raises(ValueError, match='unknown size "3B"; known: 1B, 2B, 4B'):
        official_config("3B")


def test_fresh_models_depend_on_the_seed_alone(make):
    config = make().config
    first, second, other = fresh(config, 1), fresh(config, 1), fresh(config, 2)
    torch.manual_seed(99)
    third = fresh(config, 1)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
        assert torch.equal(value, third.state_dict()[key]), key
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True) if a.ndim > 1]
    assert not any(same)


def test_fresh_weights_have_the_ranges_of_the_config(make):
    model = make()
    fresh_model = fresh(model.config, 1)
    llm = fresh_model.language_model
    assert llm.layers[0].mlp.gate_proj.weight.std().item() == pytest.approx(0.2, rel=0.1)
    assert fresh_model.vision_model.encoder.layers[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert fresh_model.vision_model.embeddings.position_embedding.std().item() == pytest.approx(1.0, rel=0.15)
    assert (llm.layers[0].self_attn.q_proj.bias == 0).all()
    assert (llm.norm.weight == 1).all()
