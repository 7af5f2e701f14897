"""How tokens weigh in the loss on answers, by hand and against means of means, whatever the split of a step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mini_internvl.recipes import RecipeError
from mini_internvl.records import Batch
from mini_internvl.train import losses
from mini_internvl.train.data import IGNORE, collate, read_jsonl
from mini_internvl.train.loop import held_out_loss
from mini_internvl.train.losses import AnswerLoss, token_weights

_ = IGNORE


def batch(labels, segments=None):
    ids = torch.tensor(labels)
    return Batch(
        sample_ids=tuple(map(str, range(len(labels)))),
        input_ids=ids.clamp(min=0),
        labels=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.zeros(0, 3, 28, 28),
        position_ids=torch.zeros_like(ids),
        segment_ids=None if segments is None else torch.tensor(segments),
    )


@pytest.fixture
def examples(rows, encode):
    return [encode(sample) for sample in read_jsonl(rows)]


@pytest.mark.parametrize(("reduction", "power"), [("token", 0.0), ("square", -0.5), ("sample", -1.0)])
def test_a_token_weighs_by_the_length_of_what_it_stands_in(reduction, power):
    conversations = batch([[_, _, 5, 6, _, 7, 8], [9, _, _, _, _, 4, _], [_] * 7])  # a first label is never asked for
    lengths = torch.tensor([4.0, 4, 4, 4, 1])
    torch.testing.assert_close(token_weights(conversations, reduction), lengths**power)
    labels = [[_, _, 5, 6, _, 7, _], [_, 3, 3, 3, _, 4, 4], [_, 8, _, 8, _, _, _]]
    segments = [[0, 0, 1, 1, 2, 2, -1], [0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 0, -1, -1, -1]]  # the last is a conversation
    lengths = torch.tensor([2.0, 2, 1, 3, 3, 3, 2, 2, 2, 2])
    torch.testing.assert_close(token_weights(batch(labels, segments), reduction), lengths**power)
    assert AnswerLoss(reduction).count([batch(labels, segments)] * 2) == pytest.approx(
        2 * float((lengths**power).sum())
    )


def test_with_sample_every_row_counts_the_same(start, examples):
    model, loss = start.model, AnswerLoss("sample")
    means = []
    with torch.no_grad():
        for example in examples:
            logits = model(example.input_ids[None], example.pixel_values)[0]
            means.append(F.cross_entropy(logits[:-1], example.labels[1:], ignore_index=IGNORE).item())
    expected = sum(means) / len(means)
    for size in (1, 2, 5):
        parts = [collate(examples[i : i + size], 0) for i in range(0, len(examples), size)]
        assert held_out_loss(model, parts, loss=loss) == pytest.approx(expected, rel=1e-5)
    assert held_out_loss(model, parts) != pytest.approx(expected, rel=1e-4)


def test_a_stage_names_its_reduction(start, stage):
    assert losses.make(stage(), start.model).reduction == "token"
    assert losses.make(stage(loss_reduction="square"), start.model).reduction == "square"
    both = losses.make(stage(loss_reduction="sample", patches_weight=0.1), start.model)
    assert both.answers.reduction == "sample"
    with pytest.raises(RecipeError, match='stage one: loss_reduction is "mean"; known: token, square, sample'):
        stage(loss_reduction="mean")
    for setting in ({"loss_reduction": "square"}, {"patches_weight": 0.1}):
        with pytest.raises(RecipeError, match="are of the loss on answers; loss: patches takes neither"):
            stage(loss="patches", train=("vision",), **setting)
