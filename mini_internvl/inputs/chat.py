"""Messages -> token ids and supervision mask: the only renderer, used by training, answering and evaluation alike.

A conversation is cut into segments (headers, questions, answers) and the mask follows the segments; the ids are those
of the whole text, as in the original. Supervised are each answer and the token that ends it, nothing else: not the line
break that some templates have behind that token.
Unlike in the original, only the template and images make control tokens: what people typed is text.
Templates: ``internvl/conversation.py``; masks: ``internvl/train/dataset.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from mini_internvl.inputs.messages import ESCAPED, PLACEHOLDER, ChatError, Messages, Turn, is_sample, normalise
from mini_internvl.inputs.tokenizer import Tokenizer
from mini_internvl.records import ChatTemplate, Encoded

IGNORE = -100
IMAGE_START, IMAGE_CONTEXT, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
FAMILY_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
"""What the family adds to a language model's tokens, in the official order (``internvl/train/constants.py``)."""
_IMAGE = (IMAGE_START + IMAGE_CONTEXT + IMAGE_END, False)
TAGS = FAMILY_TOKENS[3:]  # tokens that people write: the model learns their use from text
ROLES = ("system", "user", "assistant")

Piece = tuple[str, bool]  # text, and whether somebody typed it
Segment = tuple[str, list[Piece], bool]
"""A role's header, what follows it up to the separator, and whether that is supervised; all together are the prompt."""

SYSTEM_2_0 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
CHATML = ChatTemplate(
    name="Hermes-2",
    system_role="<|im_start|>system\n",
    user_role="<|im_start|>user\n",
    assistant_role="<|im_start|>assistant\n",
    sep="<|im_end|>",
    system_message=SYSTEM_2_0,
)
PHI3 = ChatTemplate(
    name="phi3-chat",
    system_role="<|system|>\n",
    user_role="<|user|>\n",
    assistant_role="<|assistant|>\n",
    sep="<|end|>",
    system_message=SYSTEM_2_0,
)
INTERNLM2 = replace(CHATML, name="internlm2-chat", strips_turns=True)
INTERNVL2_5 = replace(CHATML, name="internvl2_5", sep="<|im_end|>\n", system_message=SYSTEM_2_5)
TEMPLATES = {template.name: template for template in (CHATML, INTERNLM2, PHI3, INTERNVL2_5)}


def find_template(name: str) -> ChatTemplate:
    """The template of a config.json; ChatError lists the known names."""
    if name not in TEMPLATES:
        raise ChatError(f'unknown chat template "{name}"; known: {", ".join(TEMPLATES)}')
    return TEMPLATES[name]


