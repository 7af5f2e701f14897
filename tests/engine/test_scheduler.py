"""The scheduler on a back end without a model, whose next token depends on all that a slot holds and nothing else."""

from __future__ import annotations

import functools
import hashlib
import random
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mini_internvl import plugins
from mini_internvl.engine.backends import Piece
from mini_internvl.engine.images import ImageInput
from mini_internvl.engine.requests import Request
from mini_internvl.engine.sampling import GenerationConfig, LogitsError
from mini_internvl.engine.scheduler import Limits, Scheduler
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import compose
from tests.model.conftest import VISION as TINY_VISION

VOCABULARY, IMAGE, STOP = 40, 39, 0
VISION = {**TINY_VISION, "num_hidden_layers": 1}


class FakeBackend:
    """Checks what it is asked; ``fails_at`` is the number of the forward that raises an error."""

    arithmetic = "fake"

    def __init__(self, config: VLMConfig, *, room: int = 10**9) -> None:
        self.config = replace(config, image_token_id=IMAGE)
        self.room, self.slots, self.most, self.numbers = room, dict[int, list[object]](), dict[int, int](), 0
        self.forwards, self.read, self.encoded, self.fails_at = 0, 0, 0, -1

    def encode(self, pixel_values: Tensor) -> Tensor:
        self.encoded += len(pixel_values)
        values = pixel_values.flatten(1)[:, :1].expand(-1, self.config.tokens_per_tile)
        return values[..., None].expand(-1, -1, 2)

    def open(self, most_tokens: int) -> int:
        self.numbers += 1
        self.slots[self.numbers], self.most[self.numbers] = [], most_tokens
        return self.numbers

    def fork(self, slot: int, count: int, most_tokens: int) -> int:
        new = self.open(most_tokens)
        assert 0 < count <= len(self.slots[slot])
        self.slots[new] = self.slots[slot][:count]
        return new

    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        assert len({piece.slot for piece in pieces}) == len(pieces) > 0
        self.forwards += 1
        if self.forwards == self.fails_at:
            raise RuntimeError("out of memory")
        rows = []
        for piece in pieces:
            assert piece.ids
            visual = iter([] if piece.visual is None else piece.visual[:, 0].tolist())
            for token in piece.ids:
                value = next(visual) if token == IMAGE and piece.visual is not None else None
                self.slots[piece.slot].append((token, value))
            assert next(visual, None) is None
            assert len(self.slots[piece.slot]) <= self.most[piece.slot]
            self.read += len(piece.ids)
            rows.append(logits(self.slots[piece.slot]))
        return torch.stack(rows)

    def close(self, slot: int) -> None:
        del self.slots[slot], self.most[slot]

    def free_tokens(self) -> int:
        return self.room - sum(self.most.values())


def logits(held: Sequence[object]) -> Tensor:
    """(V,) of what a slot holds."""
    seed = int.from_bytes(hashlib.blake2b(repr(held).encode(), digest_size=7).digest(), "big")
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)).index_fill(
        0, torch.tensor(IMAGE), -10.0
    )


def expected(ids: Sequence[int], values: Sequence[float], most: int) -> list[int | None]:
    """The greedy answer to a prompt whose placeholders have these values."""
    visual = iter(values)
    held: list[object] = [(token, next(visual) if token == IMAGE else None) for token in ids]
    answer: list[int | None] = []
    while len(answer) < most:
        token = int(logits(held).argmax())
        if token == STOP:
            return [*answer, None]
        answer.append(token)
        held.append((token, None))
    return answer


@functools.cache
def fake_config() -> VLMConfig:
    """A small model's; only sizes are read."""
    raw = compose(VISION, plugins.find("model.llms", "qwen2").EXAMPLE, image_size=56, max_tiles=4)
    return VLMConfig.from_official(raw)


PER_TILE = fake_config().tokens_per_tile
IMAGES = [torch.arange(1.0, 1 + tiles).reshape(-1, 1, 1, 1) + 10 * tiles for tiles in (1, 2, 3, 7)]


def asked(chance: random.Random) -> tuple[Request, list[int | None]]:
    """A request, often with a beginning that others have too, and the answer that it gets alone."""
    ids, values, images = [5] * chance.choice([0, 18, 30]), list[float](), list[ImageInput]()
    for number in chance.sample(range(len(IMAGES)), chance.choice([0, 0, 1, 1, 2])):
        pixels = IMAGES[number]
        ids += [7, *[IMAGE] * len(pixels) * PER_TILE, 8]
        values += [float(value) for value in pixels.flatten() for _ in range(PER_TILE)]
        images.append(ImageInput(key=str(number), pixel_values=pixels))
    ids += [chance.randrange(1, 20) for _ in range(chance.choice([1, 3, 9]))]
    most = chance.choice([1, 2, 5])
    config = GenerationConfig(max_new_tokens=most)
    request = Request(ids=ids, config=config, stop_ids=frozenset([STOP]), images=images)
    return request, expected(ids, values, most)


