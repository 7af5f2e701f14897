"""Sentencepiece checkpoints: where the slow Llama and InternLM2 tokenizers put a space, BOS, flags of added tokens."""

from __future__ import annotations

import io
import json

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_internvl.inputs import chat
from mini_internvl.inputs.tokenizer import SentencePieceTokenizer
from mini_internvl.inputs.tokenizer_files import load_tokenizer

NAMED = ("<img>", "</img>", "<IMG_CONTEXT>")
ADDED = ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|im_start|>", "<|im_end|>", *NAMED)
TEXT = "the red car turns left and the blue car turns right while two lines of text stand on a sign"


@pytest.fixture(scope="module")
def model():
    """A tiny BPE model with byte fallback, as its file's bytes."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        hard_vocab_limit=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return buffer.getvalue()


@pytest.fixture(scope="module")
def make(model, tmp_path_factory):
    """A folder's tokenizer; ``flags`` are given to every added token."""

    def build(*, flags=None, **config):
        folder = tmp_path_factory.mktemp("sp")
        (folder / "tokenizer.model").write_bytes(model)
        size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
        rows = {str(size + i): {"content": token, "special": True, **(flags or {})} for i, token in enumerate(ADDED)}
        config = {"added_tokens_decoder": rows, "additional_special_tokens": list(NAMED), "bos_token": "<s>", **config}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return load_tokenizer(folder)

    return build


@pytest.fixture(scope="module")
def internlm2(make) -> SentencePieceTokenizer:
    return make(tokenizer_class="InternLM2Tokenizer")


@pytest.fixture(scope="module")
def llama(make) -> SentencePieceTokenizer:
    return make(tokenizer_class="LlamaTokenizer", legacy=False)


def pieces(tokenizer, ids):
    names = {token.id: token.content for token in tokenizer.added.values()}
    return [names.get(number) or tokenizer.model.id_to_piece(number) for number in ids]


def test_internlm2_puts_a_space_before_every_piece(internlm2):
    assert pieces(internlm2, internlm2.encode("car<|end|>car")) == ["<s>", "▁car", "<|end|>", "▁car"]
    assert pieces(internlm2, internlm2.encode("<|end|>car")) == ["<s>", "<|end|>", "▁car"]


def test_llama_puts_a_space_before_the_first_piece_only(llama):
    first, rest = pieces(llama, llama.encode("car<|end|> car")), pieces(llama, llama.continue_ids("car"))
    assert first == ["<s>", "▁car", "<|end|>", "▁car"]
    assert rest[0] != "▁car"
    assert "".join(rest) == "car"
    assert pieces(llama, llama.encode("a<|end|>car"))[-len(rest) :] == rest


def test_llama_drops_the_space_before_a_named_token_only(llama):
    assert pieces(llama, llama.encode("<img>")) == ["<s>", "<img>"]
    assert pieces(llama, llama.encode("<|end|>")) == ["<s>", "▁", "<|end|>"]


def test_llama_takes_a_typed_piece_mark_for_a_space(llama):
    assert llama.encode("a▁car") == llama.encode("a car")
    assert llama.continue_ids("▁car") == llama.continue_ids(" car")


def test_bos_can_be_switched_off(make):
    tokenizer = make(tokenizer_class="InternLM2Tokenizer", add_bos_token=False)
    assert pieces(tokenizer, tokenizer.encode("car")) == ["▁car"]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({}, ["▁car", "▁", "<|end|>", "▁", "\n", "▁car"]),
        ({"rstrip": True}, ["▁car", "▁", "<|end|>", "car"]),
        ({"lstrip": True}, ["▁car", "<|end|>", "▁", "\n", "▁car"]),
        ({"lstrip": True, "rstrip": True}, ["▁car", "<|end|>", "car"]),
    ],
)
def test_white_space_beside_an_added_token_goes_as_its_flags_say(make, flags, wanted):
    tokenizer = make(tokenizer_class="LlamaTokenizer", legacy=False, flags=flags)
    found = pieces(tokenizer, tokenizer.encode("car <|end|> \n car"))
    found = ["\n" if piece == "<0x0A>" else piece for piece in found]
    assert "".join(found[1:]) == "".join(wanted)
    assert found.count("<|end|>") == 1


def test_a_single_word_token_needs_room(make):
    tokenizer = make(tokenizer_class="LlamaTokenizer", legacy=False, flags={"single_word": True})
    assert "<|end|>" in pieces(tokenizer, tokenizer.encode("car <|end|> car"))
    assert "<|end|>" not in pieces(tokenizer, tokenizer.encode("car<|end|> car"))
    assert "<|end|>" not in pieces(tokenizer, tokenizer.encode("car <|end|>car"))


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_characters="▁<\0", exclude_categories=("Cs",)), max_size=30))
def test_any_text_comes_back(internlm2, llama, text):
    for tokenizer in (internlm2, llama):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_left_out_when_asked(llama):
    ids = llama.encode("the car<|end|>")
    assert llama.decode(ids) == "the car"
    assert llama.decode(ids, skip_special=False).endswith("the car<|end|>")


def test_a_conversation_has_the_ids_of_its_whole_text(internlm2, llama):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": ""}, {"type": "text", "text": " the <image> car"}]},
        {"role": "assistant", "content": "turns left"},
        {"role": "user", "content": "\nand the blue one "},
        {"role": "assistant", "content": "  right"},
    ]
    for tokenizer, name in ((internlm2, "internlm2-chat"), (llama, "phi3-chat")):
        template = chat.TEMPLATES[name]
        encoded = chat.encode(messages, tokenizer, template=template, tiles=[2], tokens_per_tile=3, system_message="S")
        texts = [" the <image> car", *(message["content"] for message in messages[1:])]
        turns = [text.strip() if template.strips_turns else text for text in texts]
        roles = (template.user_role, template.assistant_role)
        whole = template.system_role + "S" + template.sep
        whole += "".join(roles[i % 2] + turn + template.sep for i, turn in enumerate(turns))
        whole = whole.replace("<image>", "<img>" + "<IMG_CONTEXT>" * 6 + "</img>")
        assert encoded.input_ids == tokenizer.encode(whole)


def test_the_size_counts_added_tokens(llama):
    assert llama.size == llama.model.get_piece_size() + len(ADDED)
    assert llama.token_id("</img>") == llama.size - 2
    assert llama.kind == "sentencepiece"
    assert llama.token_id("<0x0A>") < llama.size
