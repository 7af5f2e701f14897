"""Ask a benchmark's items and score the answers; what a model thought aloud before an answer is told apart first.

Items of similar cost share a batch; results come back in the items' own order. With a cache every batch is kept as soon
as it is answered, whole or not at all, so that an evaluation that was stopped, or killed, goes on where it was and ends
with the same answers. While a batch is answered the images of the next are prepared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np

from mini_internvl.engine import GenerationConfig, Reply
from mini_internvl.evaluate import keys as hashes
from mini_internvl.evaluate.batches import BATCH_SIZE, group
from mini_internvl.evaluate.cache import AnswerCache, CachedAnswer, answer
from mini_internvl.inputs.hashes import ImageHashes
from mini_internvl.inputs.messages import image_parts
from mini_internvl.inputs.thinking import split_thought
from mini_internvl.ranks import ALONE, Ranks
from mini_internvl.records import Interrupted, Item, JudgeError, Prediction, Score


class ChatModel(Protocol):
    """What is evaluated: an Engine, or anything else that answers conversations.

    It may also have ``render(messages)``, ``count_tiles(messages, max_tiles=)`` and ``arithmetic`` (see Engine), which
    make keys exact and batches even; ``prepare_batch(conversations, max_tiles=)``, whose results ``chat_batch`` takes
    in place of messages; where answers do not come in batches, ``chat_each(conversations, config, max_tiles=)``, an
    iterator of (place, reply) in any order; and ``head_names`` with ``predict_batch(conversations, max_tiles=)``: items
    whose ``target`` is among the names are answered with the value that it gives.
    """

    def chat_batch(
        self, conversations: Sequence[Any], config: GenerationConfig | None = None, *, max_tiles: int | None = None
    ) -> list[Reply]:
        """One reply for each conversation."""
        ...


@dataclass(kw_only=True)
class PredictCallbacks:
    """What a prediction calls while it runs; each may be left out."""

    count: Callable[[int, int], None] = lambda done, total: None  # (answered, all) after each batch
    answered: Callable[[Item, str], None] = lambda item, text: None  # every item with its answer, kept ones first
    should_stop: Callable[[], bool] = lambda: False  # True stops after the present batch


@dataclass(kw_only=True)
class _PredictionRun:
    """Items with the keys of their answers and the answers so far."""

    engine: ChatModel
    items: Sequence[Item]
    keys: Sequence[str]
    cache: AnswerCache | None
    callbacks: PredictCallbacks
    known: dict[str, CachedAnswer] = field(default_factory=dict)
    new: dict[str, CachedAnswer] = field(default_factory=dict)
    waiting: dict[str, list[int]] = field(default_factory=dict)
    done: int = 0
    total: int = 0

    def start(self, batches: Sequence[Sequence[int]]) -> None:
        """Take the kept answers; report those that belong to ``batches``."""
        if self.cache:
            self.known = self.cache.get(list(dict.fromkeys(self.keys)))
        mine = {self.keys[i] for batch in batches for i in batch}
        for place, key in enumerate(self.keys):
            if key in mine:
                self.total += 1
                self.waiting.setdefault(key, []).append(place)
        for key in [key for key in self.waiting if key in self.known]:
            self._report(key, self.known[key])
        self.callbacks.count(self.done, self.total)

    def keep(self, answers: Mapping[str, CachedAnswer]) -> None:
        """Commit what was answered, then count it."""
        if self.cache:
            self.cache.put(answers)
        self.known.update(answers)
        self.new.update(answers)
        for key, kept in answers.items():
            self._report(key, kept)
        self.callbacks.count(self.done, self.total)

    def _report(self, key: str, kept: CachedAnswer) -> None:
        for place in self.waiting.pop(key):
            self.callbacks.answered(self.items[place], split_thought(kept.text)[1])
            self.done += 1

    def check(self) -> None:
        """Stop if the callbacks say so."""
        if self.callbacks.should_stop():
            raise Interrupted(f"stopped at {self.done} of {self.total} answers")


def predict(
    engine: ChatModel,
    items: Sequence[Item],
    *,
    batch_size: int = BATCH_SIZE,
    cache: AnswerCache | None = None,
    model: str = "",
    callbacks: PredictCallbacks | None = None,
    ranks: Ranks = ALONE,
) -> list[Prediction]:
    """Answers to the items.

    Args:
        engine: the model that answers.
        items: ids are unique; those that ask the same of the same images are asked once.
        batch_size: questions answered together.
        cache: kept answers, which are not asked again; it receives the new ones.
        model: names the model's weights in the cache.
        ranks: the processes that share the work; each returns all answers.

    Returns:
        One prediction per item, in order.

    Raises:
        Interrupted: stopped by the callbacks; with a cache the same call goes on.
        ImageError: an image cannot be read.
    """
    work: _PredictionRun | None = None
    problem: Exception | None = None
    try:
        work, batches = _plan(engine, items, batch_size, cache, model, callbacks or PredictCallbacks(), ranks)
        work.start(batches)
        _answer(work, batches)
    except Exception as error:  # whatever it is, the others must hear of it: they would wait for ever
        problem = error
    failure = f"{type(problem).__name__}: {problem}" if problem else ""
    others = ranks.exchange((work.new if work else {}, failure))
    if problem:
        raise problem
    assert work is not None
    for rank, (answers, failure) in enumerate(others):
        if failure:
            raise RuntimeError(f"process {rank} failed: {failure}")
        if ranks.first and rank and cache and answers:
            cache.put(answers)
        work.known.update({key: kept for key, kept in answers.items() if key not in work.known})
    if ranks.size > 1 and cache:
        work.known.update(cache.get([key for key in work.keys if key not in work.known]))
    kept_answers = [work.known[key] for key in work.keys]
    return [prediction(item, kept.text, kept.seconds) for item, kept in zip(items, kept_answers, strict=True)]


def prediction(item: Item, text: str, seconds: float = 0.0) -> Prediction:
    """What a model said to an item, what it thought aloud apart from its answer."""
    thought, said = split_thought(text)
    return Prediction(item_id=item.id, text=said, thought=thought, seconds=seconds)


def _plan(
    engine: ChatModel,
    items: Sequence[Item],
    batch_size: int,
    cache: AnswerCache | None,
    model: str,
    callbacks: PredictCallbacks,
    ranks: Ranks,
) -> tuple[_PredictionRun, list[list[int]]]:
    """The items with the keys of their answers, and this process's batches: places of items, equal ones once."""
    render = getattr(engine, "render", hashes.plain_prompt)
    prompts = [str(render(item.messages)) for item in items]
    images = ImageHashes()
    name = hashes.digest([model, getattr(engine, "arithmetic", "")])
    by_head = hashes.digest([name, "heads"])
    names = [hashes.digest([by_head, item.target]) if _has_head(engine, item) else name for item in items]
    keys = [hashes.answer_key(*row, images) for row in zip(names, items, prompts, strict=True)]
    first_places: dict[str, int] = {}
    for place, key in enumerate(keys):
        first_places.setdefault(key, place)
    firsts = list(first_places.values())
    groups = group(
        [items[i] for i in firsts],
        [prompts[i] for i in firsts],
        lambda item: _tiles(engine, item),
        images=[str(images.all(items[i].messages) or i) for i in firsts],
        batch_size=batch_size,
    )
    whole = [[firsts[i] for i in batch] for batch in groups]
    parts = [[i for i in batch if _has_head(engine, items[i]) == has] for batch in whole for has in (False, True)]
    batches = [part for part in parts if part][ranks.rank :: ranks.size]
    return _PredictionRun(engine=engine, items=items, keys=keys, cache=cache, callbacks=callbacks), batches