def tile_limits(n_images: int, max_tiles: int) -> int:
    """Tile limit of each image when several share ``max_tiles`` (``internvl_chat_finetune.py``)."""
    return max(1, max_tiles // max(1, n_images))


def encode(
    messages: Messages,
    tokenizer: Tokenizer,
    *,
    template: ChatTemplate,
    tiles: Sequence[int],
    tokens_per_tile: int,
    system_message: str | None = None,
    control_tokens: Literal["text", "original"] = "text",
) -> Encoded:
    """Render a conversation.

    An image part is written where it stands: ``<image>`` alone, ``Image-1: <image>`` when there are several, or
    ``NAME: <image>`` when it is named. A text with ``<image>`` placeholders of its own says itself where its images go.

    Args:
        messages: in either form. Ending with a question, the assistant's turn is opened for an answer; ending with an
            answer, it is a training sample.
        tiles: number of tiles of each image, in reading order.
        system_message: used when the conversation has none; ``None`` takes the template's. "" is a valid message.
        control_tokens: what ``<|im_end|>``, ``<img>`` and the like are where a message holds them: characters like any
            others ("text"), or as in the original control tokens, where a training sample whose text holds the
            template's separator or the padding token has no label at all, since its turns cannot be told apart.

    ChatError for roles out of order, an empty turn, an unknown part, or another number of images than ``tiles``.
    """
    turns = normalise(messages)
    segments = list(_segments(turns, template, system_message))
    control = _control(tokenizer, template) if control_tokens == "text" else frozenset[str]()
    if not control and any(token in turn.text for turn in turns for token in (IMAGE_START, IMAGE_CONTEXT, IMAGE_END)):
        raise ChatError(f"a turn holds {IMAGE_START}, {IMAGE_CONTEXT} or {IMAGE_END}, which the original cannot read")
    ids: list[int] = []
    labels: list[int] = []
    for own, masked in _turn_ids(segments, tokenizer, control):
        behind = _behind(template) * (masked < len(own))
        ids += own
        labels += [IGNORE] * masked + own[masked : len(own) - behind] + [IGNORE] * behind
    _check_images(turns, tiles)
    if tiles:
        context = tokenizer.token_id(IMAGE_CONTEXT)
        places = [place for place, number in enumerate(ids) if number == context]
        for place, count in reversed([*zip(places, tiles, strict=True)]):
            ids[place : place + 1] = [context] * count * tokens_per_tile
            labels[place : place + 1] = [labels[place]] * count * tokens_per_tile
    if control_tokens == "original" and is_sample(turns) and _ambiguous(segments, template, tokenizer):
        labels = [IGNORE] * len(ids)
    return Encoded(input_ids=ids, labels=labels)


def count(
    messages: Messages,
    tokenizer: Tokenizer,
    *,
    template: ChatTemplate,
    tiles: Sequence[int],
    tokens_per_tile: int,
    system_message: str | None = None,
) -> tuple[int, int]:
    """How many tokens :func:`encode` gives, and how many of them are supervised; arguments and errors are its own."""
    turns, control = normalise(messages), _control(tokenizer, template)
    (header, pieces, _), *others = _segments(turns, template, system_message)
    first = len(_first_ids(tokenizer, ((header, False), *pieces), control))
    lengths = tokenizer.typed_lengths([((header, False), *pieces) for header, pieces, _ in others], control)
    supervised = sum(
        length - _length(tokenizer, header) - _behind(template)
        for length, (header, _, answers) in zip(lengths, others, strict=True)
        if answers
    )
    _check_images(turns, tiles)
    return first + sum(lengths) + sum(tiles) * tokens_per_tile - len(tiles), supervised


def turn_lengths(
    messages: Messages, tokenizer: Tokenizer, *, template: ChatTemplate, system_message: str | None = None
) -> list[int]:
    """Tokens of the system message and of each turn, headers and separators included; an image counts as three.

    Where the assistant's turn is left open, its header comes last. Errors are those of :func:`encode`.
    """
    control = _control(tokenizer, template)
    (header, pieces, _), *others = _segments(normalise(messages), template, system_message)
    first = len(_first_ids(tokenizer, ((header, False), *pieces), control))
    return [first, *tokenizer.typed_lengths([((header, False), *pieces) for header, pieces, _ in others], control)]


def check(messages: Messages, *, template: ChatTemplate) -> None:
    """ChatError for a conversation that :func:`encode` would refuse."""
    for _ in _segments(normalise(messages), template, None):
        pass


def render(messages: Messages, *, template: ChatTemplate, system_message: str | None = None) -> str:
    """The text that :func:`encode` reads, each image as one ``<image>``; arguments and errors are its own."""
    return "".join(
        PLACEHOLDER if piece is _IMAGE else piece[0].replace(PLACEHOLDER, ESCAPED)
        for header, pieces, _ in _segments(normalise(messages), template, system_message)
        for piece in [(header, False), *pieces]
    )


@functools.lru_cache(maxsize=64)
def _control(tokenizer: Tokenizer, template: ChatTemplate) -> frozenset[str]:
    """Added tokens that nobody can type."""
    own = template.system_role + template.user_role + template.assistant_role + template.sep + _IMAGE[0] + "<s></s>"
    return frozenset(text for text, token in tokenizer.added.items() if token.special or text in own) - set(TAGS)


def _segments(turns: Sequence[Turn], template: ChatTemplate, system_message: str | None) -> Iterator[Segment]:
    training = is_sample(turns)
    left = list(enumerate(turns, 1))
    count = sum(len(turn.images) for turn in turns)
    system = [(template.system_message if system_message is None else system_message, False)]
    numbers = iter(range(1, count + 1))
    if turns and turns[0].role == "system":
        left.pop(0)
        if turns[0].images:
            raise ChatError("turn 1: a system message holds no images; move them to the first question")
        system = _pieces(turns[0], count, numbers)
    if not left:
        raise ChatError(
            "the conversation has no question; the first message after the system's must come from the user"
        )
    end = (template.sep, False)
    yield template.system_role, [*system, end], False
    for place, (number, turn) in enumerate(left):
        _check_role(turn.role, number, expected=("user", "assistant")[place % 2])
        pieces = _pieces(turn, count, numbers)
        if training and template.strips_turns:  # the original strips in training only
            pieces = _stripped(pieces)
        if not pieces and (training or turn.role == "user"):
            raise ChatError(f"turn {number} ({turn.role}) is empty; write a text or leave the turn out")
        header = template.user_role if turn.role == "user" else template.assistant_role
        yield header, [*pieces, end], turn.role == "assistant"
    if not training:
        yield template.assistant_role, [], False


def _check_role(role: object, turn: int, *, expected: str) -> None:
    if role not in ROLES:
        raise ChatError(f'turn {turn}: unknown role "{role}"; known: {", ".join(ROLES)}')
    if role == "system":
        raise ChatError(f"turn {turn} is from the system; a system message comes first, and once")
    if role != expected:
        raise ChatError(
            f"turn {turn} is from the {role}, but the {expected}'s is due: questions and answers alternate, "
            "a question first"
        )


def _pieces(turn: Turn, count: int, numbers: Iterator[int]) -> list[Piece]:
    """A turn's text and images; ``numbers`` are those of the conversation's ``count`` images not yet written."""
    pieces: list[Piece] = []
    for part in turn.parts:
        if isinstance(part, str):
            pieces.append((part, True))
        else:
            label = part.label(next(numbers), count)
            pieces += [(label, True)] if label else []
            pieces += [_IMAGE] if part.placed else [_IMAGE, ("\n", False)]
    return pieces


def _stripped(pieces: Sequence[Piece]) -> list[Piece]:
    """Without white space around the whole; an image is none."""
    left = list(pieces)
    for end, strip in ((0, str.lstrip), (-1, str.rstrip)):
        while left and not left[end][0].strip():
            left.pop(end)
        if left and left[end] is not _IMAGE:
            left[end] = strip(left[end][0]), left[end][1]
    return left


def _ambiguous(segments: Sequence[Segment], template: ChatTemplate, tokenizer: Tokenizer) -> bool:
    """Whether the original would lose count of a training sample's tokens and mask them all.

    It counts tokens that are not padding, and finds the turns by cutting the text at the separator; for templates that
    strip, at the assistant's header. Later templates are rendered turn by turn.
    """
    if _behind(template):
        return False
    expected, cut = len(segments), template.sep
    if template.strips_turns:
        expected, cut = sum(supervised for *_, supervised in segments), template.assistant_role
    whole = "".join(header + "".join(text for text, _ in pieces) for header, pieces, _ in segments)
    return whole.count(cut) != expected or bool(tokenizer.pad_token and tokenizer.pad_token in whole)


def _behind(template: ChatTemplate) -> int:
    """Tokens of a separator that follow the one that ends a turn."""
    return int(template.sep != template.sep.rstrip())


def _turn_ids(
    segments: Iterable[Segment], tokenizer: Tokenizer, control: frozenset[str]
) -> Iterator[tuple[list[int], int]]:
    """Ids turn by turn, which are those of the whole text, since every turn begins and ends with an added token; and
    how many of a turn's first ids are masked.

    An answer is tokenised together with its header, and as many tokens as the header has alone are masked. Each image
    is a single context token here.
    """
    for place, (header, pieces, supervised) in enumerate(segments):
        whole = ((header, False), *pieces)
        own = tokenizer.typed_ids(whole, control) if place else _first_ids(tokenizer, whole, control)
        yield own, _length(tokenizer, header) if supervised else len(own)


def _check_images(turns: Sequence[Turn], tiles: Sequence[int]) -> None:
    images = sum(len(turn.images) for turn in turns)
    if images != len(tiles):
        raise ChatError(f"the conversation has {images} images, but tiles of {len(tiles)} are given")


@functools.lru_cache(maxsize=64)
def _first_ids(tokenizer: Tokenizer, pieces: tuple[Piece, ...], control: frozenset[str]) -> list[int]:
    """The system turn's ids, the same in every conversation; not to be changed."""
    if any(typed and token in text for text, typed in pieces for token in control | tokenizer.aliases):
        header = pieces[0][0]
        start = tokenizer.encode(header)[: -_length(tokenizer, header)]  # BOS, and a lone space of some
        return start + tokenizer.typed_ids(pieces, control)
    return tokenizer.encode("".join(text for text, _ in pieces))


@functools.lru_cache(maxsize=64)
def _length(tokenizer: Tokenizer, header: str) -> int:
    return len(tokenizer.continue_ids(header))
