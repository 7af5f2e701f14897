"""The released sizes, counted on shapes, and fresh models."""

from __future__ import annotations

import pytest
import torch

from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import count_parameters, fresh, official_config


@pytest.mark.parametrize(
    ("size", "projector", "llm", "total"),
    [
        ("1B", 4_482_816, 629_663_872, 938_158_976),
        ("2B", 12_595_200, 1_889_146_880, 2_205_754_368),
        ("4B", 22_034_432, 3_820_809_216, 4_146_855_936),
    ],
)
def test_parameters_are_the_published_ones(size, projector, llm, total):
    config = VLMConfig.from_official(official_config(size))
    assert count_parameters(config) == {"vision": 304_012_288, "projector": projector, "llm": llm, "total": total}
    assert config.tokens_per_tile == 256


def test_templates_follow_the_language_model():
    templates = {size: official_config(size)["template"] for size in ("1B", "2B", "4B")}
    assert templates == {"1B": "Hermes-2", "2B": "internlm2-chat", "4B": "phi3-chat"}


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