def evaluate(
    engine: ChatModel,
    benchmark: ModuleType,
    items: Sequence[Item],
    *,
    batch_size: int = BATCH_SIZE,
    cache: AnswerCache | None = None,
    model: str = "",
    callbacks: PredictCallbacks | None = None,
) -> tuple[Score, list[Prediction]]:
    """Ask and score one benchmark; returns the score and the answers it comes from."""
    predictions = predict(engine, items, batch_size=batch_size, cache=cache, model=model, callbacks=callbacks)
    return score(benchmark, items, predictions), predictions


def score(
    benchmark: ModuleType,
    items: Sequence[Item],
    predictions: Sequence[Prediction],
    *,
    protocol: str | None = None,
    judge: Callable[..., str] | None = None,
) -> Score:
    """A benchmark's score; when its judge fails, the score without one, marked as partial with the reason."""
    options = {"protocol": protocol} if protocol else {}
    if judge is None:
        return benchmark.score(items, predictions, **options)
    try:
        return benchmark.score(items, predictions, **options, judge=judge)
    except JudgeError as error:
        without: Score = benchmark.score(items, predictions, **options)
        return replace(without, partial=f"scored without its judge, which failed: {error}")


def _answer(work: _PredictionRun, batches: Sequence[Sequence[int]]) -> None:
    """Ask what is not known, batch by batch."""
    left = [[i for i in batch if work.keys[i] not in work.known] for batch in batches]
    left = [batch for batch in left if batch]
    chat_each = getattr(work.engine, "chat_each", None)
    if chat_each is not None:
        for (limits, tiles), same in groupby((i for b in left for i in b), lambda i: _limits(work.items[i])):
            _answer_each(work, chat_each, list(same), limits, tiles)
        return
    for batch, conversations in _prepared(work, left):
        limits, tiles = _limits(work.items[batch[0]])
        if _has_head(work.engine, work.items[batch[0]]):
            _answer_by_heads(work, batch, conversations, tiles)
            continue
        replies = work.engine.chat_batch(conversations, limits, max_tiles=tiles)
        pairs = zip(batch, replies, strict=True)
        work.keep({work.keys[i]: answer(work.items[i], reply.text, reply.seconds) for i, reply in pairs})


