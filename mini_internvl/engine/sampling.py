"""How the next token is drawn from logits: one answer's settings, and one sampler an answer.

The steps come in this order: repetition penalty, what a constraint allows, n-grams that may not come again,
temperature, top-k, top-p, min-p. Log-probabilities are the model's own, before any of these.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from mini_internvl.engine.constraints import Constraint

FinishReason = Literal["stop", "length", "context", "cancelled"]
"""A stop token or text came, or a constraint is fulfilled; max_new_tokens is reached; the model has no further
positions; or the request was cancelled."""
MOST_LOGPROBS = 20
MOST_BEAMS = 10
LEAST_TEMPERATURE = 1e-6  # lower ones are as good as greedy, and too small for float32


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How an answer is drawn."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    """0 takes the most likely token; above, the distribution is sharpened (<1) or flattened (>1) and sampled."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities reach this sum."""
    top_k: int = 0
    """Sample among this many most likely tokens; 0 for all."""
    min_p: float = 0.0
    """Sample among tokens at least this likely, as a share of the most likely one's probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of prompt and answer become less likely: their logits are divided (multiplied, if negative)."""
    no_repeat_ngram: int = 0
    """No run of so many tokens comes twice in prompt and answer, unless nothing else is left; 0 for no such rule."""
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends; they are no part of it."""
    seed: int | None = None
    """Seed of sampling, for every answer of a batch as if it were alone; ``None`` draws new ones."""
    logprobs: int | None = None
    """Log-probabilities of the tokens of the answer, and of so many most likely ones at each place; 0 to 20."""
    constraint: Constraint | None = None
    """What form the answer must have; see :mod:`mini_internvl.engine.constraints`."""
    beams: int = 1
    """Answers that are followed side by side, of which the likeliest is given (:mod:`mini_internvl.engine.beams`)."""
    length_penalty: float = 1.0
    """With beams: the power of its number of tokens by which an answer's log-probability is divided. Above 0, longer
    answers gain."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise ValueError(f"stop is the text {self.stop!r}; give a sequence of texts")
        object.__setattr__(self, "stop", tuple(self.stop))
        checks = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or a number above"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (all tokens) or above"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a number above 0; 1 changes nothing"),
            ("no_repeat_ngram", self.no_repeat_ngram >= 0, "0 (no rule) or above"),
            ("stop", all(self.stop), "one or more texts, none of them empty"),
            ("seed", self.seed is None or -(2**63) <= self.seed < 2**64, "a whole number of at most 64 bits"),
            ("beams", 1 <= self.beams <= MOST_BEAMS, f"1 to {MOST_BEAMS}"),
            ("length_penalty", -10 <= self.length_penalty <= 10, "between -10 and 10"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= MOST_LOGPROBS, f"0 to {MOST_LOGPROBS}"),
        )
        for name, fine, wanted in checks:
            if not fine:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {wanted}")
        with_beams = ("max_new_tokens", "beams", "length_penalty", "seed")
        others = [own.name for own in fields(self) if own.name not in with_beams]
        changed = [name for name in others if getattr(self, name) != getattr(type(self), name)]
        if self.beams == 1 and self.length_penalty != 1:
            raise ValueError(f"length_penalty is {self.length_penalty:g}, which needs beams; set beams to 2 or more")
        if self.beams > 1 and changed:
            raise ValueError(f"beams is {self.beams}, with which {changed[0]} cannot be set; leave one of them out")


class LogitsError(ValueError):
    """Logits of which no token can be drawn: some are no numbers."""

    def __init__(self, largest: float) -> None:
        super().__init__(f"the model's logits are {largest:g}, of which nothing can be drawn; try another dtype")


class Step(NamedTuple):
    """What one step of generation gives one answer."""

    token: int | None  # the new token; ``None`` where the answer ends without one
    finish_reason: FinishReason | None = None  # why the answer ends here; ``None`` while it goes on
    text: str = ""  # what the token adds to the answer, as far as it can be shown already
    logprob: float | None = None  # natural logarithm of the token's probability, where asked for
    top: tuple[tuple[int, float], ...] = ()  # most likely tokens at this place, likeliest first, with theirs


