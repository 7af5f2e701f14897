"""Requests join and leave a running batch: who computes what in the next forward, and what is kept for later requests.

A step does little: it reads some tiles, then one forward of the next token of every answer and of chunks of prompts, in
the order in which requests came. So nobody waits long behind a long prompt. A request is let in when its whole prompt
and longest answer fit into memory beside those that run, strictly in order; whatever is let in can go on to its end.

A prompt begins with what another one has read already, where both begin alike: text, and images of equal content.
Slots of finished requests are kept for that, as far as memory allows; so are visual tokens of images.

Unusual: there is no thread of its own. Whoever waits for a token does the next step, for all; others wait for him.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mini_internvl.engine.backends import Backend, Piece
from mini_internvl.engine.images import ImageCache, ImageInput
from mini_internvl.engine.requests import Request, Ticket, common, make_ticket
from mini_internvl.engine.sampling import Choice, FinishReason, LogitsError, Step
from mini_internvl.model.decoder import rotation_group

SHORTEST_SHARED = 16  # tokens; a shorter common beginning is read anew


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much one step does, and what is kept."""

    requests: int = 256
    """Requests that run together at most, if memory allows."""
    tokens: int = 4096
    """Tokens of prompts that a forward reads while no answer waits for its next token."""
    tokens_beside: int = 256
    """The same beside answers that wait."""
    tiles: int = 64
    """Tiles that a step encodes while no answer waits; ``tiles_beside``: the same beside answers that wait."""
    tiles_beside: int = 2
    kept_share: float = 0.125
    """Share of the memory of keys and values that finished requests may hold for later ones; the last of them alone may
    hold more, unless this is 0."""
    kept_requests: int = 64
    """Most finished requests that are kept: each new prompt is compared with all of them."""
    image_bytes: int = 2**28
    """Bytes of visual tokens that are kept for later requests."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A finished request's slot."""

    key: np.ndarray
    prompt_length: int
    most: int


