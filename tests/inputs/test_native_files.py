"""Files for the native folder: transformers' tokenizer, chat template and processor give our ids and pixels."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, GenerationConfig

from mini_internvl.inputs import chat
from mini_internvl.inputs.jinja import chat_template
from mini_internvl.inputs.messages import image_parts
from mini_internvl.inputs.native_files import write_native_files, write_official_files
from mini_internvl.inputs.tiles import TileConfig, pixel_values
from mini_internvl.inputs.tokenizer import TokenizerError
from mini_internvl.inputs.tokenizer_files import load_tokenizer
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.layouts import native

ROOT = Path(os.environ.get("MINIVL_GOLDEN") or Path(__file__).parents[1] / "golden/data")
CASES = json.loads((ROOT / "chat/conversations.json").read_text(encoding="utf-8"))
KINDS = sorted({case["llm"] for case in CASES})
STOPS = {"qwen2": [151644, 151645], "internlm2": [92542, 92543], "phi3": [2, 32000, 32007]}
ODD = [
    *(
        "",
        "a",
        " a",
        "  a",
        "a ",
        "a  b   c",
        "\n",
        "\n\n x",
        "\t\tx",
        "   ",
        "\u2581a\u2581",
        "\0a",
        "a\u200bb\xa0c\u3000d",
    ),
    *("<s>", "<s> x", "</s>  x", "x</s>x", "<unk>", "x<img> y", "<img>", " <img> ", "<|system|> x", "<|end|>\n x"),
    *("<|end|>   x  <|user|>", "<|im_end|>\n<|im_start|>", " <|im_start|> x", "[UNUSED_TOKEN_3]x", "<0x41>", "</", "<"),
    *("e\u0301\u0301\u00e9", "\u65e5\u672c\u8a9e\u3002", "\U0001f600\U0001f469\u200d\U0001f467", "\ue000\U0010ffff"),
    *("def f(x):\n    return x\n\n\n        y", "a" * 50, " " * 40 + "x", "x" + " " * 37, "=" * 77, "...." * 9),
    *(
        "<box>[[1, 2, 3, 4]]</box>",
        "1234567890",
        "\r\n\r\n",
        "<quad>",
        "<video>",
        "<image>",
        "'s 'LL don't",
        "\uff41\uff42",
    ),
]
LETTERS = [
    " ",
    "  ",
    "\n",
    "a",
    "b",
    "the",
    "ing",
    "1",
    "\u00e9",
    "\u4e2d",
    "\U0001f600",
    "<img>",
    "<|end|>",
    "<|im_end|>",
]
LETTERS += ["<s>", "</s>", "\u2581", "aaa", "...", "==", "\t", "<|user|>", "T", "</", "\u0300", "[UNUSED_TOKEN_7]"]
each_kind = pytest.mark.parametrize("kind", KINDS)


@functools.cache
def _config(kind):
    return VLMConfig.from_official(json.loads((ROOT / f"models/{kind}/config.json").read_text()))


@functools.cache
def _ours(kind):
    return load_tokenizer(ROOT / "tokenizers" / kind)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind -> its native folder."""
    root = tmp_path_factory.mktemp("native")
    for kind in KINDS:
        config, folder = _config(kind), root / kind
        files = write_native_files(ROOT / "tokenizers" / kind, folder, config)
        assert sorted(files) == sorted(folder.iterdir())
        token = _ours(kind).token_id(chat.IMAGE_CONTEXT)
        raw = native.from_official_config(config.official, token, "float32")
        (folder / "config.json").write_text(json.dumps(raw))
    return root


@pytest.fixture(scope="module")
def theirs(folders):
    """Kind -> transformers' tokenizer."""
    return functools.cache(lambda kind: AutoTokenizer.from_pretrained(folders / kind))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['llm']}-{case['case']}")
def test_recorded_ids(case, theirs):
    assert theirs(case["llm"])(case["generation_prompt"])["input_ids"] == case["generation_input_ids"]


@each_kind
def test_ids_of_odd_texts(kind, theirs):
    rng = random.Random(kind)
    made = ["x" + "".join(rng.choices(LETTERS, k=rng.randint(1, 25))) for _ in range(1500)]
    made += ["".join(rng.choices(LETTERS, k=rng.randint(3, 25))) + "x" for _ in range(500)]
    tokenizer = theirs(kind)
    assert len(tokenizer) == _ours(kind).size  # no row was added
    wrong = [text for text in [*ODD, *made] if tokenizer(text)["input_ids"] != _ours(kind).encode(text)]
    assert not wrong


@each_kind
def test_the_known_differences(kind, theirs):
    """Texts whose ids no tokenizer.json can give; named in the module's docstring."""
    known = {"internlm2": "[UNUSED_TOKEN_141]", "phi3": "<|end|>"}
    if kind in known:
        assert theirs(kind)(known[kind])["input_ids"] != _ours(kind).encode(known[kind])