@pytest.mark.parametrize("seed", range(4))
def test_in_random_schedules_no_request_is_lost_mixed_or_starved(seed):
    """2,500 each: requests come at any time, are taken in any order, and some are cancelled at any token."""
    chance = random.Random(seed)
    backend = FakeBackend(fake_config(), room=700)
    limits = Limits(requests=6, tokens=40, tokens_beside=12, tiles=4, tiles_beside=1, kept_share=0.4)
    scheduler = Scheduler(backend, limits=limits)
    open_ones, done, cancelled = [], 0, 0
    while done + cancelled < 2500:
        if not open_ones or (len(open_ones) < 12 and chance.random() < 0.7):
            request, wanted = asked(chance)
            open_ones.append((scheduler.submit(request), wanted, [], backend.forwards))
            continue
        place = chance.randrange(len(open_ones))
        ticket, wanted, found, came = open_ones[place]
        if chance.random() < 0.03:
            scheduler.cancel(ticket)
            del open_ones[place]
            assert ticket.ended
            assert ticket.slot is None
            cancelled += 1
            continue
        step = scheduler.next(ticket)
        found.append(step.token)
        if step.finish_reason:
            assert found == wanted
            assert step.finish_reason == ("stop" if wanted[-1] is None else "length")
            assert backend.forwards - came < 300  # nobody waits for ever
            del open_ones[place]
            done += 1
    for ticket, wanted, found, _ in open_ones:
        assert found + [step.token for step in scheduler.steps(ticket)] == wanted
    scheduler.forget()
    assert backend.slots == {}
    assert cancelled > 20


def request(ids, most=5, **settings):
    config = GenerationConfig(max_new_tokens=most)
    return Request(ids=ids, config=config, stop_ids=frozenset([STOP]), **settings)


def image(number=3):
    """A request's image and its placeholders."""
    return [ImageInput(key=str(number), pixel_values=IMAGES[number])], [IMAGE] * len(IMAGES[number]) * PER_TILE


def test_a_second_question_about_a_image_starts_behind_it():
    backend = FakeBackend(fake_config())
    scheduler = Scheduler(backend)
    images, places = image()
    scheduler.answer([request([*places, 3, 4], 1, images=images)])
    assert (backend.encoded, backend.read) == (7, len(places) + 2)
    first = [ImageInput(key="3", pixel_values=IMAGES[3])]
    scheduler.answer([request([*places, 6, 4], 1, images=first)])
    assert (backend.encoded, backend.read) == (7, len(places) + 4)
    other = [ImageInput(key="another image", pixel_values=IMAGES[3])]  # as long, with the same ids
    scheduler.answer([request([*places, 6, 4], 1, images=other)])
    assert (backend.encoded, backend.read) == (14, 2 * len(places) + 6)
    scheduler.answer([request([9, *places, 6], 1, images=images)])  # elsewhere: read again, not encoded again
    assert backend.encoded == 14
    scheduler.forget()
    scheduler.answer([request([*places, 6, 4], 1, images=images)])
    assert backend.encoded == 21


def test_questions_that_come_together_share_what_they_begin_with():
    backend = FakeBackend(fake_config())
    images, places = image()
    requests = [request([*places, 1 + n], 1, images=images) for n in range(5)]
    Scheduler(backend).answer(requests)
    assert (backend.encoded, backend.read) == (7, len(places) + 5)


def test_the_next_turn_starts_behind_the_last_answer():
    backend = FakeBackend(fake_config())
    scheduler = Scheduler(backend)
    first = [*range(1, 30)]
    [steps] = scheduler.answer([request(first, 5)])
    answer = [step.token for step in steps if step.token is not None]
    read = backend.read
    scheduler.answer([request([*first, *answer, 3, 4], 1)])
    assert backend.read - read <= 3 + 1  # the last token was drawn, and not read yet
    assert len(backend.slots) == 1  # the longer one covers the shorter


def test_a_long_prompt_does_not_hold_up_the_answers_beside_it():
    backend = FakeBackend(fake_config())
    scheduler = Scheduler(backend, limits=Limits(tokens_beside=10))
    going = scheduler.submit(request([1, 2, 3], 30))
    scheduler.next(going)
    long = scheduler.submit(request([*range(1, 20)] * 5, 1))
    before, steps = backend.forwards, 0
    for step in scheduler.steps(going):
        steps += 1
        if long.steps or step.finish_reason:
            break
    assert backend.forwards - before >= 5
    assert steps >= min(5, backend.forwards - before)


def test_a_cancelled_request_gives_its_memory_back_at_once():
    backend = FakeBackend(fake_config(), room=100)
    scheduler = Scheduler(backend, limits=Limits(kept_share=0.0))
    first = scheduler.submit(request([1] * 20, 60))
    second = scheduler.submit(request([2] * 20, 60))
    scheduler.next(first)
    assert backend.free_tokens() == 20
    steps = scheduler.steps(first)
    next(steps)
    steps.close()
    assert backend.free_tokens() == 100
    scheduler.cancel(first)  # again: nothing happens
    assert scheduler.next(second).finish_reason != "cancelled"


