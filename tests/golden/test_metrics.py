"""Caption and control-signal scores against the recorded ones; counts and cases are read from the files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mini_internvl.metrics.captions import caption_scores
from mini_internvl.metrics.ptb import tokenize
from mini_internvl.metrics.signals import recorded, signal_scores

CLOSE = 1e-9  # captions, relative
SINGLE = 1e-5  # RMSE from float32, relative


def _read(golden, name):
    return json.loads((golden / "metrics" / f"{name}.json").read_text(encoding="utf-8"))


def _close(value, wanted, rel=CLOSE):
    wanted = float(wanted) if isinstance(wanted, str) else wanted  # "NaN", "Infinity"
    return value == pytest.approx(wanted, rel=rel, abs=1e-12, nan_ok=True)


def test_ptb_tokens(golden):
    cases = _read(golden, "ptb_tokenizer")["cases"]
    wrong = [c["input"] for c in cases if tokenize([c["input"]]) != [c["expected"]["tokens"]]]
    assert cases
    assert not wrong, f"{len(wrong)} of {len(cases)}: {wrong[:5]}"
    together = tokenize([case["input"] for case in cases])
    assert together == [case["expected"]["tokens"] for case in cases]


def test_line_breaks_inside_captions(golden):
    for scenario in _read(golden, "ptb_tokenizer")["line_break_scenarios"]:
        wanted = [tokens or "" for tokens in scenario["expected_tokens_by_position"]]  # null: no line, no tokens
        assert tokenize(scenario["lines"]) == wanted, scenario["lines"]


def test_caption_scores(golden):
    data = _read(golden, "caption_metrics")
    cases = data["cases"]
    scores = caption_scores([c["input"]["hyp"] for c in cases], [c["input"]["refs"] for c in cases])
    for name, wanted in data["aggregate"].items():
        assert _close(scores[name], wanted), name
        for case, value in zip(cases, scores.per_item[name], strict=True):
            assert _close(value, case["expected"][name]), (name, case["id"])
    for block in (value for key, value in data.items() if key.startswith("set_of_")):
        scores = caption_scores(block["hyps"], block["refs"])
        assert all(_close(scores[name], wanted) for name, wanted in block["expected"].items())


@pytest.mark.parametrize("kind", ["description", "justification", "full"])
def test_bddx_text(golden, kind):
    data = _read(golden, "bddx_text")
    cases = data["cases"]
    scores = caption_scores([c["input"][f"pred_{kind}"] for c in cases], [[c["input"][f"gold_{kind}"]] for c in cases])
    for name in ("CIDEr", "Bleu_4", "ROUGE_L"):
        assert _close(scores[name], data["aggregate"][kind][name]), name
        for case, value in zip(cases, scores.per_item[name], strict=True):
            assert _close(value, case["expected"][kind][name]), (name, case["id"])


@pytest.mark.parametrize("signal", ["speed", "turning_angle"])
def test_bddx_signals(golden, signal):
    data = _read(golden, "bddx_signals")
    inputs = [case["input"] for case in data["cases"]]
    kept = recorded([(row["gt_speed"], row["gt_turning_angle"]) for row in inputs])
    rows = [row for row, keep in zip(inputs, kept, strict=True) if keep]
    for case, keep in zip(data["cases"], kept, strict=True):
        wanted = case["expected"] and case["expected"][signal]
        assert bool(wanted) == keep, case["id"]
        if keep and "error" not in wanted:
            alone = signal_scores([case["input"][f"pred_{signal}"]], [case["input"][f"gt_{signal}"]])
            for name, value in wanted.items():
                assert _close(alone[name], value, SINGLE if name == "rmse" else CLOSE), (case["id"], name)
    scores = signal_scores([row[f"pred_{signal}"] for row in rows], [row[f"gt_{signal}"] for row in rows])
    for name, wanted in data["aggregate"][signal].items():
        assert _close(scores[name], wanted, SINGLE if name == "rmse" else CLOSE), name


def test_bddx_signals_of_several_steps(golden):
    data = _read(golden, "bddx_signals")["multi_step"]
    reference = np.array(data["gt_[sample][signal][step]"])
    guess = np.array(data["pred_[sample][step][signal]"]).swapaxes(1, 2)  # to (sample, signal, step)
    kept = recorded(reference)
    for place, signal in enumerate(data["signals"]):
        scores = signal_scores(guess[kept, place].ravel(), reference[kept, place].ravel())
        for name, wanted in data["expected"][signal].items():
            assert _close(scores[name], wanted, SINGLE if name == "rmse" else CLOSE), (signal, name)
