"""The later generations from their own files: every layout, twins of transformers around whole models, adapters."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from mini_internvl import GenerationConfig, load
from mini_internvl.commands.convert import convert
from mini_internvl.commands.doctor import diagnose
from mini_internvl.engine.engine import user
from mini_internvl.inputs import chat
from mini_internvl.model.adapter import load_adapted, save_adapter, tensors_hash
from mini_internvl.model.checkpoint import image_token_id, load_model, read_config, save_model
from mini_internvl.model.config import ConfigError, VLMConfig
from mini_internvl.model.lora import LoraConfig, adapter_parameters, add_lora, merge_lora

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
CONTEXT = {"2.5-1B": 151667, "2.5-2B": 92546, "3-1B": 151667, "3.5-1B": 151671}
LOGITS = 1e-4


@pytest.fixture(params=CONTEXT)
def kind(request):
    return request.param


@pytest.fixture
def folder(kind, later):
    return later(kind)


def picture(width=120, height=80, seed=0):
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def prompts(engine):
    """Three questions of different lengths: about an image of several tiles, about one of one tile, about none."""
    asked = [user("What is this?", picture()), user("Why?", picture(56, 56, 1)), user("List three colours, please.")]
    return engine.prepare_batch(asked)


def test_what_is_not_needed_is_read_past(kind, folder):
    config = read_config(folder)
    assert (config.template, config.system_message, config.max_tiles) == ("internvl2_5", None, 12)
    assert config.defaults == ()
    assert config.llm.rope.kind == ("dynamic" if kind in ("2.5-2B", "3-1B") else "default")
    assert config.llm.sliding_window is None
    assert config.llm.qk_norm == (kind == "3.5-1B")
    assert config.llm.qkv_bias == (kind in ("2.5-1B", "3-1B"))


def test_ids_go_by_name_and_the_prompt_is_the_templates(kind, folder):
    engine = load(folder, dtype="float32")
    [prompt] = engine.prepare_batch([user("Hi", picture())])
    assert engine.model.image_token_id == CONTEXT[kind] == engine.tokenizer.token_id(chat.IMAGE_CONTEXT)
    assert list(prompt.input_ids).count(CONTEXT[kind]) == 4 * 7
    text = engine.tokenizer.decode(prompt.input_ids, skip_special=False).replace(chat.IMAGE_CONTEXT, "")
    assert text.removeprefix("<s>") == (
        f"<|im_start|>system\n{chat.SYSTEM_2_5}<|im_end|>\n<|im_start|>user\n<img></img>\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_dynamic_rotation_changes_nothing_up_to_its_limit(later):
    model = load_model(later("3-1B"))
    ids = torch.randint(0, 151000, (1, 40), generator=torch.Generator().manual_seed(0))
    raw = dict(model.config.official)
    raw["llm_config"] = {**raw["llm_config"], "rope_scaling": None}
    with torch.no_grad():
        scaled = model(ids)
        model.language_model.config = VLMConfig.from_official(raw).llm
        assert torch.equal(model(ids), scaled)


@pytest.mark.parametrize(
    ("place", "name", "value", "words"),
    [
        ("vision_config", "use_moe", True, "no experts"),
        ("", "image_fold", 2, "does not fold images"),
        ("llm_config", "attention_bias", True, "attention biases"),
        ("llm_config", "architectures", ["GptOssForCausalLM"], "known: InternLM2"),
    ],
)
def test_what_changes_answers_and_is_not_computed_is_refused(later, place, name, value, words):
    raw = json.loads((later("3.5-1B") / "config.json").read_text())
    (raw[place] if place else raw)[name] = value
    with pytest.raises(ConfigError, match=words):
        VLMConfig.from_official(raw)


def test_without_a_tokenizer_the_released_id_is_taken(later, tmp_path):
    for kind in ("2.5-2B", "3-1B", "3.5-1B"):
        config = read_config(later(kind))
        assert image_token_id(tmp_path, config) == CONTEXT[kind]


def test_the_doctor_finds_nothing_to_mend(kind, folder):
    found = diagnose(folder)
    assert found.healthy
    others = [finding.what for finding in found.findings if "auto_map" not in finding.what]
    spare = "the tokenizer has 151,678 tokens, the embedding table 151,936 rows: 258 rows have no token"
    assert others == [spare] * (kind == "3.5-1B")


def test_every_layout_and_back_is_exact(folder, tmp_path):
    expected = load_file(folder / "model.safetensors")
    last = folder
    for layout in ("native", "mini", "official"):
        convert(last, tmp_path / layout, layout)
        last = tmp_path / layout
        assert diagnose(last).healthy
        again = read_config(last)
        assert (again.llm, again.vision) == (read_config(folder).llm, read_config(folder).vision)
    found = load_file(last / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    raw, first = (json.loads((place / "config.json").read_text()) for place in (last, folder))
    del first["auto_map"]
    for part in ("llm_config", "vision_config"):
        assert {**raw[part], **first.pop(part)} == raw.pop(part)
    assert {**raw, **first} == raw


@pytest.fixture
def native(kind, folder, tmp_path_factory):
    """(engine, transformers' model, its tokenizer) of the same weights."""
    target = tmp_path_factory.mktemp("native") / kind
    convert(folder, target, "native")
    theirs, info = InternVLForConditionalGeneration.from_pretrained(target, output_loading_info=True)
    assert not any(info.values()), info
    return load(folder, dtype="float32"), theirs.eval(), AutoTokenizer.from_pretrained(target)


def padded(engine, batch):
    """ids and mask of several prompts, padded on the left."""
    longest = max(len(prompt.input_ids) for prompt in batch)
    rows = [[0] * (longest - len(prompt.input_ids)) + list(prompt.input_ids) for prompt in batch]
    mask = [[0] * (longest - len(prompt.input_ids)) + [1] * len(prompt.input_ids) for prompt in batch]
    return {
        "input_ids": torch.tensor(rows),
        "attention_mask": torch.tensor(mask),
        "pixel_values": torch.cat([prompt.pixel_values for prompt in batch]),
    }


def test_transformers_computes_the_same(native):
    """Logits, gradients, and greedy tokens of a left-padded batch with a cache; ids of the chat template."""
    engine, theirs, tokenizer = native
    batch = prompts(engine)
    inputs = padded(engine, batch)
    real = inputs["attention_mask"].bool()
    first, second = theirs(**inputs).logits, engine.model(**inputs)
    torch.testing.assert_close(second[real], first[real], atol=LOGITS, rtol=0)
    for logits in (first, second):
        logits[real].square().mean().backward()
    for name in ("q_proj", "k_proj", "o_proj"):
        ours = engine.model.language_model.layers[1].self_attn.get_submodule(name).weight.grad
        other = theirs.model.language_model.layers[1].self_attn.get_submodule(name).weight.grad
        torch.testing.assert_close(ours, other, atol=LOGITS, rtol=LOGITS)
    stops = [engine.tokenizer.token_id("<|im_end|>")]
    tokens = theirs.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=stops)[:, real.shape[1] :]
    wanted = [engine.tokenizer.decode([n for n in row if n not in stops]).strip() for row in tokens.tolist()]
    replies = engine.chat_batch(batch, GenerationConfig(max_new_tokens=6))
    assert [reply.text for reply in replies] == wanted
    assert [engine.chat_batch([prompt], GenerationConfig(max_new_tokens=6))[0].text for prompt in batch] == wanted
    told = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]
    text = tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=False)
    image = chat.IMAGE_START + chat.IMAGE_CONTEXT * 28 + chat.IMAGE_END
    ids = tokenizer(text.replace(chat.IMAGE_CONTEXT, image), add_special_tokens=False).input_ids
    assert ids == list(batch[0].input_ids)


