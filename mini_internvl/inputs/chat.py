"""Messages -> token ids and supervision mask: the only renderer, used by training, answering and evaluation alike.

A conversation is cut into segments (headers, questions, answers) and the mask follows the segments; the ids are those
of the whole text, as in the original. Supervised are each answer and the separator after it, nothing else.
Templates: ``internvl/conversation.py``; masks: ``internvl/train/dataset.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

from mini_internvl.inputs.tokenizer import Tokenizer
from mini_internvl.records import ChatTemplate, Encoded, Message, Part

IGNORE = -100
IMAGE = "<image>"
IMAGE_START, IMAGE_CONTEXT, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
ROLES = ("system", "user", "assistant")

SYSTEM_2_0 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
TEMPLATES = {
    template.name: template
    for template in (
        ChatTemplate(
            name="Hermes-2",
            system_role="<|im_start|>system\n",
            user_role="<|im_start|>user\n",
            assistant_role="<|im_start|>assistant\n",
            sep="<|im_end|>",
            system_message=SYSTEM_2_0,
        ),
        ChatTemplate(
            name="internlm2-chat",
            system_role="<|im_start|>system\n",
            user_role="<|im_start|>user\n",
            assistant_role="<|im_start|>assistant\n",
            sep="<|im_end|>",
            system_message=SYSTEM_2_0,
            strips_turns=True,
        ),
        ChatTemplate(
            name="phi3-chat",
            system_role="<|system|>\n",
            user_role="<|user|>\n",
            assistant_role="<|assistant|>\n",
            sep="<|end|>",
            system_message=SYSTEM_2_0,
        ),
        ChatTemplate(
            name="internvl2_5",
            system_role="<|im_start|>system\n",
            user_role="<|im_start|>user\n",
            assistant_role="<|im_start|>assistant\n",
            sep="<|im_end|>\n",
            system_message=SYSTEM_2_5,
        ),
    )
}


class ChatError(ValueError):
    """A conversation that cannot be rendered; the message names the turn."""


def find_template(name: str) -> ChatTemplate:
    """The template of a config.json; ChatError lists the known names."""
    if name not in TEMPLATES:
        raise ChatError(f'unknown chat template "{name}"; known: {", ".join(TEMPLATES)}')
    return TEMPLATES[name]


def images(messages: Sequence[Message]) -> list[Part]:
    """The image parts of a conversation in reading order, each with its source under ``"image"``.

    Raises:
        ChatError: a message or part without the keys it needs, or of an unknown kind.
    """
    turns = enumerate(messages, 1)
    return [part for turn, message in turns for part in _parts(message, turn) if part["type"] == "image"]


def tile_limits(n_images: int, max_tiles: int) -> int:
    """Tile limit of each image when several share ``max_tiles`` (``internvl_chat_finetune.py``)."""
    return max(1, max_tiles // max(1, n_images))


def encode(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    template: ChatTemplate,
    tiles: Sequence[int],
    tokens_per_tile: int,
    system_message: str | None = None,
) -> Encoded:
    """Render a conversation.

    An image part is written where it stands: ``<image>`` alone, ``Image-1: <image>`` when there are several, or
    ``NAME: <image>`` when it is named. A text with ``<image>`` marks of its own says itself where its images go.

    Args:
        messages: OpenAI shape. Ending with a question, the assistant's turn is opened for an answer; ending with an
            answer, it is a training sample.
        tokenizer: of the checkpoint.
        template: of the checkpoint.
        tiles: number of tiles of each image, in reading order.
        tokens_per_tile: visual tokens of one tile.
        system_message: used when the conversation has none; ``None`` takes the template's. "" is a valid message.

    Returns:
        Ids, BOS first where the tokenizer has one, and labels. As in the original, a training sample whose text holds
        the template's separator or the padding token has no label at all: its turns cannot be told apart.

    Raises:
        ChatError: roles out of order, an empty turn, an unknown part, reserved text, or another number of images
            than ``tiles``.
    """
    count = len(images(messages))
    training = bool(messages) and messages[-1].get("role") == "assistant"
    segments = list(_segments(messages, template, system_message, count=count, training=training))
    marks = sum(text.count(IMAGE) for text, _ in segments)
    if marks != len(tiles):
        raise ChatError(f"the conversation has {marks} {IMAGE} marks but {len(tiles)} images")
    encoded = _tokenise(segments, tokenizer)
    if marks:
        counts = [count * tokens_per_tile for count in tiles]
        encoded = _spread(encoded, tokenizer.token_id(IMAGE_CONTEXT), counts)
    if training and _ambiguous(segments, template, tokenizer):
        encoded = Encoded(input_ids=encoded.input_ids, labels=[IGNORE] * len(encoded.input_ids))
    return encoded


def render(messages: Sequence[Message], *, template: ChatTemplate, system_message: str | None = None) -> str:
    """The text that :func:`encode` reads, each image as one ``<image>``; the arguments are its own."""
    training = bool(messages) and messages[-1].get("role") == "assistant"
    segments = _segments(messages, template, system_message, count=len(images(messages)), training=training)
    return "".join(text for text, _ in segments)


def _segments(
    messages: Sequence[Message],
    template: ChatTemplate,
    system_message: str | None,
    *,
    count: int,
    training: bool,
) -> Iterator[tuple[str, bool]]:
    """(text, supervised) pieces whose concatenation is the prompt; ``count`` is the number of images."""
    turns = list(enumerate(messages, 1))
    system = template.system_message if system_message is None else system_message
    numbers = iter(range(1, count + 1))
    if turns and messages[0].get("role") == "system":
        turn, message = turns.pop(0)
        if images([message]):
            raise ChatError("turn 1: a system message holds no images; move them to the first question")
        system = _text(message, turn, count, numbers)
    if not turns:
        raise ChatError(
            "the conversation has no question; the first message after the system's must come from the user"
        )
    yield template.system_role + system + template.sep, False
    for place, (turn, message) in enumerate(turns):
        role = message.get("role")
        _check_role(role, turn, expected=("user", "assistant")[place % 2])
        text = _text(message, turn, count, numbers)
        if training and template.strips_turns:  # the original strips in training only
            text = text.strip()
        if not text and (training or role == "user"):
            raise ChatError(f"turn {turn} ({role}) is empty; write a text or leave the turn out")
        if role == "user":
            yield template.user_role + text + template.sep, False
        else:
            yield template.assistant_role, False
            yield text + template.sep, True
    if not training:
        yield template.assistant_role, False


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


def _parts(message: Message, turn: int) -> list[Part]:
    """A message's content as parts of type "text" or "image" with their keys; a plain text becomes one part."""
    if not isinstance(message, Mapping):
        raise ChatError(f"turn {turn} is {type(message).__name__}; give role and content")
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple):
        raise ChatError(f"turn {turn}: the content is {type(content).__name__}; give a text or a list of parts")
    parts: list[Part] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if (kind == "text" and isinstance(part.get("text"), str)) or (kind == "image" and "image" in part):
            parts.append(part)
        elif kind == "image_url" and isinstance(part.get("image_url"), Mapping) and "url" in part["image_url"]:
            parts.append({**part, "type": "image", "image": part["image_url"]["url"]})
        elif kind in ("text", "image", "image_url"):
            needs = {"text": '"text": a text', "image": '"image": an image', "image_url": '"image_url": {"url": ...}'}
            raise ChatError(f'turn {turn}: a part of type "{kind}" needs {needs[kind]}')
        else:
            raise ChatError(f'turn {turn}: unknown part type "{kind}"; known: text, image, image_url')
    return parts