def test_an_error_ends_those_that_run_and_not_those_that_wait():
    backend = FakeBackend(fake_config(), room=60)
    scheduler = Scheduler(backend)
    backend.fails_at = 2
    first, second = (scheduler.submit(request([1 + n, 2, 3], 50)) for n in range(2))
    scheduler.next(first)
    with pytest.raises(RuntimeError, match="out of memory"):
        scheduler.next(first)
    assert [step.token for step in scheduler.steps(second)] == expected([2, 2, 3], [], 50)


def test_logits_that_are_no_numbers_end_their_own_answer_alone():
    backend = FakeBackend(fake_config())
    whole = backend.forward

    def forward(pieces):
        found = whole(pieces)
        broken = torch.tensor([backend.slots[piece.slot][2][0] == 7 for piece in pieces])
        return found.masked_fill(broken[:, None], torch.nan)

    backend.forward = forward
    scheduler = Scheduler(backend)
    fine, broken = (scheduler.submit(request([1, 2, token], 50)) for token in (3, 7))
    with pytest.raises(LogitsError, match="the model's logits are nan"):
        list(scheduler.steps(broken))
    assert [step.token for step in scheduler.steps(fine)] == expected([1, 2, 3], [], 50)
    assert len(backend.slots) == 1  # what is kept of the answer that went well


def test_a_request_that_is_refused_leaves_nothing_of_those_before_it():
    backend = FakeBackend(fake_config())
    scheduler = Scheduler(backend)
    with pytest.raises(ValueError, match="<IMG_CONTEXT>"):
        scheduler.answer([request([1, 2, 3], 50), request([IMAGE])])
    scheduler.answer([request([4, 2, 3], 1)])
    assert backend.read == 3


def test_a_request_without_memory_ends_alone():
    backend = FakeBackend(fake_config())
    scheduler = Scheduler(backend)
    going = scheduler.submit(request([1, 2, 3], 6))
    steps = [scheduler.next(going)]
    opened = backend.open
    backend.open = lambda most: (_ for _ in ()).throw(MemoryError("no room")) if most > 60 else opened(most)
    large = scheduler.submit(request([2, 2, 3], 100))
    with pytest.raises(MemoryError, match="no room"):
        scheduler.next(large)
    assert [step.token for step in [*steps, *scheduler.steps(going)]] == expected([1, 2, 3], [], 6)


def test_the_last_request_is_kept_although_it_is_large():
    """A model with wide keys and values has room for few conversations: the next turn starts behind the last one."""
    backend = FakeBackend(fake_config(), room=300)
    scheduler = Scheduler(backend)
    for last in range(1, 4):
        scheduler.answer([request([5] * 90 + [last], 1)])
    assert backend.read == 91 + 1 + 1
    scheduler.answer([request([6] * 20, 1)])  # a small one takes its place
    assert list(backend.most.values()) == [21]


class Broken:
    """A constraint that fails at the third token."""

    def __init__(self):
        self.asked = 0

    def allow(self, logits):
        self.asked += 1
        if self.asked == 3:
            raise ValueError("no token is allowed")
        return logits

    def accept(self, token):
        return False


def test_what_goes_wrong_with_one_answer_is_its_own():
    backend = FakeBackend(fake_config())
    scheduler = Scheduler(backend)
    broken = scheduler.submit(request([2, 2, 3], 50, matcher=Broken()))
    other = scheduler.submit(request([1, 2, 3], 6))
    with pytest.raises(ValueError, match="no token is allowed"):
        list(scheduler.steps(broken))
    assert [step.token for step in scheduler.steps(other)] == expected([1, 2, 3], [], 6)
    scheduler.forget()
    assert backend.slots == {}


def test_a_request_that_alone_exceeds_memory_is_answered_alone():
    backend = FakeBackend(fake_config(), room=30)
    scheduler = Scheduler(backend)
    answers = scheduler.answer([request([1, 2], 5), request([3] * 50, 5), request([4, 4], 5)])
    for ids, steps in zip(([1, 2], [3] * 50, [4, 4]), answers, strict=True):
        assert [step.token for step in steps] == expected(ids, [], 5)


def test_requests_from_many_threads_get_their_own_answers():
    scheduler = Scheduler(FakeBackend(fake_config(), room=2000), limits=Limits(requests=8, tokens_beside=20))
    wrong: list[object] = []

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(25):
            one, wanted = asked(chance)
            found = [step.token for step in scheduler.steps(scheduler.submit(one))]
            wrong.extend([] if found == wanted else [(found, wanted)])

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_a_prompt_that_does_not_fit_its_images_or_the_context_is_refused():
    scheduler = Scheduler(FakeBackend(fake_config()))
    with pytest.raises(ValueError, match="holds 1 <IMG_CONTEXT> tokens but the images give 0"):
        scheduler.submit(request([IMAGE]))
    context = fake_config().llm.rope.context_length
    with pytest.raises(ValueError, match=f"the model has {context} positions"):
        scheduler.submit(request([1] * context))
