"""int8 weights: they are what rounding makes of the plain ones, on both ways through, for every language model."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from mini_internvl import plugins
from mini_internvl.engine import load
from mini_internvl.engine.compare import compare
from mini_internvl.model import int8
from mini_internvl.model.checkpoint import load_model
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.int8 import FEW_ROWS, STEP, Int8Embedding, Int8Linear, quantise_decoder
from mini_internvl.model.sizes import compose, fresh
from tests.fake_cuda import FakeCuda, on_cuda
from tests.model.conftest import VISION

QUESTION = [{"role": "user", "content": "What is this?"}]


def make(llm):
    wide = {"hidden_size": STEP, "intermediate_size": 2 * STEP, "num_attention_heads": 8, "initializer_range": 0.4}
    facts = {**plugins.find("model.llms", llm).EXAMPLE, **wide}
    return fresh(VLMConfig.from_official(compose(VISION, facts, image_size=56, max_tiles=4)), seed=1).eval()


def widened(model):
    """A copy with the values that its int8 weights stand for."""
    found = copy.deepcopy(model)
    for module in found.language_model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            weight, scale = int8._rounded(module.weight.detach())
            assert weight.dtype == torch.int8
            assert weight.abs().max() == 127
            assert (weight * scale[:, None] - module.weight).abs().max() <= 0.6 * scale.max()
            module.weight = nn.Parameter(weight * scale[:, None])
    return found


@torch.inference_mode()
@pytest.mark.parametrize("llm", plugins.list_names("model.llms"))
def test_logits_are_those_of_the_rounded_weights(llm, monkeypatch):
    model = make(llm)
    wanted = widened(model)
    quantise_decoder(model.language_model)
    assert not any(type(module) in (nn.Linear, nn.Embedding) for module in model.language_model.modules())
    ids = torch.randint(1, 50, (1, FEW_ROWS + 1), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(ids), wanted(ids), atol=1e-4, rtol=1e-4)
    few, exact = model(ids[:, :3]), wanted(ids[:, :3])  # by the kernel, with activations in bfloat16
    assert 0 < (few - exact).abs().max() < 0.05 * exact.std()
    monkeypatch.setattr(int8, "_KERNEL", None)
    torch.testing.assert_close(model(ids[:, :3]), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("inner", "outer"), [(1, 1), (7, 5), (100, 33), (64, 1), (192, 33), (896, 130)])
@pytest.mark.parametrize("rows", [1, 5, FEW_ROWS, FEW_ROWS + 1])
def test_layers_of_any_width(inner, outer, rows):
    torch.manual_seed(0)
    layer, x = nn.Linear(inner, outer), torch.randn(2, rows, inner)
    narrow = Int8Linear(layer)
    exact = nn.functional.linear(x, narrow.weight * narrow.scale[:, None], layer.bias)
    found = torch.cat([narrow(x[:1]), narrow(x[1:])])  # a few rows; with both, more than a few
    assert found.shape == exact.shape
    assert found.dtype == x.dtype
    assert (found - exact).abs().max() <= 0.02 * (1 + exact.abs().max())
    torch.testing.assert_close(narrow(x.repeat(1, FEW_ROWS, 1))[:, :rows], exact, atol=1e-4, rtol=1e-4)


def test_large_matrices_are_widened_in_parts(monkeypatch):
    layer, x = nn.Linear(24, 1000), torch.randn(FEW_ROWS + 1, 24)
    whole = Int8Linear(layer)
    monkeypatch.setattr(int8, "PART", 24 * 7)
    parts = Int8Linear(layer)
    assert torch.equal(whole.weight, parts.weight)
    assert torch.equal(whole.scale, parts.scale)
    torch.testing.assert_close(parts(x), whole(x))


def test_empty_rows_stay_zero():
    table = Int8Embedding(nn.Embedding.from_pretrained(torch.cat([torch.zeros(1, 8), torch.ones(2, 8)])))
    assert table.scale[0] == 1  # not 0, by which its values would be divided
    torch.testing.assert_close(table(torch.tensor([0, 2])), torch.eye(2)[:, 1:].repeat(1, 8), atol=0, rtol=0.005)


def test_plain_matrices_go_one_by_one(monkeypatch):
    decoder = make("qwen2").language_model
    plain = [weakref.ref(module.weight) for module in decoder.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    left = []
    rounded = int8._rounded

    def counting(weight):
        left.append(sum(one() is not None for one in plain))
        return rounded(weight)

    monkeypatch.setattr(int8, "_rounded", counting)
    quantise_decoder(decoder)
    assert left == list(range(len(plain), 0, -1))


def test_a_model_on_a_gpu_keeps_everything_there():
    model = make("qwen2")
    quantise_decoder(model.language_model)
    with FakeCuda():
        on_cuda(model.bfloat16())
        logits = model(torch.zeros(2, 3, dtype=torch.int64, device="cuda"))
    assert logits.device.type == "cuda"
    assert logits.dtype == model.dtype == torch.bfloat16


def test_damaged_weights_are_refused_by_name(checkpoint, tmp_path):
    model = load_model(checkpoint)
    with torch.no_grad():
        model.language_model.layers[1].mlp.up_proj.weight[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj holds NaN or infinity: the checkpoint is damaged"):
        quantise_decoder(model.language_model)


def test_an_engine_answers_with_int8_weights(checkpoint, image, minivl):
    engine = load(checkpoint, "torch", dtype="int8", device="cpu")
    backend = engine.scheduler.backend
    assert backend.arithmetic == "torch cpu float32 int8"  # so kept answers of the plain model are not taken for its
    assert backend.model.vision_model.dtype == backend.model.dtype == torch.float32
    assert isinstance(engine.chat(QUESTION).text, str)
    code, out, _ = minivl("ask", image, "What is this?", "--model", checkpoint, "--dtype", "int8")
    assert code == 0
    assert out.strip()


def test_scores_of_int8_weights_are_kept_apart(checkpoint, tmp_path, minivl):
    asked = ("eval", "synth", "--model", checkpoint, "--limit", 1, "--kinds", "shapes", "--output", tmp_path / "run")
    code, _, err = minivl(*asked)
    assert code == 0, err
    code, _, err = minivl(*asked, "--dtype", "int8")
    assert code == 1
    assert "holds answers given with the model's own weights" in err
    assert "give another --output" in " ".join(err.split())


def test_a_comparison_names_int8_weights(checkpoint):
    plain, narrow = load(checkpoint, "torch", dtype="float32"), load(checkpoint, "torch", dtype="int8")
    found = compare(plain, narrow, {"short": QUESTION}, max_new_tokens=2)
    assert found.reason == "float32 against float32 int8"
    assert found.tolerance > compare(plain, plain, {"short": QUESTION}, max_new_tokens=2).tolerance


def test_openvino_says_how_it_gets_int8_weights(checkpoint):
    pytest.importorskip("openvino")
    with pytest.raises(ValueError, match=r"becomes int8 by minivl quantize .* --bits 8; or use torch"):
        load(checkpoint, "openvino", dtype="int8")
