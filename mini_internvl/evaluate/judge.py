"""The judge that some benchmarks' protocols need: a language model behind an OpenAI-compatible server.

Its replies are kept in the answer cache by what was asked, those of a temperature above 0 too, so that a benchmark that
is scored again gets the same score and asks nothing.
"""

from __future__ import annotations

from mini_internvl.engine.remote import RemoteEngine, RemoteError
from mini_internvl.engine.sampling import GenerationConfig
from mini_internvl.evaluate import keys
from mini_internvl.evaluate.cache import AnswerCache, CachedAnswer
from mini_internvl.inputs.messages import Turn
from mini_internvl.records import JudgeError

MAX_REPLY_TOKENS = 256
ODD = "judge: a reply that is no text"  # the ``item`` of such a reply in the cache, where it is kept to be read


class Judge:
    """A callable judge that counts; the cache holds its replies and receives the new ones."""

    def __init__(self, engine: RemoteEngine, cache: AnswerCache | None = None) -> None:
        self.engine, self.cache = engine, cache
        self.asked = self.cached = self.failed = self.odd = 0

    def __call__(self, prompt: str, *, temperature: float = 0.0, system: str = "") -> str:
        """The judge's reply; JudgeError if it cannot answer."""
        address = self.engine.address
        key = keys.digest(["judge", address.url, address.model, system, prompt, temperature, MAX_REPLY_TOKENS])
        if self.cache and (known := self.cache.get([key])):
            self.cached += 1
            self.odd += known[key].item == ODD
            return known[key].text
        texts = (("system", system), ("user", prompt)) if system else (("user", prompt),)
        turns = [Turn(role=role, parts=(text,)) for role, text in texts]  # a mark in an answer is text
        config = GenerationConfig(max_new_tokens=MAX_REPLY_TOKENS, temperature=temperature)
        try:
            reply = self.engine.chat(turns, config)
        except RemoteError as error:
            self.failed += 1
            kept = ", what it answered is kept" if self.cache else ""
            raise JudgeError(f"{error}; start the judge and score again{kept}") from None
        self.asked += 1
        self.odd += bool(reply.odd)
        if self.cache:
            name = ODD if reply.odd else "judge"
            self.cache.put({key: CachedAnswer(text=reply.text, seconds=round(reply.seconds, 4), item=name)})
        return reply.text
