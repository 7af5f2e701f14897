"""Flash models: the router against plain arithmetic in float64, prompts cut, a batch as each prompt alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mini_internvl import GenerationConfig, load
from mini_internvl.commands.convert import convert
from mini_internvl.commands.doctor import diagnose
from mini_internvl.commands.info import describe
from mini_internvl.engine.engine import user
from mini_internvl.evaluate.model import load_evaluated
from mini_internvl.evaluate.outputs import check_model
from mini_internvl.model.checkpoint import load_model, read_config
from mini_internvl.model.config import ConfigError, FlashConfig, VLMConfig
from mini_internvl.model.flash import choose_short, cut_placeholders, encode_routed, read_thresholds
from mini_internvl.model.sizes import count_parameters, official_config


@pytest.fixture(scope="module")
def folder(later):
    """A tiny 3.5-1B-Flash: tiles of 16 tokens, or 4."""
    return later("3.5-1B-Flash")


# What the original computes, from the tensors of the file alone, in float64 and with loops.


def layer_norm(x, weight, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weight + bias


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def softmax(x):
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attend(state, name, query, patches):
    """One query (D,) over patches (P, D), 16 heads."""
    width = len(query)
    weights, biases = (np.split(state[f"{name}.in_proj_{kind}"], 3) for kind in ("weight", "bias"))
    q, k, v = (x @ w.T + b for x, w, b in zip((query, patches, patches), weights, biases, strict=True))
    heads = []
    for head in range(16):
        own = slice(head * width // 16, (head + 1) * width // 16)
        heads.append(softmax(k[:, own] @ q[own] / math.sqrt(width // 16)) @ v[:, own])
    return linear(state, f"{name}.out_proj", np.concatenate(heads))


def probability(state, patches):
    """Of few tokens being enough for one tile."""
    pooling = "pooling_before_gating"
    x = state[f"{pooling}.query_token"][0]
    for number in (1, 2, 2, 2):
        x = attend(state, f"{pooling}.attn{number}", x, patches)
        x = layer_norm(x, state[f"{pooling}.norm{number}.weight"], state[f"{pooling}.norm{number}.bias"])
    for number in (1, 2, 3, 4):
        block = f"gating.block{number}"
        y = linear(state, f"{block}.3", gelu(linear(state, f"{block}.0", x)))
        x = x + layer_norm(y, state[f"{block}.5.weight"], state[f"{block}.5.bias"])
    x = layer_norm(x, state["gating.gate.0.weight"], state["gating.gate.0.bias"])
    return softmax(linear(state, "gating.gate.1", x))[0]


def unshuffled(patches, side, step):
    """Patches (side * side, D) -> the squares of step x step, row by row, each as one vector."""
    grid = patches.reshape(side, side, -1)
    rows = []
    for top in range(0, side, step):
        for left in range(0, side, step):
            rows.append(np.concatenate([grid[top + i, left + j] for i in range(step) for j in range(step)]))
    return np.stack(rows)


def projected(state, name, x, linears):
    x = layer_norm(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"])
    for place, number in enumerate(linears):
        x = linear(state, f"{name}.{number}", gelu(x) if place else x)
    return x


def quantile(values, share):
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def reference(state, patches, flash):
    """(visual tokens, which tiles are short, probabilities) of one conversation's tiles (N, P, D)."""
    side = math.isqrt(patches.shape[1])
    chances = [float(probability(state, tile)) for tile in patches]
    limit = quantile(chances, flash.relative)
    short = [chance > limit and chance >= flash.absolute and len(chances) > 1 for chance in chances]
    rows = [
        projected(state, "mlp2", unshuffled(tile, side, 4), (1, 4, 7))
        if few
        else projected(state, "mlp1", unshuffled(tile, side, 2), (1, 3))
        for tile, few in zip(patches, short, strict=True)
    ]
    return torch.from_numpy(np.concatenate(rows)), short, chances


