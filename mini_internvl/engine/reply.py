"""What an engine answers: the text, why it ends, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mini_internvl.engine.sampling import FinishReason, Step
from mini_internvl.inputs.prepare import Prompt
from mini_internvl.inputs.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A token of an answer as text, with the natural logarithm of its probability."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """The most likely tokens at its place, likeliest first, with theirs."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer with what it cost; ``str(reply)`` is the text."""

    text: str
    tiles: int
    prompt_tokens: int
    """Tokens before the answer, visual ones included; ``tokens`` are the answer's."""
    tokens: int
    seconds: float
    """Wall-clock seconds from call to last token."""
    finish_reason: FinishReason = "stop"
    """Why the answer ends: the model ended it, or a stop text or constraint ("stop"), ``max_new_tokens`` ("length"),
    the model's positions ("context"), or somebody who wanted no more ("cancelled")."""
    saved: int = 0
    """Visual tokens left out of the prompt, by a Flash model's router or by ``visual_tokens``."""
    odd: str = ""
    """What was odd about a server's answer, whose text is then what stood in it; empty otherwise."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of each token of the answer, where ``GenerationConfig.logprobs`` asks for them."""

    def __str__(self) -> str:
        return self.text


def make_reply(prompt: Prompt, steps: Sequence[Step], seconds: float, tokenizer: Tokenizer) -> Reply:
    """The reply that the steps of a whole answer make."""
    reason = steps[-1].finish_reason
    assert reason, "generation has ended"

    def text(token: int) -> str:
        return tokenizer.decode([token], skip_special=False)

    logprobs = [
        TokenLogprob(
            token=text(step.token), logprob=step.logprob, top=tuple((text(number), log) for number, log in step.top)
        )
        for step in steps
        if step.token is not None and step.logprob is not None
    ]
    return Reply(
        text="".join(step.text for step in steps).strip(),
        tiles=sum(prompt.tiles),
        prompt_tokens=len(prompt.input_ids),
        tokens=sum(step.token is not None for step in steps),
        seconds=seconds,
        finish_reason=reason,
        saved=prompt.saved,
        logprobs=tuple(logprobs),
    )