def test_an_adapter_goes_to_peft_and_is_merged(native, folder, tmp_path):
    peft = pytest.importorskip("peft")
    _, theirs, _ = native
    engine = load(folder, dtype="float32")
    inputs = padded(engine, prompts(engine))
    real = inputs["attention_mask"].bool()
    model = add_lora(load_model(folder), LoraConfig(rank=3, parts=("llm", "vision")))
    with torch.no_grad():
        for number, parameter in enumerate(adapter_parameters(model)):
            parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(number))
        save_adapter(model, tmp_path / "adapter", base=str(folder), base_hash=tensors_hash(folder))
        expected = model(**inputs)[real]
        adapted = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()
        torch.testing.assert_close(adapted(**inputs).logits[real], expected, atol=LOGITS, rtol=0)
        torch.testing.assert_close(load_adapted(tmp_path / "adapter")(**inputs)[real], expected, atol=1e-6, rtol=0)
        merged = save_model(merge_lora(model), tmp_path / "merged")
        torch.testing.assert_close(load_model(merged)(**inputs)[real], expected, atol=LOGITS, rtol=0)


@pytest.mark.parametrize("nested", [False, True])
def test_the_doctor_names_a_processor_that_would_use_one_tile(later, tmp_path, nested):
    folder = tmp_path / "native"
    convert(later("3.5-1B"), folder, "native")
    assert not [finding for finding in diagnose(folder).findings if "crop_to_patches" in finding.what]
    place, settings = folder / "preprocessor_config.json", {"crop_to_patches": False}
    if nested:
        place, settings = folder / "processor_config.json", {"image_processor": settings}
    place.write_text(json.dumps(settings))
    [found] = [finding for finding in diagnose(folder).findings if "crop_to_patches" in finding.what]
    assert (found.severity, found.file) == ("warning", place.name)
    assert "max_patches 12" in found.remedy
