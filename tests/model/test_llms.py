"""The backbones: reading configs, cutting and gluing tensors, and twins of transformers."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from mini_internvl.model import llms
from mini_internvl.model.cache import KVCache
from mini_internvl.model.config import ConfigError
from mini_internvl.model.decoder import Decoder
from mini_internvl.model.fields import Fields


def official(model):
    return dict(llms.find(model.config.architecture).NAMES.join(model.state_dict(), model.config))


def ours(state, config):
    backbone = llms.find(config.architecture)
    return {name: part for key, tensor in state.items() for name, part in backbone.NAMES.split(key, tensor, config)}


def test_gluing_and_cutting_are_inverse(llm):
    torch.manual_seed(0)
    model = Decoder(llms.read_config(llm))
    state = official(model)
    back = ours(state, model.config)
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())
    again = official_of(back, model.config)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_fused_matrix_that_cannot_be_cut_evenly_is_left_whole_for_the_loader_to_name(llm, rows):
    model = Decoder(llms.read_config(llm))
    for key, tensor in official(model).items():
        if any(whole in key for whole in llms.find(model.config.architecture).NAMES.fused):
            [(name, left)] = ours({key: tensor[:rows]}, model.config).items()
            assert model.state_dict()[name].shape != left.shape == tensor[:rows].shape


def official_of(state, config):
    return dict(llms.find(config.architecture).NAMES.join(state, config))


def test_official_names_and_shapes():
    """Of the second layer of each backbone, written out."""
    from_name = {module.__name__.rpartition(".")[2]: module for module in llms.backbones().values()}
    base = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 6, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    expected = {
        "internlm2": {
            "attention.wqkv": (16, 8),
            "attention.wo": (8, 8),
            "feed_forward.w1": (6, 8),
            "feed_forward.w2": (8, 6),
            "feed_forward.w3": (6, 8),
            "attention_norm": (8,),
            "ffn_norm": (8,),
        },
        "phi3": {
            "self_attn.qkv_proj": (16, 8),
            "self_attn.o_proj": (8, 8),
            "mlp.gate_up_proj": (12, 8),
            "mlp.down_proj": (8, 6),
            "input_layernorm": (8,),
            "post_attention_layernorm": (8,),
        },
    }
    expected["qwen3"] = {
        **{f"self_attn.{name}": (8, 8) for name in ("q_proj", "o_proj")},
        **{f"self_attn.{name}": (4, 8) for name in ("k_proj", "v_proj")},
        **{f"self_attn.{name}": (2,) for name in ("q_norm", "k_norm")},
        **{f"mlp.{name}": shape for name, shape in (("gate_proj", (6, 8)), ("up_proj", (6, 8)), ("down_proj", (8, 6)))},
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (8,)),
    }
    top = {
        "qwen3": {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"},
        "internlm2": {"model.tok_embeddings.weight", "model.norm.weight", "output.weight"},
        "phi3": {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"},
    }
    for name, layer in expected.items():
        config = llms.read_config({**base, **heads, "head_dim": 2, "architectures": [from_name[name].ARCHITECTURE]})
        state = official(Decoder(config))
        shapes = {key: tuple(value.shape) for key, value in state.items() if ".1." in key}
        assert shapes == {f"model.layers.1.{key}.weight": shape for key, shape in layer.items()}
        assert {key for key in state if ".layers." not in key} == top[name]


def test_internlm2_rows_are_grouped_by_key_head():
    """Rows of wqkv for 4 heads, 2 key heads, width 2: q0 q1 k0 v0, q2 q3 k1 v1."""
    config = llms.read_config(
        {
            "architectures": ["InternLM2ForCausalLM"],
            "vocab_size": 11,
            "hidden_size": 8,
            "intermediate_size": 6,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
    )
    rows = torch.arange(16.0)[:, None].expand(16, 8).contiguous()
    parts = dict(llms.find(config.architecture).NAMES.split("model.layers.0.attention.wqkv.weight", rows, config))
    first = {key.split(".")[3]: value[:, 0].tolist() for key, value in parts.items()}
    assert first == {
        "q_proj": [0, 1, 2, 3, 8, 9, 10, 11],
        "k_proj": [4, 5, 12, 13],
        "v_proj": [6, 7, 14, 15],
    }


@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_a_missing_field_is_named(llm, field):
    del llm[field]
    with pytest.raises(ConfigError, match=f'llm_config: the field "{field}" is missing'):
        llms.read_config(llm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, 'is "LlamaForCausalLM"; known: InternLM2ForCausalLM, Phi3'),
        ({"architectures": []}, "known: InternLM2ForCausalLM"),
        ({"hidden_act": "relu"}, 'hidden_act is "relu"'),
        ({"num_key_value_heads": 3}, "4 heads are no multiple of 3"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, 'rope_scaling.type is "yarn"'),
        ({"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0] * 4}}, "short_factor holds 1"),
        (
            {"head_dim": 8, "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4}},
            'field "long_factor" is missing',
        ),
    ],
)
def test_configs_that_cannot_be_right_are_refused(llm, change, message):
    with pytest.raises(ConfigError, match=message):
        llms.read_config({**llm, **change})


def test_internlm2_with_biases_is_refused_and_qwen2_windows_only_when_told():
    base = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ConfigError, match=r"llm_config\.bias is true"):
        llms.read_config({**base, "architectures": ["InternLM2ForCausalLM"], "bias": True})
    with pytest.raises(ConfigError, match=r"llm_config\.attention_bias is true"):
        llms.read_config({**base, "architectures": ["Qwen3ForCausalLM"], "attention_bias": True})
    for name in ("Qwen2", "Qwen3"):
        qwen = {**base, "architectures": [f"{name}ForCausalLM"], "sliding_window": 4}
        assert llms.read_config(qwen).sliding_window is None
        assert llms.read_config({**qwen, "use_sliding_window": True}).sliding_window == 4


def test_heads_of_qwen3_are_128_wide_whatever_the_hidden_size_is():
    raw = {**llms.find("Qwen3ForCausalLM").EXAMPLE, "hidden_size": 2560, "num_attention_heads": 32}
    fields = Fields(raw, "llm_config")
    assert llms.read_config(fields).head_dim == 12
    assert not fields.taken
    del raw["head_dim"]
    fields = Fields(raw, "llm_config")
    assert llms.read_config(fields).head_dim == 128
    assert fields.taken == ["llm_config.head_dim 128"]
    assert llms.read_config(Fields({**raw, "num_attention_heads": 6})).head_dim == 128


TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rope_theta": 1000.0,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
LONG = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.0, 4.0, 8.0],
}


@pytest.fixture(scope="module")
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers")


TWINS = {
    "Qwen2": ("Qwen2", {}),
    "Qwen2, scaled": ("Qwen2", {"max_position_embeddings": 16, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "Qwen3": ("Qwen3", {"head_dim": 12}),
    "Phi3": ("Phi3", {"original_max_position_embeddings": 16, "rope_scaling": LONG}),
}


def twin(transformers, name):
    """The same random model in transformers and here."""
    torch.manual_seed(0)
    name, extra = TWINS[name]
    plain = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "attn_implementation": "eager"}
    config = getattr(transformers, f"{name}Config")(**copy.deepcopy({**TINY, **extra, **plain}))
    theirs = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    config = llms.read_config({**TINY, **extra, "architectures": [f"{name}ForCausalLM"]})
    model = Decoder(config).eval()
    model.load_state_dict(ours(theirs.state_dict(), config))
    return theirs, model


def logits(model, ids):
    return model.lm_head(model(model.embed_tokens(ids)))


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("Qwen2", 40),
        ("Qwen2, scaled", 16),
        ("Qwen2, scaled", 40),
        ("Qwen3", 40),
        ("Phi3", 16),
        ("Phi3", 17),
        ("Phi3", 40),
    ],
)
def test_twins_of_transformers_give_the_same_logits(transformers, name, length):
    theirs, model = twin(transformers, name)
    ids = torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(logits(model, ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TWINS)
def test_twins_of_transformers_give_the_same_gradients(transformers, name):
    theirs, model = twin(transformers, name)
    ids = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(1))
    theirs(ids).logits.square().mean().backward()
    logits(model, ids).square().mean().backward()
    wanted = ours({key: value.grad for key, value in theirs.named_parameters()}, model.config)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TWINS)
def test_left_padded_batches_with_a_cache_give_the_greedy_tokens_of_transformers(transformers, name):
    theirs, model = twin(transformers, name)
    rows = [torch.randint(3, 61, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (3, 9, 6)]
    mask = torch.tensor([[0] * (9 - len(row)) + [1] * len(row) for row in rows])
    ids = torch.tensor([[0] * (9 - len(row)) + row for row in rows])
    with torch.no_grad():
        wanted = theirs.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None)
        cache = KVCache(model.config, 3, 14, dtype=torch.float32, device=torch.device("cpu"))
        given, found = ids, []
        for _ in range(5):
            hidden = model(model.embed_tokens(given), padding=mask, cache=cache)
            given = model.lm_head(hidden[:, -1:]).argmax(-1)
            mask = torch.cat([mask, torch.ones(3, 1, dtype=mask.dtype)], dim=1)
            found.append(given)
    assert torch.equal(torch.cat(found, dim=1), wanted[:, 9:])


@pytest.mark.parametrize("name", TWINS)
def test_transformers_reads_what_we_write(transformers, name):
    theirs, model = twin(transformers, name)
    ids = torch.randint(0, 61, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        theirs.load_state_dict(official(model))
        torch.testing.assert_close(theirs(ids).logits, logits(model, ids), atol=1e-4, rtol=1e-4)
