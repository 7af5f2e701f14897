"""The engine: a checkpoint folder with its tokenizer, template and tile settings, ready to answer."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mini_internvl.engine import hub
from mini_internvl.engine.device import resolve_device, resolve_dtype
from mini_internvl.engine.generate import FinishReason, GenerationConfig, Step, generate, split_batches
from mini_internvl.engine.predict import predict
from mini_internvl.inputs import chat
from mini_internvl.inputs.messages import Messages, normalise
from mini_internvl.inputs.prepare import Processor, Prompt
from mini_internvl.inputs.tokenizer_files import load_tokenizer, stop_ids
from mini_internvl.model import checkpoint
from mini_internvl.model.adapter import is_adapter, load_adapted
from mini_internvl.model.config import FlashConfig
from mini_internvl.model.flash import cut_placeholders, encode_routed
from mini_internvl.model.heads import Heads, Value, load_heads
from mini_internvl.model.vlm import InternVL
from mini_internvl.records import Message

KV_BYTES = 4 * 10**9
"""Bytes that the keys and values of a batch may take, padding and the longest answers counted; a prompt that needs more
alone gets it. Reading prompts takes half as much again at most, for beginnings that several share."""
TILES_TOGETHER = 64  # tiles that the encoder reads at a time, since the memory it needs grows with them


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
    """Why the answer ends: the model ended it ("stop"), ``max_new_tokens`` ("length"), or its positions ("context")."""
    saved: int = 0
    """Visual tokens that a Flash model's router left out of the prompt."""
    odd: str = ""
    """What was odd about a server's answer, whose text is then what stood in it; empty otherwise."""

    def __str__(self) -> str:
        return self.text


