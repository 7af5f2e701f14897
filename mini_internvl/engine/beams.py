"""Beam search: among whole answers the likeliest that is found, instead of the likeliest next token each time.

Of every beam, an answer so far, the scheduler draws the likeliest next tokens. It reads only what is new in a beam, as
long as the beams' keys and values fit what it keeps of finished requests. An answer counts by the sum of its tokens'
log-probabilities over a power of their number. When and how a beam ends is as in transformers
(``generate(num_beams=...)``, ``early_stopping=False``), whose answers these are.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mini_internvl.engine.requests import Request
from mini_internvl.engine.sampling import MOST_LOGPROBS, FinishReason, GenerationConfig, Step
from mini_internvl.engine.scheduler import Scheduler
from mini_internvl.model.config import VLMConfig


@dataclass(frozen=True, kw_only=True)
class Beam:
    """An answer so far, or a whole one."""

    tokens: tuple[int, ...] = ()
    """With the stop token, where it has one."""
    logprob: float = 0.0
    """Natural logarithm of the probability of all tokens."""


def search(scheduler: Scheduler, requests: Sequence[Request]) -> list[list[Step]]:
    """The steps of the best answer to each request, whose configurations say how many beams it has."""
    searches = [_Search(request, scheduler.backend.config) for request in requests]
    together = max(1, scheduler.limits.kept_requests // max(one.config.beams for one in searches))
    for begin in range(0, len(searches), together):
        while going := [one for one in searches[begin : begin + together] if not one.done]:
            wanted = [one.next() for one in going]
            answers = scheduler.answer([request for own in wanted for request in own])
            for one, own in zip(going, wanted, strict=True):
                one.take([steps[0] for steps in answers[: len(own)]])
                del answers[: len(own)]
    return [one.steps() for one in searches]


class _Search:
    """The beams of one request."""

    def __init__(self, request: Request, model: VLMConfig) -> None:
        self.request, self.config, self.placeholder = request, request.config, model.image_token_id
        self.most = min(self.config.max_new_tokens, model.llm.rope.context_length - len(request.ids))
        self.beams, self.finished, self.done = [Beam()], list[tuple[float, Beam]](), False
        # So many next tokens of a beam that enough are left without those that end it and the placeholder.
        count = min(self.config.beams + len(request.stop_ids) + 1, MOST_LOGPROBS)
        self.one_token = GenerationConfig(max_new_tokens=1, logprobs=count)

    def next(self) -> list[Request]:
        """What gives the next tokens of all beams."""
        ids = self.request.ids
        return [replace(self.request, ids=[*ids, *b.tokens], config=self.one_token, text=None) for b in self.beams]

    def take(self, steps: Sequence[Step]) -> None:
        """Go on by one token."""
        width, power, length = self.config.beams, self.config.length_penalty, len(self.beams[0].tokens) + 1
        found = [
            Beam(tokens=(*beam.tokens, token), logprob=beam.logprob + logprob)
            for beam, step in zip(self.beams, steps, strict=True)
            for token, logprob in step.top
            if math.isfinite(logprob) and token != self.placeholder  # in a prompt it would ask for an image
        ]
        found.sort(key=lambda beam: -beam.logprob)
        ended = [beam for beam in found[:width] if length == self.most or self._stops(beam)]
        scored = [*self.finished, *((beam.logprob / length**power, beam) for beam in ended)]
        self.finished = heapq.nlargest(width, scored, key=lambda pair: pair[0])
        self.beams = [beam for beam in found if not self._stops(beam)][:width]
        self.done = length == self.most or not self.beams
        if len(self.finished) == width and not self.done:
            self.done = self.beams[0].logprob / length**power <= self.finished[-1][0]

    def _stops(self, beam: Beam) -> bool:
        return beam.tokens[-1] in self.request.stop_ids

    def steps(self) -> list[Step]:
        """The best answer, token by token."""
        best, text = self.finished[0][1], self.request.text
        stopped = self._stops(best)
        tokens = best.tokens[:-1] if stopped else best.tokens
        steps = [Step(token, None, text.push(token)[0] if text else "") for token in tokens]
        reason: FinishReason = (
            "stop" if stopped else "length" if len(tokens) == self.config.max_new_tokens else "context"
        )
        return [*steps, Step(None, reason, text.finish() if text else "")]