class Scheduler:
    """Answers requests with a back end, from any number of threads.

    ``unused_ids`` gives rows of the vocabulary that are no token and cannot be drawn; it is called once, when needed.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        limits: Limits | None = None,
        unused_ids: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        self.backend, self.limits = backend, limits or Limits()
        self.images = ImageCache(backend, self.limits.image_bytes)
        self._unused_ids: Callable[[], Sequence[int]] | None = unused_ids
        self._unused: Tensor | None = None
        self._room = backend.free_tokens() if self.limits.kept_share else 0
        self._most_kept = int(self._room * self.limits.kept_share)
        self._waiting: deque[Ticket] = deque()
        self._running: list[Ticket] = []  # in the order in which they came
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # by slot, last used last
        self._turn = threading.Condition()
        self._driving = False

    def submit(self, request: Request) -> Ticket:
        """Queue a request. ValueError when its prompt fills the context, or holds other images than are given."""
        ticket = make_ticket(request, self.backend.config)
        with self._turn:
            self._waiting.append(ticket)
        return ticket

    def next(self, ticket: Ticket) -> Step:
        """The next step of a request, computed by this thread or by another one that waits; what went wrong, raised."""
        while True:
            with self._turn:
                while self._driving and not ticket.steps and not ticket.ended:
                    self._turn.wait()
                if ticket.steps:
                    return ticket.steps.popleft()
                if ticket.error is not None:
                    raise ticket.error
                assert not ticket.ended, "the request has ended"
                self._driving = True
            try:
                self._step()
            finally:
                with self._turn:
                    self._drop_cancelled()
                    self._driving = False
                    self._turn.notify_all()

    def steps(self, ticket: Ticket) -> Generator[Step, None, None]:
        """All steps of a request; left early, it is cancelled."""
        try:
            while True:
                step = self.next(ticket)
                yield step
                if step.finish_reason:
                    return
        finally:
            self.cancel(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """End a request at once, or after the step that is being computed; its memory is given back."""
        with self._turn:
            if not ticket.ended:
                ticket.cancelled = True
                if not self._driving:
                    self._drop_cancelled()

    def answer(self, requests: Sequence[Request]) -> list[list[Step]]:
        """The steps of several requests, in their order; where one fails, the others are cancelled."""
        tickets: list[Ticket] = []
        try:
            for request in requests:
                tickets.append(self.submit(request))
            return [list(self.steps(ticket)) for ticket in tickets]
        finally:
            for ticket in tickets:
                self.cancel(ticket)

    def forget(self) -> None:
        """Drop what is kept for later requests: after a change of the model's weights it would be wrong."""
        with self._turn:
            while self._driving:
                self._turn.wait()
            while self._kept:
                self._evict(next(iter(self._kept)))
            self.images.forget()

    def _step(self) -> None:
        try:
            self._admit()
            for ticket in [ticket for ticket in self._running if ticket.slot is None]:
                try:
                    self._begin(ticket)
                except Exception as error:  # there was no memory for it; the others have theirs
                    self._fail(ticket, error)
            beside = any(not ticket.reading for ticket in self._running)
            self._encode(self.limits.tiles_beside if beside else self.limits.tiles)
            tickets, pieces = self._choose(self.limits.tokens_beside if beside else self.limits.tokens)
            if pieces:
                self._take(tickets, [len(piece.ids) for piece in pieces], self.backend.forward(pieces))
        except BaseException as error:
            if not self._running:
                raise
            for ticket in list(self._running):
                self._fail(
                    ticket, error if isinstance(error, Exception) else RuntimeError("the answer was interrupted")
                )
            if not isinstance(error, Exception):
                raise

    def _admit(self) -> None:
        """Let requests in, strictly in order, while what they may need fits."""
        while self._waiting and len(self._running) < self.limits.requests:
            ticket = self._waiting[0]
            promised = sum(other.most for other in self._running if other.slot is None)
            best = self._find_kept(ticket)[1]
            for slot in [slot for slot in self._kept if slot != best] + [slot for slot in self._kept if slot == best]:
                if self.backend.free_tokens() - promised >= ticket.most:
                    break
                self._evict(slot)
            if self._running and self.backend.free_tokens() - promised < ticket.most:
                return
            with self._turn:
                self._waiting.popleft()
            self._running.append(ticket)

    def _find_kept(self, ticket: Ticket) -> tuple[int, int | None]:
        """How many tokens of a prompt some slot holds, and which."""
        found: tuple[int, int | None] = 0, None
        for slot, kept in self._kept.items():
            found = max(found, (self._shared(ticket, kept.key, kept.prompt_length), slot), key=lambda pair: pair[0])
        for other in self._running:
            if other.slot is not None and other is not ticket:
                held = min(other.read, other.length)
                found = max(
                    found, (self._shared(ticket, other.key[:held], other.length), other.slot), key=lambda p: p[0]
                )
        return found

    def _shared(self, ticket: Ticket, key: np.ndarray, prompt_length: int) -> int:
        """Tokens with which both begin, rotated alike, and behind which something is left to read."""
        count = common(ticket.key[:-1], key)
        if count < SHORTEST_SHARED:
            return 0
        rope = self.backend.config.llm.rope
        lengths = {ticket.length, prompt_length, max(prompt_length, count)}
        return count if len({rotation_group(rope, length) for length in lengths}) == 1 else 0

    def _begin(self, ticket: Ticket) -> None:
        """Open a slot, with what another one holds; not yet, where an earlier request is reading what both need."""
        count, slot = self._find_kept(ticket)
        for other in self._running:
            if other is ticket:
                break
            if other.reading and self._shared(ticket, other.key, other.length) > max(count, other.read):
                return
        if slot is None or count < SHORTEST_SHARED:
            ticket.slot = self.backend.open(ticket.most)
            return
        ticket.slot, ticket.read = self.backend.fork(slot, count, ticket.most), count
        if slot in self._kept:
            self._kept.move_to_end(slot)

    def _encode(self, most: int) -> None:
        """Give prompts the visual tokens of their images; up to ``most`` tiles are encoded for it."""
        wanted: list[tuple[Ticket, int, ImageInput]] = []
        ahead = 0  # tiles that are encoded before they can be read: a forward or two take as many
        for ticket in self._running:
            if ticket.slot is None or not ticket.reading:
                continue
            for number in ticket.unread_images():
                image = ticket.request.images[number]
                if number not in ticket.visual and ahead < self.limits.tiles:
                    if (found := self.images.find(image)) is None:
                        wanted.append((ticket, number, image))
                    else:
                        ticket.visual[number] = found
                ahead += image.tiles
        done = self.images.encode((image for *_, image in wanted), most)
        for ticket, number, image in wanted:
            if image.key in done:
                ticket.visual[number] = done[image.key]

    def _choose(self, most: int) -> tuple[list[Ticket], list[Piece]]:
        """The pieces of the next forward: a token of each answer, and up to ``most`` tokens of prompts."""
        tickets = [ticket for ticket in self._running if not ticket.reading]
        pieces = [self._piece(ticket, [ticket.answer[-1]], None) for ticket in tickets]
        for ticket in self._running:
            if ticket.slot is None or not ticket.reading or not most:
                continue
            end = min(ticket.read + most, ticket.readable())
            if end > ticket.read:
                ids = ticket.request.ids[ticket.read : end]
                pieces.append(self._piece(ticket, ids, ticket.visual_until(end)))
                tickets.append(ticket)
                most -= len(ids)
        return tickets, pieces

    @staticmethod
    def _piece(ticket: Ticket, ids: Sequence[int], visual: Tensor | None) -> Piece:
        assert ticket.slot is not None
        return Piece(slot=ticket.slot, ids=ids, prompt_length=ticket.length, visual=visual)

    def _take(self, tickets: Sequence[Ticket], counts: Sequence[int], logits: Tensor) -> None:
        """Draw the next tokens where prompts are read to their end."""
        if self._unused_ids is not None:
            ids, self._unused_ids = list(self._unused_ids()), None
            self._unused = torch.tensor(ids, device=logits.device) if ids else None
        if self._unused is not None:
            logits = logits.index_fill(-1, self._unused, -torch.inf)
        largest, likeliest = (found.tolist() for found in logits.max(-1))
        for ticket, count, row, most, token in zip(tickets, counts, logits, largest, likeliest, strict=True):
            ticket.read += count
            if ticket.reading:
                unread = set(ticket.unread_images())
                ticket.visual = {number: visual for number, visual in ticket.visual.items() if number in unread}
                continue
            ticket.visual.clear()
            try:
                if not math.isfinite(most):
                    raise LogitsError(most)
                self._add(ticket, token if ticket.sampler.greedy else None, row)
            except Exception as error:  # whatever its sampler or text met, the others go on
                self._fail(ticket, error)
        with self._turn:
            self._turn.notify_all()

    def _add(self, ticket: Ticket, token: int | None, logits: Tensor) -> None:
        """One more token of an answer, and its end where it is one."""
        request = ticket.request
        token, logprob, top = ticket.sampler.pick(logits) if token is None else Choice(token)
        if token in request.stop_ids:
            self._finish(ticket, Step(None, "stop", _rest(request), logprob, top))
            return
        ticket.answer.append(token)
        text, stopped = request.text.push(token) if request.text else ("", False)
        reason: FinishReason | None = None
        if stopped or ticket.sampler.complete:
            reason = "stop"
        elif len(ticket.answer) == request.config.max_new_tokens:
            reason = "length"
        elif ticket.length + len(ticket.answer) == ticket.most:
            reason = "context"
        if reason is None:
            ticket.steps.append(Step(token, None, text, logprob, top))
        else:
            self._finish(ticket, Step(token, reason, text if stopped else text + _rest(request), logprob, top))

    def _finish(self, ticket: Ticket, step: Step) -> None:
        ticket.steps.append(step)
        self._end(ticket, keep=True)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        ticket.error = error
        self._end(ticket, keep=False)

    def _drop_cancelled(self) -> None:
        for ticket in [ticket for ticket in [*self._running, *self._waiting] if ticket.cancelled]:
            if ticket.ended:
                continue  # by a stream that Python closed in the midst of this
            ticket.steps.append(Step(None, "cancelled"))
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                ticket.ended = True
            else:
                self._end(ticket, keep=ticket.read >= SHORTEST_SHARED)

    def _end(self, ticket: Ticket, *, keep: bool) -> None:
        """Take a request out of the batch; its slot is kept for later requests, or closed."""
        self._running.remove(ticket)
        ticket.ended = True
        slot, ticket.slot = ticket.slot, None
        ticket.visual.clear()
        self.images.drop_partial(image for other in self._running for image in other.request.images)
        if slot is None:
            return
        key = np.concatenate([ticket.key, np.array(ticket.answer, np.int64)])[: ticket.read]
        covered = next((other for other, kept in self._kept.items() if common(kept.key, key) == len(key)), None)
        if covered is not None:
            self._kept.move_to_end(covered)
        if not keep or covered is not None or ticket.most > self._room:
            self.backend.close(slot)
            return
        for other in [other for other, kept in self._kept.items() if common(kept.key, key) == len(kept.key)]:
            self._evict(other)
        self._kept[slot] = _Kept(key=key, prompt_length=ticket.length, most=ticket.most)
        while len(self._kept) > self.limits.kept_requests or (
            len(self._kept) > 1 and sum(kept.most for kept in self._kept.values()) > self._most_kept
        ):
            self._evict(next(iter(self._kept)))

    def _evict(self, slot: int) -> None:
        del self._kept[slot]
        self.backend.close(slot)


def _rest(request: Request) -> str:
    return request.text.finish() if request.text else ""