@pytest.fixture
def one_thread():
    """Many small products wait longer for a second thread than it helps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_tokens_and_logits_are_those_of_plain_arithmetic(folder, one_thread):
    """On 200 conversations of random tiles, with thresholds on and off the way."""
    model = load_model(folder).double()
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    token = model.image_token_id
    kept = set()
    for number in range(200):
        draw = torch.Generator().manual_seed(number)
        count = 1 + number % 4
        noise = torch.randn(count, 3, 112, 112, generator=draw, dtype=torch.float64)
        colours, contrasts = (torch.randn(count, n, 1, 1, generator=draw, dtype=torch.float64) for n in (3, 1))
        pixels = 2 * colours + contrasts * noise
        flash = FlashConfig(relative=(0.0, 0.3, 0.5, 0.9)[number // 4 % 4], absolute=(0.0, 0.4, 0.6)[number % 3])
        with torch.no_grad():
            visual, short = encode_routed(model, pixels, flash)
            patches = model.vision_model(pixels, model.config.select_layer)[:, 1:].numpy()
            wanted, few, chances = reference(state, patches, flash)
            limit = quantile(chances, flash.relative)
            edges = [(chance, edge) for chance in chances for edge in (limit, flash.absolute) if chance != limit]
            assert not any(math.isclose(*pair, rel_tol=1e-6) for pair in edges), "a tie in float32; draw others"
            assert short == few, number
            torch.testing.assert_close(visual[:, 0], wanted, atol=1e-9, rtol=1e-9)
            words = torch.randint(0, 1000, (6,), generator=draw).tolist()
            ids = cut_placeholders([*words[:3], *[token] * 16 * count, *words[3:]], token, 16, 4, short)
            assert ids.count(token) == len(wanted) == sum(4 if tile else 16 for tile in few)
            x = model.language_model.embed_tokens(torch.tensor([[*words[:3], *[0] * len(wanted), *words[3:]]]))
            x[0, 3 : 3 + len(wanted)] = wanted
            hidden = model.hidden(torch.tensor([ids]), visual_tokens=visual)[0, -1]
            wanted_logits = model.language_model.lm_head(model.language_model(x)[0, -1])
            torch.testing.assert_close(model.language_model.lm_head(hidden), wanted_logits, atol=1e-8, rtol=0)
        kept.add((count, sum(short)))
    assert len(kept) > 5


def test_an_image_of_one_tile_keeps_all_its_tokens(folder):
    """It is its own quantile, and nothing is above itself."""
    for relative in (0.0, 0.5, 1.0):
        flash = FlashConfig(relative=relative, absolute=0.0)
        assert not choose_short(torch.tensor([0.7]), flash).any()
        assert not choose_short(torch.tensor([0.7, 0.7, 0.7]), flash).any()
    assert choose_short(torch.tensor([0.1, 0.9]), FlashConfig(relative=0.0, absolute=0.9)).tolist() == [False, True]
    assert choose_short(torch.tensor([0.1, 0.9]), FlashConfig(relative=0.0, absolute=0.95)).tolist() == [False, False]


def test_the_last_placeholders_of_a_short_tile_leave_the_prompt():
    ids = [1, 9, 9, 9, 9, 9, 9, 9, 9, 2, 9, 9, 9, 9, 3]
    assert cut_placeholders(ids, 9, 4, 1, [True, False, False]) == [1, 9, 9, 9, 9, 9, 2, 9, 9, 9, 9, 3]
    assert cut_placeholders(ids, 9, 4, 1, [True, True, True]) == [1, 9, 9, 2, 9, 3]


def picture(width, height, seed):
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_a_batch_answers_as_each_prompt_alone(folder):
    engine = load(folder, dtype="float32")
    engine.flash = FlashConfig(relative=0.2, absolute=0.0)
    first = picture(300, 200, 0)
    asked = [
        user("What?", first),
        user("And why is that so?", first),
        user("What?", picture(400, 100, 1), picture(100, 300, 2)),
        user("No image"),
        user("One tile", picture(112, 112, 3)),
    ]
    limits = GenerationConfig(max_new_tokens=5)
    together = engine.chat_batch(asked, limits)
    alone = [engine.chat(messages, limits) for messages in asked]
    assert [(r.text, r.prompt_tokens, r.saved) for r in together] == [(r.text, r.prompt_tokens, r.saved) for r in alone]
    assert [reply.saved % 12 for reply in together] == [0] * 5
    assert together[0].saved == together[1].saved > 0 < together[2].saved
    assert (together[3].saved, together[4].saved) == (0, 0)
    whole = len(engine.prepare(asked[0]).input_ids)
    assert together[0].prompt_tokens == whole - together[0].saved


def test_thresholds_can_be_set_and_name_the_answers(folder):
    engine = load(folder, dtype="float32")
    asked = user("What?", picture(300, 200, 0))
    assert engine.arithmetic.endswith("flash 0.3 0.4")
    engine.flash = FlashConfig(relative=0.0, absolute=0.0)
    most = engine.chat(asked, GenerationConfig(max_new_tokens=1)).saved
    assert most == 12 * (engine.count_tiles(asked) - 1)
    engine.flash = replace(engine.flash, absolute=1.0)
    assert engine.chat(asked, GenerationConfig(max_new_tokens=1)).saved == 0
    engine.flash = None
    plain = engine.chat(asked, GenerationConfig(max_new_tokens=4))
    assert plain.saved == 0
    assert "flash" not in engine.arithmetic


def test_ask_tells_what_was_saved(folder, minivl, tmp_path):
    picture(300, 200, 0).save(tmp_path / "a.png")
    code, _, told = minivl("ask", tmp_path / "a.png", "What?", "--model", folder, "--max-new-tokens", 2)
    assert code == 0
    assert "visual tokens saved (" in told
    code, out, _ = minivl("ask", tmp_path / "a.png", "What?", "--model", folder, "--max-new-tokens", 2, "--json")
    assert json.loads(out)["saved"] > 0


def test_thresholds_come_from_the_command_line(folder, later, minivl, tmp_path):
    picture(200, 200, 0).save(tmp_path / "a.png")
    config = read_config(folder)
    assert read_thresholds("0.5,0.4", config) == FlashConfig(relative=0.5, absolute=0.4)
    assert read_thresholds("off", config) == replace(config.flash, enabled=False)
    for text, words in (("half", "write off, or two numbers"), ("0.5", "write off"), ("2,0", "from 0 to 1")):
        with pytest.raises(ValueError, match=words):
            read_thresholds(text, config)
    asked = ["ask", tmp_path / "a.png", "What?", "--max-new-tokens", 1, "--json"]
    saved = [json.loads(minivl(*asked, "--model", folder, "--flash", how)[1])["saved"] for how in ("0,0", "off")]
    assert saved[0] > saved[1] == 0
    code, _, told = minivl(*asked, "--model", later("2.5-2B"), "--flash", "off")
    assert (code, "this model has no router" in told) == (1, True)


def test_an_evaluation_keeps_answers_of_other_thresholds_apart(folder, tmp_path):
    evaluated = load_evaluated(str(folder), flash="off")
    assert evaluated.engine.arithmetic == "torch cpu float32"
    facts = dict(evaluated.facts)
    assert facts["flash"] == "off"
    (tmp_path / "synth").mkdir()
    (tmp_path / "synth" / "score.json").write_text(json.dumps({"model": facts}))
    check_model(tmp_path, facts)
    with pytest.raises(ValueError, match="answers given with --flash off"):
        check_model(tmp_path, {**facts, "flash": "0.5,0.4"})
    with pytest.raises(ValueError, match="sets its own thresholds"):
        load_evaluated("openai:http://localhost:1/v1#x", flash="off")


def test_the_folder_is_healthy_and_converts_but_not_to_native(folder, tmp_path):
    assert diagnose(folder).healthy
    convert(folder, tmp_path / "mini", "mini")
    convert(tmp_path / "mini", tmp_path / "back", "official")
    assert (tmp_path / "back/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert read_config(tmp_path / "back").flash == FlashConfig(relative=0.3, absolute=0.4)
    with pytest.raises(ConfigError, match="a Flash model, whose router transformers does not have"):
        convert(folder, tmp_path / "native", "native")


def test_a_router_that_is_off_is_kept_and_not_used(folder):
    raw = json.loads((folder / "config.json").read_text())
    assert describe(None, str(folder))["tile"] == "112 px, 16 tokens, or 4 by its router"
    lacking = {key: value for key, value in raw.items() if key != "flash_relative_threshold"}
    with pytest.raises(ConfigError, match='"flash_relative_threshold" is missing'):
        VLMConfig.from_official(lacking)
    with pytest.raises(ConfigError, match=r"flash_absolute_threshold is 2; .* from 0 to 1"):
        VLMConfig.from_official(raw | {"flash_absolute_threshold": 2})
    off = VLMConfig.from_official(raw | {"flash_mode": False}).flash
    assert off is not None
    assert not off.enabled
    unused = {"gating.block4.5.bias", "pooling_before_gating.attn4.in_proj_weight"}
    assert unused <= load_model(folder).state_dict().keys()


def test_the_1b_has_the_published_size():
    """Its weights take 2.3 GB in 16 bits."""
    config = VLMConfig.from_official(official_config("3.5-1B-Flash"))
    assert (config.tokens_per_tile, config.short_tokens) == (256, 64)
    counts = count_parameters(config)
    assert round(2 * counts["total"] / 1e9, 1) == 2.3
    assert counts["projector"] == 5_253_120 + 39_885_824 - 2048
