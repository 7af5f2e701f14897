"""The first batch is checked: every kind passes, and each fault is told for what it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mini_internvl.data.rows import read_samples
from mini_internvl.inputs.tokenizer_files import load_tokenizer
from mini_internvl.train.batches import collate, packed_batch
from mini_internvl.train.selfcheck import SelfCheckError, check_first


@pytest.fixture
def tokenizer(checkpoint):
    return load_tokenizer(checkpoint)


@pytest.fixture
def samples(rows):
    return list(read_samples(rows))


def test_padded_and_packed_batches_pass_and_the_learner_stays_as_it_was(learner, examples, samples, tokenizer):
    one = learner()
    one.train()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    for batch in (collate(examples, 0), packed_batch(examples)):
        check_first(batch, one, tokenizer, samples)
        check_first(batch, one, tokenizer)
    assert one.training
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


def test_a_shortened_sample_passes(learner, examples, samples, tokenizer, process):
    whole = next(sample for sample in samples if len(sample.messages) == 4)
    cut = process(replace(whole, messages=whole.messages[:2]))
    check_first(collate([cut, *examples[2:]], 0), learner(), tokenizer, samples)


def test_an_unsupervised_batch(learner, examples, tokenizer):
    batch = collate(examples, 0)
    batch = replace(batch, labels=torch.full_like(batch.labels, -100))
    with pytest.raises(SelfCheckError, match=r"no token of the first batch is supervised \(samples .*r0"):
        check_first(batch, learner(), tokenizer)


def test_a_template_of_another_family(learner, examples, tokenizer):
    one = learner()
    one.model.config = replace(one.model.config, template="phi3-chat")
    with pytest.raises(SelfCheckError, match=r"not after the template's '<\|assistant\|>.*config.json"):
        check_first(collate(examples, 0), one, tokenizer)


def test_an_answer_without_its_separator(learner, examples, tokenizer):
    batch = collate(examples[:1], 0)
    labels = batch.labels.clone()
    labels[0, (labels[0] != -100).nonzero()[-1]] = -100
    with pytest.raises(SelfCheckError, match=r"not with the template's '<\|im_end\|>', so the model would not learn"):
        check_first(replace(batch, labels=labels), learner(), tokenizer)


def test_supervised_text_that_is_not_the_answer(learner, examples, samples, tokenizer):
    wrong = [replace(s, messages=[*s.messages[:-1], {"role": "assistant", "content": "Eight."}]) for s in samples]
    with pytest.raises(SelfCheckError, match=r"r0: supervised is 'Seven.' where the answer is 'Eight.'"):
        check_first(collate(examples[:1], 0), learner(), tokenizer, wrong)
    with pytest.raises(SelfCheckError, match=r"supervised is 'It turns.*none of their answers"):
        check_first(collate(examples[1:2], 0), learner(), tokenizer, wrong)


def test_visual_tokens_without_their_tile(learner, examples, tokenizer):
    batch = collate(examples, 0)
    with pytest.raises(SelfCheckError, match=r"visual tokens .* tiles of 4 each .*config.json must agree"):
        check_first(replace(batch, tiles=batch.tiles[1:]), learner(), tokenizer)


def test_a_weight_that_is_nan(learner, examples, tokenizer):
    one = learner()
    with torch.no_grad():
        one.model.mlp1[3].bias[0] = float("nan")
    with pytest.raises(SelfCheckError, match=r"not finite .*the weight mlp1.3.bias is not finite"):
        check_first(collate(examples, 0), one, tokenizer)


def test_an_overflow_without_a_bad_weight(learner, examples, tokenizer):
    one = learner()
    with torch.no_grad():
        one.model.language_model.lm_head.weight.fill_(1e38)
    with pytest.raises(SelfCheckError, match="all weights are finite, so a value overflows"):
        check_first(collate(examples, 0), one, tokenizer)
