"""How tokens weigh in the loss on answers, by hand and against means of means, whatever the split of a step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mini_internvl.inputs.tiles import normalise
from mini_internvl.recipes import RecipeError
from mini_internvl.records import Batch, Sample
from mini_internvl.train.batches import collate, packed_batch
from mini_internvl.train.initial import sample_processor
from mini_internvl.train.learner import Learner
from mini_internvl.train.loop import accumulate, held_out_loss
from mini_internvl.train.losses.answers import IGNORE, Loss, Settings, token_weights

_ = IGNORE


def batch(labels, segments=None):
    ids = torch.tensor(labels)
    return Batch(
        sample_ids=tuple(map(str, range(len(labels)))),
        input_ids=ids.clamp(min=0),
        labels=ids,
        attention_mask=torch.ones_like(ids),
        tiles=torch.zeros(0, 28, 28, 3, dtype=torch.uint8),
        position_ids=torch.zeros_like(ids),
        segment_ids=None if segments is None else torch.tensor(segments),
    )


@pytest.mark.parametrize(("reduction", "power"), [("token", 0.0), ("square", -0.5), ("sample", -1.0)])
def test_a_token_weighs_by_the_length_of_what_it_stands_in(reduction, power):
    conversations = batch([[_, _, 5, 6, _, 7, 8], [9, _, _, _, _, 4, _], [_] * 7])  # a first label is never asked for
    lengths = torch.tensor([4.0, 4, 4, 4, 1])
    torch.testing.assert_close(token_weights(conversations, reduction), lengths**power)
    labels = [[_, _, 5, 6, _, 7, _], [_, 3, 3, 3, _, 4, 4], [_, 8, _, 8, _, _, _]]
    segments = [[0, 0, 1, 1, 2, 2, -1], [0, 1, 1, 1, 2, 2, 2], [0, 0, 0, 0, -1, -1, -1]]  # the last is a conversation
    lengths = torch.tensor([2.0, 2, 1, 3, 3, 3, 2, 2, 2, 2])
    torch.testing.assert_close(token_weights(batch(labels, segments), reduction), lengths**power)
    loss = Loss(Settings(reduction=reduction), None)
    assert loss.count(batch(labels, segments)) == pytest.approx(float((lengths**power).sum()))


def test_with_sample_every_row_counts_the_same(learner, examples):
    by_sample, by_token = (learner({"answers": {"reduction": name}}).eval() for name in ("sample", "token"))
    model = by_sample.model
    means = []
    with torch.no_grad():
        for example in examples:
            logits = model(example.input_ids[None], normalise(example.tiles))[0]
            means.append(F.cross_entropy(logits[:-1], example.labels[1:], ignore_index=IGNORE).item())
    expected = sum(means) / len(means)
    for size in (1, 2, 5):
        parts = [collate(examples[i : i + size], 0) for i in range(0, len(examples), size)]
        assert held_out_loss(by_sample, parts) == pytest.approx(expected, rel=1e-5)
    assert held_out_loss(by_token, parts) != pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_logits_in_chunks_give_the_same_loss_and_gradients(learner, examples, monkeypatch, frozen, precision):
    answers, batch = learner({"answers": {"reduction": "square"}}), packed_batch(examples)
    head, most = answers.model.language_model.lm_head, []
    head.requires_grad_(not frozen)
    head.register_forward_hook(lambda module, given, logits: most.append(len(logits)))
    found = []
    for rows in (3, 10**6):
        monkeypatch.setattr("mini_internvl.train.losses.answers.CHUNK_BYTES", rows * 4 * head.out_features)
        answers.zero_grad()
        loss = accumulate(answers, [batch], 1.0, torch.device("cpu"), precision)[0]
        found.append((loss, {n: p.grad.clone() for n, p in answers.named_parameters() if p.grad is not None}))
    *chunks, whole = most
    assert max(chunks) == 3
    assert sum(chunks) == 2 * whole  # forward, and once more in the backward pass
    (loss, gradients), (expected, wanted) = found
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradients.keys() == wanted.keys()
    tolerance = 1e-6 if precision == "fp32" else 2e-2
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).norm() <= tolerance * wanted[name].norm() + 1e-9, name
    assert ("model.language_model.lm_head.weight" in gradients) != frozen


def test_a_stage_names_its_losses_and_their_settings(stage, learner):
    assert stage().loss == {"answers": {"weight": 1.0, "reduction": "token"}} == stage(loss={"answers": {}}).loss
    both = learner({"answers": {"reduction": "sample"}, "patches": {"weight": 0.1}})
    assert list(both.loss) == ["answers", "patches"]
    assert (both.loss["answers"].reduction, both.weights["patches"]) == ("sample", 0.1)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("answer", "stage one: no train.losses plug-in is called .answer.; did you mean answers"),
        ({"answers": {"reduction": "mean"}}, 'stage one: answers.reduction is "mean"; known: token, square, sample'),
        ({"answers": {"reduction": 3}}, "stage one: loss.answers.reduction must be str, not 3"),
        ({"answers": {"weigth": 1}}, 'stage one: unknown field "loss.answers.weigth"; did you mean "weight"'),
        ({"answers": {}, "patches": {"weight": 0}}, "stage one: weight is 0.0; it must be above 0"),
        ({"patches": {"reduction": "square"}}, 'stage one: unknown field "loss.patches.reduction"'),
        ({}, "stage one: loss is empty"),
    ],
)
def test_a_wrong_loss_is_named_before_any_work(stage, loss, message):
    with pytest.raises(RecipeError, match=message):
        stage(loss=loss)


def test_a_part_that_no_loss_reaches_is_not_trained_in_vain(stage):
    with pytest.raises(RecipeError, match=r"loss patches does not reach projector, llm; write train: \[vision\]"):
        stage(loss="patches")
    assert stage(loss="patches", train=("vision",)).train == ("vision",)


def test_a_batch_of_text_alone_gives_every_trained_weight_a_gradient(learner, examples):
    """Else the processes of a distributed run would wait for each other for ever."""
    text = next(example for example in examples if not len(example.tiles))
    trained = learner().train()
    loss = trained(collate([text], 0))["loss"]
    loss.backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())
    assert not any(parameter.grad.any() for parameter in trained.model.vision_model.parameters())
    assert loss.item() == pytest.approx(trained.eval()(collate([text], 0))["loss"].item())


def test_a_loss_of_ones_own_with_a_frozen_teacher(tmp_path, start, stage):
    """A file is all that a loss needs; what is frozen is neither a parameter nor part of a state."""
    path = tmp_path / "pull.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "import torch\n"
        "from mini_internvl.recipes import LossSettings\n"
        "REACHES = ('projector', 'vision')\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Settings(LossSettings):\n"
        "    width: int = 1\n"
        "def targets(sample, images, config, settings, auxiliary):\n"
        "    return {'goal': torch.full((sum(len(image.tiles) for image in images), settings.width), 2.0)}\n"
        "class Loss(torch.nn.Module):\n"
        "    def __init__(self, settings, config):\n"
        "        super().__init__()\n"
        "        self.own = torch.nn.Linear(1, 1)\n"
        "        self.frozen = {'teacher': torch.nn.Linear(3, 3)}\n"
        "    def forward(self, model, batch, images):\n"
        "        seen = images.visual_tokens.mean((1, 2)) - batch.extras['goal'][:, 0]\n"
        "        return seen.square().sum() + self.own.bias.sum()\n"
        "    def count(self, batch):\n"
        "        return float(len(batch.tiles))\n"
    )
    row = stage(loss={str(path): {"width": 2}}, train=("vision", "projector"))
    learner = Learner(start.model, row)
    process = sample_processor(start, row)
    image = {"type": "image", "image": Image.new("RGB", (56, 56))}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "Q"}]},
        {"role": "assistant", "content": "A"},
    ]
    batch = collate([process(Sample(id="1", messages=messages))], 0)
    assert batch.extras["goal"].tolist() == [[2.0, 2.0]]
    learner.train()(batch)["loss"].backward()
    assert learner.model.mlp1[1].weight.grad.any()
    assert not [name for name in learner.state_dict() if "teacher" in name]
    assert not any(
        parameter.requires_grad for parameter in next(iter(learner.loss.values())).frozen["teacher"].parameters()
    )
