"""Tokenizers from a folder's own files: round trips, half characters, and broken files named."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mini_internvl.inputs.tokenizer import TokenizerError
from mini_internvl.inputs.tokenizer_files import load_tokenizer, stop_ids


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint)


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of the tokenizer files that a test may spoil."""
    names = ("vocab.json", "merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
    for name in names:
        shutil.copy(checkpoint / name, tmp_path / name)
    return tmp_path


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)
@given(text=st.text(max_size=40))
def test_any_text_comes_back(tokenizer, text):
    import unicodedata

    wanted = unicodedata.normalize("NFC", text)
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == wanted


def test_ids_are_in_range_and_added_tokens_are_single(tokenizer):
    ids = tokenizer.encode("<|im_start|>user\n<img><IMG_CONTEXT></img>What?<|im_end|>")
    assert all(0 <= number < tokenizer.size for number in ids)
    for token in ("<|im_start|>", "<img>", "<IMG_CONTEXT>", "</img>", "<|im_end|>", "<ref>", "</box>"):
        assert tokenizer.encode(token) == [tokenizer.token_id(token)]
    assert ids.count(tokenizer.token_id("<IMG_CONTEXT>")) == 1
    assert tokenizer.kind == "bpe"


def test_special_tokens_are_left_out_when_asked(tokenizer):
    ids = tokenizer.encode("<ref>a</ref> b<|im_end|>")
    assert tokenizer.decode(ids) == "a b"
    assert tokenizer.decode(ids, skip_special=False) == "<ref>a</ref> b<|im_end|>"


def test_a_character_that_is_not_complete_shows_as_one_mark(tokenizer):
    ids = tokenizer.encode("a\U0001f697")  # four bytes, none of them merged
    assert len(ids) == 5
    texts = [tokenizer.decode(ids[:n]) for n in range(1, 6)]
    assert texts[0] == "a"
    assert all(text.startswith("a") and text.endswith("\ufffd") for text in texts[1:4])
    assert texts[4] == "a\U0001f697"
    assert tokenizer.decode([]) == ""


def test_words_of_the_corpus_are_single_tokens(tokenizer):
    assert len(tokenizer.encode(" image")) == 1
    assert len(tokenizer.encode("picture")) == 7  # text that is read out stays spelled


def test_an_unknown_token_is_named(tokenizer):
    with pytest.raises(TokenizerError, match='the tokenizer has no token "<nope>"'):
        tokenizer.token_id("<nope>")


def test_a_folder_without_files_says_what_is_needed(tmp_path):
    with pytest.raises(TokenizerError, match=r"holds no tokenizer: needed are vocab\.json and merges\.txt, or"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "added_tokens.json", "tokenizer_config.json", "merges.txt"])
def test_a_broken_file_is_named(folder, name):
    (folder / name).write_text('{"half": ' if name != "merges.txt" else "#version: 0.2\nno such merge\n")
    with pytest.raises(TokenizerError, match=name):
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"])
def test_json_of_another_shape_is_named(folder, name):
    (folder / name).write_text("[1, 2]")
    with pytest.raises(TokenizerError, match=rf"{name} holds no JSON object"):
        load_tokenizer(folder)


def test_files_of_different_models_are_told(folder):
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("added_tokens_decoder")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    added = json.loads((folder / "added_tokens.json").read_text())
    (folder / "added_tokens.json").write_text(json.dumps({token: number + 1000 for token, number in added.items()}))
    with pytest.raises(TokenizerError, match="are of different models"):
        load_tokenizer(folder)


def test_broken_sentencepiece_and_json_files_are_named(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(TokenizerError, match=r"tokenizer\.model is broken"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is broken"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_json_gives_the_same_ids(folder, tokenizer, tmp_path_factory):
    other = tmp_path_factory.mktemp("json")
    tokenizer.backend.save(str(other / "tokenizer.json"))
    same = load_tokenizer(other)
    assert same.kind == "json"
    assert same.size == tokenizer.size
    for text in ("What is this? <ref>a</ref>", "é 汉字 \U0001f697", "  two  spaces\n\n"):
        assert same.encode(text) == tokenizer.encode(text)
        assert same.decode(same.encode(text)) == tokenizer.decode(tokenizer.encode(text))


def test_merges_that_begin_with_a_number_sign_are_comments(folder):
    """As in the reader of the original, so that "##" is two tokens."""
    vocab = json.loads((folder / "vocab.json").read_text())
    last = max(vocab, key=vocab.__getitem__)
    vocab["##"] = vocab.pop(last)  # in place of the last merge
    (folder / "vocab.json").write_text(json.dumps(vocab))
    merges = (folder / "merges.txt").read_text().splitlines()
    assert "".join(merges[-1].split()) == last
    (folder / "merges.txt").write_text("\n".join([*merges[:-1], "# #"]) + "\n")
    assert len(load_tokenizer(folder).encode("##")) == 2


@pytest.mark.parametrize(
    ("eos", "wanted"),
    [
        (None, []),
        ([7, None], [7]),
        ("<|im_end|>", ["<|im_end|>"]),
        (7, [7]),
        ([], []),
        (["<|im_end|>", 3], ["<|im_end|>", 3]),
    ],
)
def test_stop_ids_are_numbers_or_names_and_null_is_absence(checkpoint, tmp_path, eos, wanted):
    tokenizer = load_tokenizer(checkpoint)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    ids = [tokenizer.token_id(stop) if isinstance(stop, str) else stop for stop in wanted]
    assert stop_ids(tmp_path, tokenizer) == ids


@pytest.mark.parametrize(
    ("eos", "message"),
    [(True, "eos_token_id holds True"), ([{}], r"eos_token_id holds \{\}"), ("<nope>", 'has no token "<nope>"')],
)
def test_a_stop_that_is_no_token_is_refused(checkpoint, tmp_path, eos, message):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(TokenizerError, match=message):
        stop_ids(tmp_path, load_tokenizer(checkpoint))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json"])
def test_a_pipe_in_the_place_of_a_tokenizer_file_is_refused(checkpoint, tmp_path, name):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(TokenizerError, match=rf"{name} is a pipe or device"):
        load_tokenizer(folder)