def _text(message: Message, turn: int, count: int, numbers: Iterator[int]) -> str:
    """A turn's text with ``<image>`` marks.

    Args:
        message: the turn.
        turn: its number, for errors.
        count: number of images in the conversation.
        numbers: the numbers of images not yet written.
    """
    parts = _parts(message, turn)
    marked = any(IMAGE in part["text"] for part in parts if part["type"] == "text")
    pieces = []
    for part in parts:
        if part["type"] == "text":
            for token in (IMAGE_CONTEXT, IMAGE_START, IMAGE_END):
                if token in part["text"]:
                    raise ChatError(f"turn {turn} holds the reserved text {token}; write {IMAGE} or add an image part")
            pieces.append(part["text"])
        else:
            number = next(numbers)
            if not marked:
                label = f"{part['name']}: " if part.get("name") else f"Image-{number}: " if count > 1 else ""
                pieces.append(f"{label}{IMAGE}\n")
    return "".join(pieces)


def _ambiguous(segments: Sequence[tuple[str, bool]], template: ChatTemplate, tokenizer: Tokenizer) -> bool:
    """Whether the original would lose count of a training sample's tokens and mask them all.

    It counts tokens that are not padding, and finds the turns by cutting the text at the separator; for templates that
    strip, at the assistant's header.
    """
    header = template.assistant_role
    if template.strips_turns:
        expected, cut = sum(text == header for text, _ in segments), header
    else:
        expected, cut = sum(text != header for text, _ in segments), template.sep
    whole = "".join(text for text, _ in segments)
    return whole.count(cut) != expected or bool(tokenizer.pad_token and tokenizer.pad_token in whole)


def _tokenise(segments: Sequence[tuple[str, bool]], tokenizer: Tokenizer) -> Encoded:
    """Ids turn by turn, which are those of the whole text, since every turn begins and ends with an added token.

    An answer is tokenised together with its header, and as many tokens as the header has alone are masked. Each image
    is a single context token here.
    """
    ids: list[int] = []
    labels: list[int] = []
    header = ""
    for place, (text, supervised) in enumerate(segments):
        text = text.replace(IMAGE, IMAGE_START + IMAGE_CONTEXT + IMAGE_END)
        if place == 0:
            own = _first_ids(tokenizer, text)
        elif not supervised and place + 1 < len(segments) and segments[place + 1][1]:
            header = text
            continue
        else:
            own = tokenizer.continue_ids(header + text if supervised else text)
        ids += own
        masked = _length(tokenizer, header) if supervised else len(own)
        labels += [IGNORE] * masked + own[masked:]
    return Encoded(input_ids=ids, labels=labels)


def _spread(encoded: Encoded, context: int, counts: Sequence[int]) -> Encoded:
    """Repeat the n-th context token ``counts[n]`` times."""
    ids: list[int] = []
    labels: list[int] = []
    begin = 0
    places = [place for place, number in enumerate(encoded.input_ids) if number == context]
    for place, count in zip(places, counts, strict=True):
        ids += encoded.input_ids[begin:place] + [context] * count
        labels += encoded.labels[begin:place] + [encoded.labels[place]] * count
        begin = place + 1
    return Encoded(input_ids=ids + encoded.input_ids[begin:], labels=labels + encoded.labels[begin:])


@functools.lru_cache(maxsize=64)
def _first_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The system turn's ids, the same in every conversation; not to be changed."""
    return tokenizer.encode(text)


@functools.lru_cache(maxsize=64)
def _length(tokenizer: Tokenizer, header: str) -> int:
    """Tokens of a header."""
    return len(tokenizer.continue_ids(header))
