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


def qwen(**changes):
    raw = official_config("1B")
    raw["llm_config"] |= changes
    return raw


def test_the_rotary_base_is_read_in_both_generations_of_names():
    """Since transformers 5 it stands in rope_parameters; taken for absent, it becomes 10,000 without a word."""
    new = {"rope_theta": 1000000.0, "rope_type": "default"}
    raw = qwen(rope_parameters=new)
    del raw["llm_config"]["rope_theta"]
    config = VLMConfig.from_official(raw)
    assert config.llm.rope == VLMConfig.from_official(official_config("1B")).llm.rope
    assert config.llm.rope.theta == 1000000.0
    assert not config.defaults
    dynamic = {"rope_theta": 1000000.0, "rope_type": "dynamic", "factor": 2.0}
    raw = official_config("2B")
    del raw["llm_config"]["rope_theta"], raw["llm_config"]["rope_scaling"]
    raw["llm_config"]["rope_parameters"] = dynamic
    assert VLMConfig.from_official(raw).llm == VLMConfig.from_official(official_config("2B")).llm
    with pytest.raises(ConfigError, match=r"rope_theta is 1000000.0 but .*rope_parameters.rope_theta is 5.0"):
        VLMConfig.from_official(qwen(rope_parameters={**new, "rope_theta": 5.0}))


def test_defaults_that_were_taken_are_stated():
    raw = official_config("1B")
    del raw["llm_config"]["rope_theta"], raw["ps_version"]
    assert VLMConfig.from_official(raw).defaults == ("llm_config.rope_theta 10000.0", "ps_version v1")


def test_null_means_absent():
    raw = qwen(rms_norm_eps=None, head_dim=None, rope_scaling=None)
    raw |= {"downsample_ratio": None, "system_message": None, "img_context_token_id": None}
    config = VLMConfig.from_official(raw)
    assert (config.llm.norm_eps, config.downsample_ratio) == (1e-6, 0.5)
    with pytest.raises(ConfigError, match='llm_config: the field "vocab_size" is missing'):
        VLMConfig.from_official(qwen(vocab_size=None))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (qwen(vocab_size={}), r"llm_config\.vocab_size is an object; it must be a whole number from 1 to 10,000,000"),
        (qwen(num_hidden_layers=10**7), r"num_hidden_layers is 10000000; .* from 1 to 1,000"),
        (qwen(hidden_size=True), r"hidden_size is True; it must be a whole number"),
        (qwen(rms_norm_eps="small"), r"rms_norm_eps is 'small'; it must be a number"),
        (qwen(rope_theta=float("nan")), r"rope_theta is nan; it must be a number above 0"),
        (qwen(rope_theta=10**400), r"rope_theta is a huge number"),
        (qwen(rope_scaling=[1]), r"rope_scaling is a list of 1; it must be an object"),
        (qwen(rope_parameters={"full_attention": {"rope_type": "default"}}), "all layers of this family turn alike"),
        (official_config("1B") | {"vision_config": 0}, r"vision_config is 0; it must be an object with fields"),
        (official_config("1B") | {"downsample_ratio": [1, 2]}, r"downsample_ratio is a list of 2; it must be a number"),
        (official_config("1B") | {"system_message": True}, r"system_message is True; it must be a text"),
        (official_config("1B") | {"max_dynamic_patch": 10**6}, r"max_dynamic_patch is 1000000; .* from 1 to 1,000"),
        (official_config("1B") | {"min_dynamic_patch": 40}, "min_dynamic_patch 40 is more than max_dynamic_patch 12"),
        (official_config("1B") | {"select_layer": 99}, "select_layer is 99, but the encoder has 24 layers"),
    ],
)
def test_a_field_of_the_wrong_kind_or_out_of_range_is_named(raw, message):
    with pytest.raises(ConfigError, match=message):
        VLMConfig.from_official(raw)
