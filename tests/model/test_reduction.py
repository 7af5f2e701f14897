"""Fewer visual tokens: which are kept, what they stand for, and prompts cut to match, in batches as alone."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mini_internvl import GenerationConfig, load
from mini_internvl.engine.engine import user
from mini_internvl.evaluate.outputs import check_model
from mini_internvl.model.reduction import Reduction, read_reduction, reduce_tokens


def clusters(sizes, hidden=8, spread=1e-3):
    """Tokens in clusters that lie far apart, and the cluster of each."""
    draw = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(len(sizes), hidden, generator=draw)
    which = torch.cat([torch.full((size,), number) for number, size in enumerate(sizes)])
    which = which[torch.randperm(len(which), generator=draw)]
    return centres[which] + spread * torch.randn(len(which), hidden, generator=draw), which


def test_each_cluster_keeps_one_token_and_becomes_its_mean():
    tokens, which = clusters([5, 1, 30, 4])
    kept, places = reduce_tokens(tokens, [(40, 4)], Reduction(number=1))
    assert sorted(which[places].tolist()) == [0, 1, 2, 3]
    for row, own in zip(kept, which[places].tolist(), strict=True):
        torch.testing.assert_close(row, tokens[which == own].mean(0))


def test_the_next_token_is_the_farthest_from_all_that_are_kept():
    """Against the rule in plain words, in float64."""
    tokens = torch.randn(60, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = [int((tokens - tokens.mean(0)).norm(dim=1).argmax())]
    while len(order) < 20:
        order.append(max(range(60), key=lambda one: min(float((tokens[one] - tokens[k]).norm()) for k in order)))
    _, places = reduce_tokens(tokens, [(60, 3)], Reduction(share=1 / 3))
    assert [place for place, stays in enumerate(places) if stays] == sorted(order)


def test_images_are_reduced_apart_and_keep_their_order():
    tokens, _ = clusters([9, 7, 8])
    both, places = reduce_tokens(torch.cat([tokens, tokens[:6]]), [(24, 2), (6, 1)], Reduction(share=0.5))
    alone = [reduce_tokens(part, [(len(part), 1)], Reduction(share=0.5)) for part in (tokens, tokens[:6])]
    assert torch.equal(both, torch.cat([kept for kept, _ in alone]))
    assert places == [*alone[0][1], *alone[1][1]]
    assert len(both) == 12 + 3


def test_equal_tokens_and_large_numbers_do_no_harm():
    same = torch.ones(8, 4)
    kept, places = reduce_tokens(same, [(8, 1)], Reduction(number=3))
    assert (torch.equal(kept, same[:3]), sum(places)) == (True, 3)
    whole, places = reduce_tokens(same, [(8, 1)], Reduction(number=300))
    assert torch.equal(whole, same)
    assert all(places)
    tokens, _ = clusters([6, 6])
    random = [reduce_tokens(tokens, [(12, 1)], Reduction(share=0.5, rule="random", seed=seed))[1] for seed in (0, 0, 1)]
    assert random[0] == random[1] != random[2]


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        (0.5, Reduction(share=0.5)),
        ("0.25", Reduction(share=0.25)),
        ("50%", Reduction(share=0.5)),
        (1.0, Reduction(share=1.0)),
        (64, Reduction(number=64)),
        ("64", Reduction(number=64)),
        (None, None),
    ],
)
def test_settings_are_shares_or_tokens_of_a_tile(setting, meant):
    assert read_reduction(setting) == meant


@pytest.mark.parametrize("setting", [0, "0", -1, 1.5, "150%", "few", "", "nan", True])
def test_other_settings_are_explained(setting):
    with pytest.raises(ValueError, match=r"it must be a share such as 0.5 or 50%, or the tokens of a tile, such as 64"):
        read_reduction(setting)


@pytest.fixture(scope="module")
def engine(checkpoint):
    return load(checkpoint)


def picture(size):
    return Image.effect_noise(size, 90).convert("RGB")


def test_the_prompt_has_a_place_for_each_token_that_is_kept(engine):
    questions = [
        user("What?", picture((160, 60)), picture((50, 50))),
        user("Who?"),
        user("Where?", picture((60, 90))),
    ]
    engine.visual_tokens = None
    whole = engine.prepare_batch(questions)
    engine.visual_tokens = read_reduction(0.5)
    cut = engine.route(whole)
    for before, after in zip(whole, cut, strict=True):
        saved = sum(before.tiles) * engine.model.config.tokens_per_tile // 2
        assert (after.saved, len(before.input_ids) - len(after.input_ids)) == (saved, saved)
        assert after.input_ids.count(engine.model.image_token_id) == (0 if after.visual is None else len(after.visual))
    engine.visual_tokens = Reduction(share=1.0)
    torch.testing.assert_close(engine.route(whole[:1])[0].visual[:, 0], engine.encode(whole[:1])[0].flatten(0, 1))
    engine.visual_tokens = read_reduction(0.5)
    few = GenerationConfig(max_new_tokens=4)
    alone = [engine.chat(question, few) for question in questions]
    together = engine.chat_batch(questions, few)
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert [reply.saved for reply in together] == [prompt.saved for prompt in cut]
    assert engine.route(cut) == cut  # not reduced twice
    engine.visual_tokens = None


def test_an_image_is_reduced_once_while_weights_and_setting_stay(checkpoint):
    engine = load(checkpoint, visual_tokens="50%")
    shown = picture((90, 60))
    prompts = engine.prepare_batch([user("What?", shown), user("Where?", shown)])
    first, second = engine.route(prompts)
    assert torch.equal(first.visual, second.visual)
    assert engine.route(prompts[1:])[0].visual.data_ptr() == first.visual.data_ptr()
    engine.visual_tokens = Reduction(number=2)
    assert len(engine.route(prompts)[0].visual) == 2 * sum(prompts[0].tiles)
    engine.visual_tokens = Reduction(share=0.5)
    with torch.no_grad():
        engine.model.mlp1[3].bias.add_(1.0)
    assert not torch.equal(engine.route(prompts)[0].visual, first.visual)


def test_answers_with_fewer_tokens_are_kept_apart(engine, tmp_path):
    whole = engine.arithmetic
    engine.visual_tokens = Reduction(share=0.5)
    assert engine.arithmetic == f"{whole} visual-tokens 0.5"
    engine.visual_tokens = None
    folder = tmp_path / "synth"
    folder.mkdir()
    facts = {"name": "nano", "path": "nano", "sha256": "1"}
    (folder / "score.json").write_text(
        '{"model": {"name": "nano", "path": "nano", "sha256": "1", "visual_tokens": "0.5"}}'
    )
    check_model(tmp_path, {**facts, "visual_tokens": "0.5"})
    with pytest.raises(ValueError, match=r"holds answers given with --visual-tokens 0.5 .*; give another --output"):
        check_model(tmp_path, facts)