class Choice(NamedTuple):
    """A drawn token, with log-probabilities where they are asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Matcher(Protocol):
    """One answer's place in a constraint."""

    def allow(self, logits: Tensor) -> Tensor:
        """(V,) logits with minus infinity for each token that may not come now."""
        ...

    def accept(self, token: int) -> bool:
        """Take a token; whether the answer is complete, so that nothing may follow."""
        ...


class Sampler:
    """Draws the tokens of one answer."""

    def __init__(
        self,
        config: GenerationConfig,
        prompt: Sequence[int],
        *,
        matcher: Matcher | None = None,
    ) -> None:
        self.config, self.matcher = config, matcher
        self.complete = False  # whether a constraint is fulfilled
        self._generator = torch.Generator()
        if config.temperature > 0:
            self._generator.manual_seed(config.seed) if config.seed is not None else self._generator.seed()
        self._follow: dict[tuple[int, ...], set[int]] = {}  # what has followed each run of n - 1 tokens
        self._recent: tuple[int, ...] = ()
        self._seen: Tensor | None = None
        if config.repetition_penalty != 1 or config.no_repeat_ngram:
            self._prompt = list(prompt)
            for token in prompt if config.no_repeat_ngram else ():
                self._count_ngram(token)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is all that is asked for."""
        config = self.config
        plain = config.temperature == 0 and config.repetition_penalty == 1 and not config.no_repeat_ngram
        return plain and config.logprobs is None and self.matcher is None

    def pick(self, logits: Tensor) -> Choice:
        """The next token by (V,) float32 logits, which stay as they are."""
        config, chosen = self.config, logits
        if config.repetition_penalty != 1:
            chosen = self._penalised(chosen)
        if self.matcher is not None:
            chosen = self.matcher.allow(chosen)
        if banned := self._follow.get(self._recent) if config.no_repeat_ngram else None:
            others = chosen.index_fill(-1, torch.tensor(sorted(banned), device=chosen.device), -torch.inf)
            chosen = chosen if others.max() == -torch.inf else others
        token = int(chosen.argmax()) if config.temperature == 0 else draw(chosen, config, self._generator)
        self._accept(token)
        if config.logprobs is None:
            return Choice(token)
        logs = logits.log_softmax(-1)
        values, ids = logs.topk(config.logprobs)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Choice(token, float(logs[token]), top)

    def _penalised(self, logits: Tensor) -> Tensor:
        if self._seen is None:
            self._seen = torch.zeros_like(logits, dtype=torch.bool)
            self._seen[torch.tensor(self._prompt, device=logits.device)] = True
        penalty = self.config.repetition_penalty
        return torch.where(self._seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)

    def _count_ngram(self, token: int) -> None:
        wanted = self.config.no_repeat_ngram - 1
        if len(self._recent) == wanted:
            self._follow.setdefault(self._recent, set()).add(token)
        self._recent = (*self._recent, token)[-wanted:] if wanted else ()

    def _accept(self, token: int) -> None:
        if self._seen is not None:
            self._seen[token] = True
        if self.config.no_repeat_ngram:
            self._count_ngram(token)
        if self.matcher is not None:
            self.complete = self.matcher.accept(token)


def draw(logits: Tensor, config: GenerationConfig, generator: torch.Generator) -> int:
    """A token by (V,) logits at the temperature, top-k, top-p and min-p of ``config``.

    LogitsError where the logits are no numbers, or all of them minus infinity.
    """
    logits = logits.float()
    largest = logits.max()
    if not largest.isfinite():
        raise LogitsError(float(largest))
    logits = (logits - largest) / max(config.temperature, LEAST_TEMPERATURE)  # at most 0: no overflow
    if config.top_k:
        smallest = logits.topk(min(config.top_k, logits.shape[-1])).values[-1]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if config.top_p < 1:
        ordered, order = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= config.top_p  # the first token always stays
        logits = logits.scatter(-1, order, ordered.masked_fill(beyond, -torch.inf))
    probabilities = logits.softmax(-1)
    if config.min_p:
        probabilities = probabilities.where(probabilities >= config.min_p * probabilities.max(), 0.0)
    sums = probabilities.cumsum(-1)
    place = torch.rand(1, generator=generator).to(sums.device) * (1 - 2**-20) * sums[-1:]  # never the whole sum
    return int(torch.searchsorted(sums, place, right=True)[0])