@each_kind
def test_decoding(kind, theirs):
    for text in ("Hello,  world.\n\nA b\u00e9\u4e2d\U0001f600", "x", "def f():\n    pass"):
        assert theirs(kind).decode(_ours(kind).encode(text), skip_special_tokens=True) == text
    assert theirs(kind).decode([_ours(kind).token_id("<box>")]) == "<box>"


def _image():
    with Image.open(next((ROOT / "tiles").glob("image1*.png"))) as image:
        return image.convert("RGB")


def _conversations():
    image = {"type": "image", "image": _image()}
    question = {"type": "text", "text": " What is  this?\n"}
    yield [{"role": "user", "content": "hi\n"}]
    yield [{"role": "user", "content": [image, question]}]
    yield [{"role": "user", "content": [question, image]}]
    yield [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image, {**image, "name": "FRONT"}, question]},
        {"role": "assistant", "content": " yes\n"},
        {"role": "user", "content": [image, {"type": "text", "text": "<ref>x</ref>"}]},
    ]
    yield [{"role": "user", "content": [image, image, {"type": "text", "text": "<image> or\n<image>?"}]}]


def _encoded(kind, messages, tiles):
    config = _config(kind)
    return chat.encode(
        messages,
        _ours(kind),
        template=chat.find_template(config.template),
        tiles=[tiles] * len(image_parts(messages)),
        tokens_per_tile=config.tokens_per_tile,
    ).input_ids


@each_kind
def test_the_chat_template_renders_our_prompt(kind, theirs):
    places = 3 * _config(kind).tokens_per_tile
    for messages in _conversations():
        text = theirs(kind).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        expanded = chat.IMAGE_START + chat.IMAGE_CONTEXT * places + chat.IMAGE_END  # as the processor does
        ids = theirs(kind)(text.replace(chat.IMAGE_CONTEXT, expanded), add_special_tokens=False)["input_ids"]
        assert ids == _encoded(kind, messages, 3)
    alone = theirs(kind).apply_chat_template(next(_conversations()), add_generation_prompt=True, return_dict=False)
    assert alone == _encoded(kind, next(_conversations()), 1)


def test_a_system_message_of_the_checkpoint(theirs):
    template = chat_template(chat.find_template("Hermes-2"), system_message='Say "hi"\n{{ x }}')
    text = theirs(KINDS[0]).apply_chat_template(
        [{"role": "user", "content": "a"}], chat_template=template, tokenize=False
    )
    assert text == '<|im_start|>system\nSay "hi"\n{{ x }}<|im_end|><|im_start|>user\na<|im_end|>'


@each_kind
def test_pixels(kind, folders):
    """Equal where transformers uses Pillow; with torchvision one step of 255 apart in a few pixels of this image."""
    processor = AutoImageProcessor.from_pretrained(folders / kind)
    config = TileConfig(image_size=_config(kind).image_size, max_tiles=_config(kind).max_tiles)
    image = _image()
    expected = pixel_values(image, config)
    got = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"])
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < 1.01 / (255 * 0.224)
    assert ((got - expected).abs() > 1e-5).float().mean() < 0.01


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="InternVLProcessor needs torchvision")
@each_kind
def test_the_whole_processor(kind, folders):
    processor = AutoProcessor.from_pretrained(folders / kind)
    for messages in _conversations():
        given = processor.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        tiles = len(given["pixel_values"]) // len(image_parts(messages)) if "pixel_values" in given else 1
        assert given["input_ids"][0].tolist() == _encoded(kind, messages, tiles)


@each_kind
def test_generation_stops(kind, folders):
    config = GenerationConfig.from_pretrained(folders / kind)
    assert config.eos_token_id == STOPS[kind]


@each_kind
def test_the_way_back_loses_nothing(kind, folders, tmp_path):
    official = ROOT / "tokenizers" / kind
    files = write_official_files(folders / kind, tmp_path)
    assert {file.name for file in files} == {file.name for file in official.iterdir()}
    for file in files:
        same = file.read_bytes() == (official / file.name).read_bytes()
        assert same or json.loads(file.read_text()) == json.loads((official / file.name).read_text())


@each_kind
def test_our_own_tokenizer_reads_the_native_folder(kind, folders):
    tokenizer = load_tokenizer(folders / kind)
    for text in ODD:
        assert tokenizer.encode(text) == _ours(kind).encode(text)
        assert tokenizer.continue_ids(text) == _ours(kind).continue_ids(text)


@each_kind
def test_a_folder_with_tokenizer_json_alone(kind, folders, tmp_path):
    (tmp_path / "native").mkdir()
    (tmp_path / "native/tokenizer.json").write_bytes((folders / kind / "tokenizer.json").read_bytes())
    write_official_files(tmp_path / "native", tmp_path / "official")
    added = json.loads((tmp_path / "official/added_tokens.json").read_text())
    assert added["<IMG_CONTEXT>"] == _ours(kind).token_id("<IMG_CONTEXT>")
    assert load_tokenizer(tmp_path / "official").encode("Hello <img>") == _ours(kind).encode("Hello <img>")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        write_official_files(tmp_path, tmp_path / "other")
