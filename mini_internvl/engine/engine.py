"""The engine: a checkpoint folder with its tokenizer, template and tile settings, ready to answer.

Everything that answers goes through its scheduler: a chat, a stream, a batch, from one thread or many.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mini_internvl.engine import beams
from mini_internvl.engine.backends import Backend
from mini_internvl.engine.backends.torch import TorchBackend
from mini_internvl.engine.constraints import Constraints
from mini_internvl.engine.context import check_context
from mini_internvl.engine.images import ImageInput, image_keys
from mini_internvl.engine.predict import predict
from mini_internvl.engine.reducing import Reducer
from mini_internvl.engine.reply import Reply, make_reply
from mini_internvl.engine.requests import Request
from mini_internvl.engine.routing import Router
from mini_internvl.engine.sampling import GenerationConfig, Step
from mini_internvl.engine.scheduler import Limits, Scheduler
from mini_internvl.engine.text import TextStream
from mini_internvl.engine.weights import weights_version
from mini_internvl.inputs import chat
from mini_internvl.inputs.hashes import content_hash
from mini_internvl.inputs.messages import Messages, normalise
from mini_internvl.inputs.prepare import Processor, Prompt
from mini_internvl.inputs.tokenizer_files import load_tokenizer, stop_ids
from mini_internvl.model.config import FlashConfig
from mini_internvl.model.heads import Heads, Value
from mini_internvl.model.reduction import Reduction
from mini_internvl.model.vlm import InternVL
from mini_internvl.records import Message

TILES_TOGETHER = 64  # tiles that the encoder reads at a time, since the memory it needs grows with them


class Engine:
    """A model that answers messages; safe to use from several threads, whose requests are answered together.

    ``model`` may be any back end. ``folder`` holds tokenizer files and generation_config.json. ``fast_images`` resizes
    by the faster path, equal within 1/255. ``heads`` read numbers and classes from hidden states. ``visual_tokens`` may
    be set: how many visual tokens an image keeps, ``None`` for all.
    """

    visual_tokens: Reduction | None = None
    note = ""  # what a person should know of how it was loaded

    def __init__(
        self,
        model: InternVL | Backend,
        folder: Path,
        *,
        fast_images: bool = False,
        heads: Heads | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.heads, self._limits, self.tokenizer = heads, limits, load_tokenizer(folder)
        self._use(TorchBackend(model) if isinstance(model, InternVL) else model)
        self.flash = self.config.flash  # its thresholds may be set; ``None`` gives every tile all its tokens
        template = chat.find_template(self.config.template)
        self.processor = Processor(
            tokenizer=self.tokenizer,
            template=template,
            config=self.config,
            system_message=self.config.system_message,
            fast=fast_images,
        )
        own = stop_ids(folder, self.tokenizer)
        self.stop_ids = frozenset([*own, self.tokenizer.token_id(template.sep.strip())])

    def _use(self, backend: Backend) -> None:
        self.backend, self.config = backend, backend.config
        self.scheduler = Scheduler(backend, limits=self._limits, unused_ids=self._unused_ids)
        self._router = Router(self.model) if self.config.flash else None
        self._reducer = Reducer(self.encode, self.config.image_token_id)
        self._weights = self._weights_version()

    def with_model(self, model: InternVL) -> Engine:
        """The same engine around another model of this kind; tokenizer and settings are shared."""
        other = copy.copy(self)
        other._use(TorchBackend(model))
        return other

    @property
    def model(self) -> InternVL:
        """The torch model; ValueError where another back end answers."""
        if isinstance(self.backend, TorchBackend):
            return self.backend.model
        told = f'this needs the torch model, but the engine runs on "{self.backend.arithmetic}"'
        raise ValueError(f'{told}; load a checkpoint or adapter with the back end "torch"')

    def prepare_batch(
        self, conversations: Sequence[Messages | Prompt], *, max_tiles: int | None = None
    ) -> list[Prompt]:
        """Several conversations, or prepared ones; those about the same images share one tensor, encoded once."""
        shared: dict[Any, Any] = {}
        return [
            messages if isinstance(messages, Prompt) else self.prepare(messages, max_tiles=max_tiles, shared=shared)
            for messages in conversations
        ]

    def prepare(
        self, messages: Messages, *, max_tiles: int | None = None, shared: dict[Any, Any] | None = None
    ) -> Prompt:
        """Messages -> ids and pixels; ValueError when one is malformed or unreadable. See :meth:`Processor.prepare`."""
        turns = normalise(messages)
        if not turns or turns[-1].role != "user":
            raise ValueError("the last message must come from the user")
        return self.processor.prepare(turns, max_tiles=max_tiles, shared=shared)

    def _unused_ids(self) -> list[int]:
        """Rows of the vocabulary that are no token (tables are padded to round sizes); they are never drawn."""
        rows = range(self.config.llm.vocab_size)
        return [i for i in rows if i not in self.stop_ids and not self.tokenizer.has_id(i)]

    def count_tiles(self, messages: Messages, *, max_tiles: int | None = None) -> int:
        """Tiles of a conversation's images, thumbnails counted, by their headers; ImageError names one without."""
        return self.processor.count_tiles(messages, max_tiles=max_tiles)

    def render(self, messages: Messages) -> str:
        """The prompt as text, each image as one ``<image>``."""
        return chat.render(messages, template=self.processor.template, system_message=self.processor.system_message)

    @property
    def arithmetic(self) -> str:
        """What answers depend on besides weights and prompt: back end, kind of device and type, resizing."""
        routed = self._routed
        flash = f" flash {routed.relative:g} {routed.absolute:g}" if routed else ""
        fewer = f" visual-tokens {self.visual_tokens}" if self.visual_tokens else ""
        return self.backend.arithmetic + (" fast-images" if self.processor.fast else "") + flash + fewer

    def chat(
        self, messages: Messages, config: GenerationConfig | None = None, *, max_tiles: int | None = None
    ) -> Reply:
        """Answer one conversation."""
        return self.chat_batch([messages], config, max_tiles=max_tiles)[0]

    def chat_batch(
        self,
        conversations: Sequence[Messages | Prompt],
        config: GenerationConfig | None = None,
        *,
        max_tiles: int | None = None,
    ) -> list[Reply]:
        """Answer several conversations (or prepared ones) at once; each gets the answer it would get alone."""
        if not conversations:
            return []
        began = time.monotonic()
        prompts = self.route(self.prepare_batch(conversations, max_tiles=max_tiles))
        answers = self.generate(prompts, config)
        seconds = (time.monotonic() - began) / len(prompts)
        pairs = zip(prompts, answers, strict=True)
        return [make_reply(prompt, steps, seconds, self.tokenizer) for prompt, steps in pairs]

    def choices(
        self, messages: Messages, config: GenerationConfig, count: int, *, max_tiles: int | None = None
    ) -> list[Reply]:
        """Several answers to one conversation, whose prompt is read once; a seed counts up for each.

        ValueError for less than one, or where the answers would all be the same.
        """
        if count < 1 or (count > 1 and config.temperature == 0):
            raise ValueError(f"{count} answers at temperature {config.temperature:g}; ask for 1, or set a temperature")
        began = time.monotonic()
        [prompt] = self.route([self.prepare(messages, max_tiles=max_tiles)])
        seeds = [None if config.seed is None else config.seed + number for number in range(count)]
        requests = [self.requests([prompt], replace(config, seed=seed))[0] for seed in seeds]
        answers = self._answer(requests)
        seconds = (time.monotonic() - began) / count
        return [make_reply(prompt, steps, seconds, self.tokenizer) for steps in answers]

    def stream(
        self, messages: Messages, config: GenerationConfig | None = None, *, max_tiles: int | None = None
    ) -> Generator[str, None, Reply]:
        """Answer one conversation piece by piece; the generator's return value is the whole :class:`Reply`.

        A piece is held back while it ends inside a character that needs several tokens. Closing the generator ends the
        answer. With beams all of it comes at once.
        """
        began = time.monotonic()
        [prompt] = self.route([self.prepare(messages, max_tiles=max_tiles)])
        [request] = self.requests([prompt], config)
        scheduler, steps = self.scheduler, list[Step]()  # another thread may put another scheduler in place
        at_once = request.config.beams > 1  # whose answer is known only in the end
        for step in self._answer([request])[0] if at_once else scheduler.steps(scheduler.submit(request)):
            steps.append(step)
            if step.text:
                yield step.text
        return make_reply(prompt, steps, time.monotonic() - began, self.tokenizer)

    def generate(self, prompts: Sequence[Prompt], config: GenerationConfig | None = None) -> list[list[Step]]:
        """The steps of the answers to several prompts.

        ValueError, before anything is computed, when a prompt fills the model's context.
        """
        requests = self.requests(prompts, config)  # may put another scheduler in place
        return self._answer(requests)

    def _answer(self, requests: Sequence[Request]) -> list[list[Step]]:
        """The steps of several requests of one configuration."""
        if requests and requests[0].config.beams > 1:
            return beams.search(self.scheduler, requests)
        return self.scheduler.answer(requests)

    def requests(self, prompts: Sequence[Prompt], config: GenerationConfig | None = None) -> list[Request]:
        """Prompts as the scheduler takes them; ValueError when one fills the model's context."""
        self._check_context(prompts)
        self._renew()
        config = config or GenerationConfig()
        return [
            Request(
                ids=prompt.input_ids,
                config=config,
                stop_ids=self.stop_ids,
                images=_images(prompt),
                text=TextStream(self.tokenizer, config.stop),
                matcher=self._constraints.matcher(config.constraint) if config.constraint else None,
            )
            for prompt in prompts
        ]

    @cached_property
    def _constraints(self) -> Constraints:
        return Constraints(self.tokenizer, self.stop_ids, self.config.llm.vocab_size)

    def forget(self) -> None:
        """Drop what is kept of earlier requests: keys and values of prompts, visual tokens of images.

        Needed only after weights were written through ``.data``, which nothing else can notice.
        """
        self.scheduler.forget()
        if self._router:
            self._router.forget()
        self._reducer.forget()

    def _renew(self) -> None:
        """Drop all that is kept where the model's weights were changed in place: none of it holds any longer."""
        if isinstance(self.backend, TorchBackend) and self._weights_version() != self._weights:
            self._use(self.backend.renewed())

    def _weights_version(self) -> int:
        return weights_version(self.backend.model) if isinstance(self.backend, TorchBackend) else 0

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of what :meth:`predict` gives."""
        return () if self.heads is None else tuple(self.heads.config.heads)

    def predict(self, messages: Messages, *, max_tiles: int | None = None) -> dict[str, Value]:
        """What the model's heads say of one conversation: numbers, lists of numbers and classes by name.

        ValueError for a model without heads.
        """
        return self.predict_batch([messages], max_tiles=max_tiles)[0]

    def predict_batch(
        self, conversations: Sequence[Messages | Prompt], *, max_tiles: int | None = None
    ) -> list[dict[str, Value]]:
        """The same for several conversations (or prepared ones); each gets the values that it would get alone."""
        if self.heads is None:
            raise ValueError(
                "this model has no heads, so it can predict nothing but text; train some with the loss heads "
                "(docs/training.md), or ask it with chat"
            )
        prompts = self.route(self.prepare_batch(conversations, max_tiles=max_tiles))
        self._check_context(prompts)
        return predict(self.model, self.heads, prompts, self.encode(prompts))

    def _check_context(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            check_context(prompt, self.processor, self.config.llm.rope.context_length)

    def encode(self, prompts: Sequence[Prompt]) -> list[Tensor | None]:
        """Visual tokens of each prompt; pixels that prompts share are encoded once."""
        waiting = [prompt for prompt in prompts if prompt.visual is None and len(prompt.pixel_values)]
        different = {id(prompt.pixel_values): prompt.pixel_values for prompt in waiting}
        if not different:
            return [prompt.visual for prompt in prompts]
        pixels = torch.cat(list(different.values())).split(TILES_TOGETHER)
        tokens = torch.cat([self.backend.encode(part) for part in pixels])
        encoded = dict(zip(different, tokens.split([len(own) for own in different.values()]), strict=True))
        return [encoded.get(id(prompt.pixel_values)) if prompt.visual is None else prompt.visual for prompt in prompts]

    @property
    def _routed(self) -> FlashConfig | None:
        """By what tiles are routed, if they are."""
        return self.flash if self.config.flash and self.flash and self.flash.enabled else None

    def route(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Prompts as the model reads them: without the visual tokens that a Flash model's router leaves out, and of the
        others only those that ``visual_tokens`` keeps. Each depends on its own tiles alone.
        """
        self._renew()
        flash = self._routed
        routed = list(prompts) if flash is None or self._router is None else self._router.route(prompts, flash)
        if self.visual_tokens is None:
            return routed
        return self._reducer.reduce(routed, self.visual_tokens, self.arithmetic)


def _images(prompt: Prompt) -> list[ImageInput]:
    """The images of a prompt; those whose visual tokens are there already are one, as a Flash model's router has it."""
    if prompt.visual is not None:
        visual = prompt.visual.flatten(0, 1)
        return [ImageInput(key=prompt.visual_key or content_hash(visual.float().cpu().numpy()), visual=visual)]
    pairs = zip(image_keys(prompt), prompt.pixel_values.split(list(prompt.tiles)), strict=True)
    return [ImageInput(key=key, pixel_values=pixels) for key, pixels in pairs]


def user(text: str, *images: object) -> list[Message]:
    """A one-turn conversation: images, then a question."""
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