def _answer_by_heads(
    work: _PredictionRun, batch: Sequence[int], conversations: Sequence[Any], max_tiles: int | None
) -> None:
    """Answer with what the model's heads say."""
    began, engine = time.monotonic(), cast(Any, work.engine)
    found = engine.predict_batch(conversations, max_tiles=max_tiles)
    seconds = (time.monotonic() - began) / len(batch)
    texts = {i: value_text(values[work.items[i].target]) for i, values in zip(batch, found, strict=True)}
    work.keep({work.keys[i]: answer(work.items[i], text, seconds) for i, text in texts.items()})


def _has_head(engine: ChatModel, item: Item) -> bool:
    return bool(item.target) and item.target in getattr(engine, "head_names", ())


def value_text(value: float | Sequence[float] | str) -> str:
    """A head's value as an answer: numbers as decimals with at most six places, never as 1e-05."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return ", ".join(map(value_text, value))
    return np.format_float_positional(round(value, 6) + 0.0, trim="0")


def _answer_each(
    work: _PredictionRun,
    chat_each: Callable[..., Iterator[tuple[int, Reply]]],
    places: Sequence[int],
    limits: GenerationConfig,
    max_tiles: int | None,
) -> None:
    """Ask a server, which answers in its own order; each answer is kept as it comes."""
    work.check()
    conversations = [work.items[i].messages for i in places]
    for place, reply in chat_each(conversations, limits, max_tiles=max_tiles):
        i = places[place]
        work.keep({work.keys[i]: answer(work.items[i], reply.text, reply.seconds)})
        work.check()


def _prepared(work: _PredictionRun, batches: Sequence[list[int]]) -> Iterator[tuple[list[int], Sequence[Any]]]:
    """Each batch with its conversations; those of the next are prepared on a thread meanwhile, if the engine can."""
    prepare = getattr(work.engine, "prepare_batch", None)

    def conversations(batch: Sequence[int]) -> Sequence[Any]:
        messages = [work.items[i].messages for i in batch]
        return prepare(messages, max_tiles=work.items[batch[0]].max_tiles) if prepare else messages

    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
        coming = pool.submit(conversations, batches[0]) if batches else None
        for place, batch in enumerate(batches):
            work.check()
            assert coming is not None
            ready = coming.result()
            if place + 1 < len(batches):
                coming = pool.submit(conversations, batches[place + 1])
            yield batch, ready


def _limits(item: Item) -> tuple[GenerationConfig, int | None]:
    config = GenerationConfig(max_new_tokens=item.max_new_tokens, temperature=item.temperature, seed=0)
    return config, item.max_tiles


def _tiles(engine: ChatModel, item: Item) -> int:
    count = getattr(engine, "count_tiles", None)
    return count(item.messages, max_tiles=item.max_tiles) if count else len(image_parts(item.messages))
