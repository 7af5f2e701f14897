"""Samples of every kind: shape of the conversation, determinism, and what keeps test samples apart."""

from __future__ import annotations

import hashlib
import random

import pytest

from mini_internvl import synth
from mini_internvl.synth import lexicon, tables

KINDS = [k for k in synth.KINDS if synth.missing(k) is None]
READING = ("grid", "text_easy", "text", "words")


def _fingerprint(kind: str, seed: int, index: int, split: str = "train") -> str:
    image, questions = synth.draw(kind, seed, index, split)
    return hashlib.sha256(image.tobytes() + repr((image.size, questions)).encode()).hexdigest()


def test_the_expected_kinds_are_found():
    wanted = {"text_easy", "text", "words", "shapes", "charts", "digits", "clothes", "boxes", "chinese"}
    assert wanted <= set(synth.KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_training_samples_are_conversations_about_one_image(kind):
    for index in range(15):
        sample = synth.make(kind, 3, index)
        first, *later = sample.messages
        assert first["role"] == "user"
        assert [part["type"] for part in first["content"]] == ["image", "text"]
        assert first["content"][0]["image"].mode == "RGB"
        assert all(isinstance(message["content"], str) and message["content"] for message in later)
        assert [m["role"] for m in sample.messages] == ["user", "assistant"] * (len(sample.messages) // 2)
        assert 2 <= len(sample.messages) <= 2 * synth.MAX_TURNS
        assert sample.source == f"synth-{kind}"


def test_questions_stand_apart_in_nine_samples_of_ten():
    assert [synth.make("shapes", 1, i).independent for i in range(20)] == ([False] + [True] * 9) * 2


@pytest.mark.parametrize("kind", KINDS)
def test_test_samples_ask_one_question(kind):
    for index in range(15):
        _, questions = synth.draw(kind, 3, index, "test")
        assert len(questions) == 1
        assert questions[0].main


@pytest.mark.parametrize("kind", KINDS)
def test_samples_depend_on_every_argument_and_on_nothing_else(kind):
    again = _fingerprint(kind, 5, 7)
    assert again == _fingerprint(kind, 5, 7)
    assert len({again, _fingerprint(kind, 6, 7), _fingerprint(kind, 5, 8), _fingerprint(kind, 5, 7, "test")}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_images_fit_six_tiles_of_112_pixels(kind):
    for index in range(30):
        image, _ = synth.draw(kind, 1, index)
        width, height = image.size
        assert 90 <= width <= 336
        assert 90 <= height <= 336
        assert round(width / 112) * round(height / 112) <= synth.MAX_TILES


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_not_constant(kind):
    answers = {qa.answer for index in range(40) for qa in synth.draw(kind, 2, index, "test")[1]}
    assert len(answers) > 5


def test_train_and_test_words_do_not_meet():
    train, test = set(lexicon.words("train")), set(lexicon.words("test"))
    assert not train & test
    assert len(train) > 1300
    assert 100 < len(test) < 350


def test_half_of_the_training_words_are_blends_and_no_test_word_is():
    rng = random.Random(0)
    drawn = {split: [lexicon.word(rng, split).lower() for _ in range(400)] for split in ("train", "test")}
    assert set(drawn["test"]) <= set(lexicon.words("test"))
    blends = [word for word in drawn["train"] if word not in lexicon.words("train")]
    assert 140 < len(blends) < 240
    assert all(3 <= len(word) <= 8 and not lexicon.is_test(word) for word in blends)


@pytest.mark.parametrize("kind", READING)
def test_no_text_of_a_test_image_is_a_text_of_a_training_image(kind):
    def texts(split: str, count: int) -> set[str]:
        read = [qa.answer for i in range(count) for qa in synth.draw(kind, 0, i, split)[1] if qa.task == "read"]
        return {t.lower() for answer in read for t in answer.split() if kind != "words" or " " not in answer}

    test = texts("test", 150)
    assert all(lexicon.is_test(t) for t in test)
    assert not test & texts("train", 300)


def test_train_and_test_tables_do_not_meet():
    keys = {split: {t.key for source in tables.sources(split) for t in source} for split in ("train", "test")}
    titles = {split: {(t.title, t.labels, t.values) for s in tables.sources(split) for t in s} for split in keys}
    assert not keys["train"] & keys["test"]
    assert not titles["train"] & titles["test"]
    assert len(keys["test"]) > 100


def test_unknown_kinds_and_splits_are_explained():
    with pytest.raises(ValueError, match="unknown kind of image 'sculpture'; known: boxes, charts"):
        synth.make("sculpture", 0, 0)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        synth.make("words", 0, 0, "dev")


def test_missing_clothes_name_the_package(monkeypatch, tmp_path):
    from mini_internvl.synth import glyphs

    monkeypatch.setenv("MINIVL_FASHION_MNIST", str(tmp_path))
    glyphs.clothes.cache_clear()
    assert "apt-get install dataset-fashion-mnist" in (synth.missing("clothes") or "")
    glyphs.clothes.cache_clear()


def test_missing_packages_name_the_extra(monkeypatch):
    from mini_internvl.synth import base, glyphs

    monkeypatch.setattr(base, "find_spec", lambda name: None)
    for cached in (glyphs._mnist, glyphs.digits, tables._all):
        cached.cache_clear()
    assert "mini-internvl[synth]" in (synth.missing("digits") or "")
    assert "mini-internvl[synth]" in (synth.missing("charts") or "")
    for cached in (glyphs._mnist, glyphs.digits, tables._all):
        cached.cache_clear()
