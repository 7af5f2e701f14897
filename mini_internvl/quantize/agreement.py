"""Whether a quantised model still answers as before: features, tokens and the answers to drawn questions, side by side.

Tokens are compared under teacher forcing: both models read the plain one's answer, and at each place of it their
likeliest next tokens are compared. One early difference therefore does not make all that follows differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mini_internvl.engine import Engine
from mini_internvl.engine.backends import Backend, Piece
from mini_internvl.engine.beside import PLAIN, QUANTISED
from mini_internvl.evaluate.questions import Questions
from mini_internvl.evaluate.run import PredictCallbacks, predict
from mini_internvl.inputs.prepare import Prompt

FEATURES = 0.98  # least mean cosine of visual tokens
TOKENS = {4: 0.85, 8: 0.95, 16: 0.99}  # least share of equal tokens, by the bits of the decoder's weights
LONGEST = 24  # tokens of an answer that are compared
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What two models share on the same pictures and questions."""

    pictures: int
    cosine: float
    """Of the visual tokens, mean over all of them."""
    worst_cosine: float
    """The same for the tile that fares worst."""
    tokens: float
    """Share of places where the likeliest token is the same; of ``places``."""
    places: int
    seconds: dict[str, float]
    """That "plain" and "quantised" took for the same pictures and tokens, all pictures but the first."""

    def problem(self, bits: int) -> str:
        """What lies below its bound; empty where nothing does."""
        found = []
        if not self.cosine >= FEATURES:
            found.append(f"the features' cosine is {self.cosine:.4f}, less than {FEATURES}")
        if not self.tokens >= TOKENS[bits]:
            found.append(f"{self.tokens:.1%} of the tokens agree, less than {TOKENS[bits]:.0%}")
        return " and ".join(found)


def compare(
    plain: Backend, quantised: Backend, prompts: Sequence[Prompt], stop_ids: frozenset[int], progress: Progress
) -> Agreement:
    """Compare two models of the same configuration on prompts with pictures."""
    cosines: list[Tensor] = []
    equal = places = 0
    seconds = dict.fromkeys((PLAIN, QUANTISED), 0.0)
    for done, prompt in enumerate(prompts, 1):
        began = time.monotonic()
        ours = plain.encode(prompt.pixel_values).float().cpu()
        answer = likeliest(plain, prompt, ours, stop_ids)
        between = time.monotonic()
        theirs = quantised.encode(prompt.pixel_values).float().cpu()
        other = likeliest(quantised, prompt, theirs, stop_ids, answer)
        if done > 1 or len(prompts) == 1:  # the first one warms up
            seconds[PLAIN] += between - began
            seconds[QUANTISED] += time.monotonic() - between
        cosines += F.cosine_similarity(ours, theirs, dim=-1).mean(-1)
        equal += sum(one == two for one, two in zip(answer, other, strict=True))
        places += len(answer)
        progress("comparing", done, len(prompts))
    return Agreement(
        pictures=len(prompts),
        cosine=float(torch.stack(cosines).mean()),
        worst_cosine=float(torch.stack(cosines).min()),
        tokens=equal / places,
        places=places,
        seconds=seconds,
    )


def likeliest(
    backend: Backend, prompt: Prompt, visual: Tensor, stop_ids: frozenset[int], answer: Sequence[int] = ()
) -> list[int]:
    """The likeliest token at each place of an answer, its end included; without one, of the model's own greedy one."""
    ids = list(prompt.input_ids)
    slot = backend.open(len(ids) + LONGEST)
    try:
        logits = backend.forward([Piece(slot=slot, ids=ids, prompt_length=len(ids), visual=visual.flatten(0, 1))])
        found = [int(logits[0].argmax())]
        while len(found) < (len(answer) or LONGEST):
            last = answer[len(found) - 1] if answer else found[-1]
            if not answer and last in stop_ids:
                break
            logits = backend.forward([Piece(slot=slot, ids=[last], prompt_length=len(ids))])
            found.append(int(logits[0].argmax()))
        return found
    finally:
        backend.close(slot)


def score(
    asked: Questions,
    engines: tuple[Engine, Engine],
    facts: tuple[dict[str, Any], dict[str, Any]],
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Ask both models the same; writes answers and scores below the folder, returns the metric and both scores.

    ``engines`` are the plain and the quantised one, of which ``facts`` tell.
    """
    scores: dict[str, float] = {}
    for name, engine, told in zip((PLAIN, QUANTISED), engines, facts, strict=True):

        def count(done: int, total: int, name: str = name) -> None:
            progress(f"{asked.name}: {name}", done, total)

        predictions = predict(engine, asked.items, callbacks=PredictCallbacks(count=count))
        result = asked.result(predictions, told)
        asked.write(folder / name, predictions, result)
        scores[name] = result["primary_value"]
    return {"benchmark": asked.name, "metric": asked.benchmark.PRIMARY_METRIC, "items": len(asked.items), **scores}


def facts(agreement: Agreement, scores: dict[str, Any]) -> dict[str, Any]:
    """Both as they stand beside the model."""
    return {**asdict(agreement), "score": scores}
