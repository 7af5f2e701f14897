"""Reading the official config.json."""

from __future__ import annotations

import pytest

from mini_internvl.model.config import ConfigError, VLMConfig
from mini_internvl.model.sizes import official_config


def test_every_field_that_matters_is_read():
    raw = official_config("2B") | {
        "ps_version": "v1",
        "select_layer": -2,
        "force_image_size": 224,
        "min_dynamic_patch": 2,
        "max_dynamic_patch": 9,
        "use_thumbnail": False,
        "system_message": "",
        "img_context_token_id": 92546,
    }
    config = VLMConfig.from_official(raw)
    assert (config.ps_version, config.select_layer, config.image_size) == ("v1", -2, 224)
    assert (config.min_tiles, config.max_tiles, config.use_thumbnail) == (2, 9, False)
    assert config.system_message == ""
    assert config.image_token_id == 92546
    assert config.tokens_per_tile == 64
    assert config.projector_input == 4096
    assert config.llm.rope.kind == "dynamic"
    assert config.official == raw


def test_missing_fields_take_the_defaults_of_the_original():
    raw = official_config("1B")
    for field in ("ps_version", "max_dynamic_patch", "force_image_size", "use_thumbnail", "select_layer"):
        del raw[field]
    config = VLMConfig.from_official(raw)
    assert (config.ps_version, config.max_tiles, config.image_size) == ("v1", 6, 448)
    assert (config.use_thumbnail, config.select_layer) == (False, -1)


def test_without_dynamic_size_a_image_is_one_tile():
    assert VLMConfig.from_official(official_config("1B") | {"dynamic_image_size": False}).max_tiles == 1


def test_the_kept_dictionary_is_a_copy():
    raw = official_config("1B")
    config = VLMConfig.from_official(raw)
    raw["llm_config"]["hidden_size"] = 1
    assert config.official["llm_config"]["hidden_size"] == 896


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]},
            r'"llava" \(LlavaForConditionalGeneration\), not of "internvl_chat"',
        ),
        ({}, r'"None" \(unknown\), not of "internvl_chat"'),
        ({"model_type": "internvl_chat"}, 'not of "internvl_chat"'),
        (official_config("1B") | {"ps_version": "v3"}, 'ps_version is "v3"; known: v1, v2'),
        (official_config("1B") | {"force_image_size": 462}, r"gives 16\.5 tokens a side"),
        ({key: value for key, value in official_config("1B").items() if key != "template"}, '"template" is missing'),
    ],
)
def test_configs_of_other_models_and_impossible_ones_are_refused(raw, message):
    with pytest.raises(ConfigError, match=message):
        VLMConfig.from_official(raw)