class Engine:
    """A model that answers messages.

    ``folder`` holds its tokenizer files and generation_config.json. ``fast_images`` resizes by the faster path, equal
    within 1/255. ``heads`` read numbers and classes from its hidden states.
    """

    def __init__(self, model: InternVL, folder: Path, *, fast_images: bool = False, heads: Heads | None = None) -> None:
        self.heads = heads
        self.model, self.tokenizer = model, load_tokenizer(folder)
        self.flash = model.config.flash  # its thresholds may be set; ``None`` gives every tile all its tokens
        template = chat.find_template(model.config.template)
        self.processor = Processor(
            tokenizer=self.tokenizer,
            template=template,
            config=model.config,
            system_message=model.config.system_message,
            fast=fast_images,
        )
        own = stop_ids(folder, self.tokenizer)
        self.stop_ids = frozenset([*own, self.tokenizer.token_id(template.sep.strip())])

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

    @property
    def most_tokens(self) -> int:
        """Tokens of a batch whose keys and values fit into KV_BYTES."""
        llm = self.model.config.llm
        return KV_BYTES // (2 * llm.layers * llm.kv_heads * llm.head_dim * self.model.dtype.itemsize)

    @cached_property
    def unused_ids(self) -> Tensor | None:
        """Rows of the vocabulary that are no token (tables are padded to round sizes); they are never drawn."""
        rows = range(self.model.config.llm.vocab_size)
        unused = [i for i in rows if i not in self.stop_ids and not self.tokenizer.has_id(i)]
        return torch.tensor(unused, device=self.model.device) if unused else None

    def count_tiles(self, messages: Messages, *, max_tiles: int | None = None) -> int:
        """Tiles of a conversation's images, thumbnails counted, by their headers; ImageError names one without."""
        return self.processor.count_tiles(messages, max_tiles=max_tiles)

    def render(self, messages: Messages) -> str:
        """The prompt as text, each image as one ``<image>``."""
        return chat.render(messages, template=self.processor.template, system_message=self.processor.system_message)

    @property
    def arithmetic(self) -> str:
        """What answers depend on besides weights and prompt: back end, kind of device and type, resizing."""
        kind = f"torch {self.model.device.type} {str(self.model.dtype).removeprefix('torch.')}"
        routed = self._routed
        flash = f" flash {routed.relative:g} {routed.absolute:g}" if routed else ""
        return kind + (" fast-images" if self.processor.fast else "") + flash

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
        answers: list[list[Step]] = [[] for _ in prompts]
        for steps in self.generate(prompts, config or GenerationConfig()):
            for step in steps:
                answers[step.row].append(step)
        seconds = (time.monotonic() - began) / len(prompts)
        return [self._reply(prompt, steps, seconds) for prompt, steps in zip(prompts, answers, strict=True)]

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

    def stream(
        self, messages: Messages, config: GenerationConfig | None = None, *, max_tiles: int | None = None
    ) -> Generator[str, None, Reply]:
        """Answer one conversation piece by piece; the generator's return value is the whole :class:`Reply`.

        A piece is held back while it ends inside a character that needs several tokens.
        """
        began = time.monotonic()
        [prompt] = self.route([self.prepare(messages, max_tiles=max_tiles)])
        steps: list[Step] = []
        sent = text = ""
        for [step] in self.generate([prompt], config or GenerationConfig()):
            steps.append(step)
            text = self.tokenizer.decode(_ids(steps))
            if text != sent and not text.endswith("\ufffd") and text.startswith(sent):
                yield text[len(sent) :]
                sent = text
        reply = self._reply(prompt, steps, time.monotonic() - began)
        if text != sent:
            yield text[len(sent) :]
        return reply

    def generate(self, prompts: Sequence[Prompt], config: GenerationConfig) -> Iterator[list[Step]]:
        """Tokens of several prompts, step by step, in as many batches as memory asks for.

        ValueError, before anything is computed, when a prompt fills the model's context.
        """
        self._check_context(prompts)
        lengths = [len(prompt.input_ids) for prompt in prompts]
        for batch in split_batches(lengths, config.max_new_tokens, self.most_tokens):
            rows = prompts[batch.start : batch.stop]
            steps = generate(
                self.model,
                [prompt.input_ids for prompt in rows],
                self.encode(rows),
                config,
                self.stop_ids,
                image_keys=[id(prompt.pixel_values) for prompt in rows],
                unused_ids=self.unused_ids,
            )
            for found in steps:
                yield [step._replace(row=batch.start + step.row) for step in found]

    def _check_context(self, prompts: Sequence[Prompt]) -> None:
        longest = max((len(prompt.input_ids) for prompt in prompts), default=0)
        context = self.model.config.llm.rope.context_length
        if longest >= context:
            raise ValueError(
                f"the prompt has {longest} tokens, but the model has {context} positions for prompt and answer; "
                "lower max_tiles or shorten the conversation"
            )

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> list[Tensor | None]:
        """Visual tokens of each prompt; pixels that prompts share are encoded once."""
        waiting = [prompt for prompt in prompts if prompt.visual is None and len(prompt.pixel_values)]
        different = {id(prompt.pixel_values): prompt.pixel_values for prompt in waiting}
        if not different:
            return [prompt.visual for prompt in prompts]
        pixels = torch.cat(list(different.values())).split(TILES_TOGETHER)
        tokens = torch.cat([self.model.encode_images(part.to(self.model.device)) for part in pixels])
        encoded = dict(zip(different, tokens.split([len(own) for own in different.values()]), strict=True))
        return [encoded.get(id(prompt.pixel_values)) for prompt in prompts]

    @property
    def _routed(self) -> FlashConfig | None:
        """By what tiles are routed, if they are."""
        return self.flash if self.model.config.flash and self.flash and self.flash.enabled else None

    @torch.inference_mode()
    def route(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Prompts as a Flash model reads them: without the placeholders of tokens that its router leaves out.

        Other models' prompts are returned as they are. A prompt is routed by its own tiles alone.
        """
        flash = self._routed
        if flash is None:
            return list(prompts)
        config, read = self.model.config, dict[int, tuple[Tensor, list[bool]]]()
        routed: list[Prompt] = []
        for prompt in prompts:
            if not len(prompt.pixel_values) or prompt.visual is not None:
                routed.append(prompt)
                continue
            if id(prompt.pixel_values) not in read:
                read[id(prompt.pixel_values)] = encode_routed(self.model, prompt.pixel_values, flash)
            visual, short = read[id(prompt.pixel_values)]
            assert self.model.image_token_id is not None
            ids = cut_placeholders(
                prompt.input_ids, self.model.image_token_id, config.tokens_per_tile, config.short_tokens, short
            )
            saved = len(prompt.input_ids) - len(ids)
            routed.append(replace(prompt, input_ids=ids, visual=visual, saved=saved))
        return routed

    def _reply(self, prompt: Prompt, steps: Sequence[Step], seconds: float) -> Reply:
        reason = steps[-1].finish_reason
        assert reason, "generation has ended"
        return Reply(
            text=self.tokenizer.decode(_ids(steps)).strip(),
            tiles=sum(prompt.tiles),
            prompt_tokens=len(prompt.input_ids),
            tokens=len(_ids(steps)),
            seconds=seconds,
            finish_reason=reason,
            saved=prompt.saved,
        )


def _ids(steps: Sequence[Step]) -> list[int]:
    return [step.token for step in steps if step.token is not None]


def load(
    path_or_hub_id: str | Path | None = None,
    backend: str = "auto",
    *,
    dtype: str = "auto",
    device: str = "auto",
    fast_images: bool = False,
) -> Engine:
    """Load an engine.

    Args:
        path_or_hub_id: a checkpoint or adapter folder, a hub id such as ``"OpenGVLab/InternVL2-1B"``, or ``None`` for
            the nano model that ships with the package.
        backend: "auto" or "torch".
        dtype: "auto", "float32", "bfloat16" or "float16"; see :func:`mini_internvl.engine.device.resolve_dtype`.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        fast_images: see :class:`Engine`.

    ValueError says why the folder or hub id cannot be used.
    """
    if backend not in ("auto", "torch"):
        raise ValueError(f'unknown backend "{backend}"; known: auto, torch')
    folder = hub.resolve(path_or_hub_id)
    place = resolve_device(device)
    files = hub.base_folder(folder)
    model = load_model(folder, dtype=resolve_dtype(dtype, place, files), device=str(place))
    llm = model.config.llm
    heads = load_heads(folder, hidden_size=llm.hidden_size, layers=llm.layers)
    return Engine(model, files, fast_images=fast_images, heads=None if heads is None else heads.to(place))


def load_model(
    path_or_hub_id: str | Path, dtype: str | torch.dtype = "float32", device: str = "cpu", *, strict: bool = True
) -> InternVL:
    """Load the bare model, a ``torch.nn.Module``, from a checkpoint folder of any layout, an adapter, or a hub id.

    No tokenizer is needed. See :func:`mini_internvl.model.checkpoint.load_model` for the options. CheckpointError or
    ConfigError says why the folder or hub id cannot be used.
    """
    folder = hub.resolve(path_or_hub_id)
    if is_adapter(folder):
        return load_adapted(folder, base=hub.base_folder(folder), dtype=dtype, device=device, strict=strict)
    return checkpoint.load_model(folder, dtype=dtype, device=device, strict=strict)


def user(text: str, *images: object) -> list[Message]:
    """A one-turn conversation: images, then a question."""
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
