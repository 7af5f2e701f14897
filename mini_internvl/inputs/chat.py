"""Messages -> token ids and supervision mask: the only renderer, used by training, answering and evaluation alike.

A conversation is cut into segments (headers, questions, answers) and the mask follows the segments; the ids are those
of the whole text, as in the original. Supervised are each answer and the separator after it, nothing else.
Templates: ``internvl/conversation.py``; masks: ``internvl/train/dataset.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

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
    """The picture parts of a conversation in reading order, each with its source under ``"image"``."""
    found: list[Part] = []
    for turn, message in enumerate(messages, 1):
        content = message["content"]
        if isinstance(content, str):
            continue
        for part in content:
            kind = part.get("type")
            if kind == "image":
                found.append(part)
            elif kind == "image_url":
                found.append({**part, "image": part["image_url"]["url"]})
            elif kind != "text":
                raise ChatError(f'turn {turn}: unknown part type "{kind}"; known: text, image, image_url')
    return found


def tile_limits(n_images: int, max_tiles: int) -> int:
    """Tile limit of each picture when several share ``max_tiles`` (``internvl_chat_finetune.py``)."""
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

    Args:
        messages: OpenAI shape. Ending with a question, the assistant's turn is opened for an answer; ending with an
            answer, it is a training sample.
        tokenizer: of the checkpoint.
        template: of the checkpoint.
        tiles: number of tiles of each picture, in reading order.
        tokens_per_tile: visual tokens of one tile.
        system_message: used when the conversation has none; ``None`` takes the template's. "" is a valid message.

    Returns:
        Ids, BOS first where the tokenizer has one, and labels.

    Raises:
        ChatError: roles out of order, an unknown part, reserved text, or another number of pictures than ``tiles``.
    """
    segments = list(_segments(messages, template, system_message))
    return _tokenise(_place_images(segments, tiles, tokens_per_tile), tokenizer)


def _segments(
    messages: Sequence[Message], template: ChatTemplate, system_message: str | None
) -> Iterator[tuple[str, bool]]:
    """(text, supervised) pieces whose concatenation is the prompt."""
    turns = list(messages)
    system = template.system_message if system_message is None else system_message
    if turns and turns[0]["role"] == "system":
        system = _text(turns.pop(0), 1, 0)
        first = 2
    else:
        first = 1
    if not turns:
        raise ChatError("the conversation is empty")
    strips = template.strips_turns and turns[-1]["role"] == "assistant"  # the original strips in training only
    count = len(images(messages))
    counter = iter(range(1, count + 1))
    yield template.system_role + system + template.sep, False
    for place, message in enumerate(turns):
        turn, role = first + place, message["role"]
        if role not in ROLES:
            raise ChatError(f'turn {turn}: unknown role "{role}"; known: {", ".join(ROLES)}')
        if role != ("user", "assistant")[place % 2]:
            raise ChatError(f"turn {turn} is from {role}; questions and answers must alternate, a question first")
        text = _text(message, turn, count, counter)
        if strips:
            text = text.strip()
        if role == "user":
            yield template.user_role + text + template.sep, False
        else:
            yield template.assistant_role, False
            yield text + template.sep, True
    if turns[-1]["role"] == "user":
        yield template.assistant_role, False


def _text(message: Message, turn: int, count: int, counter: Iterator[int] | None = None) -> str:
    """A turn's text with ``<image>`` marks; ``count`` is the number of pictures in the conversation."""
    content = message["content"]
    if isinstance(content, str):
        _refuse_reserved(content, turn)
        return content
    if not content:
        raise ChatError(f"turn {turn} is empty")
    texts = [part["text"] for part in content if part.get("type") == "text"]
    marked = any(IMAGE in text for text in texts)
    pieces = []
    for part in content:
        if part.get("type") == "text":
            _refuse_reserved(part["text"], turn)
            pieces.append(part["text"])
        else:
            number = next(counter) if counter else 1
            if not marked:
                label = f"{part['name']}: " if part.get("name") else f"Image-{number}: " if count > 1 else ""
                pieces.append(f"{label}{IMAGE}\n")
    return "".join(pieces)


def _refuse_reserved(text: str, turn: int) -> None:
    for token in (IMAGE_CONTEXT, IMAGE_START, IMAGE_END):
        if token in text:
            raise ChatError(f"turn {turn} holds the reserved text {token}; write {IMAGE} or add a picture part")


def _place_images(
    segments: Sequence[tuple[str, bool]], tiles: Sequence[int], tokens_per_tile: int
) -> list[tuple[str, bool]]:
    """Replace each ``<image>`` by its run of visual tokens."""
    marks = sum(text.count(IMAGE) for text, _ in segments)
    if marks != len(tiles):
        raise ChatError(f"the conversation has {marks} {IMAGE} marks but {len(tiles)} pictures")
    rest = iter(tiles)
    placed = []
    for text, supervised in segments:
        head, *tails = text.split(IMAGE)
        for tail in tails:
            head += IMAGE_START + IMAGE_CONTEXT * (next(rest) * tokens_per_tile) + IMAGE_END + tail
        placed.append((head, supervised))
    return placed


def _tokenise(segments: Sequence[tuple[str, bool]], tokenizer: Tokenizer) -> Encoded:
    """Ids turn by turn, which are those of the whole text, since every turn begins and ends with an added token.

    An answer is tokenised together with its header, and as many tokens as the header has alone are masked.
    """
    ids: list[int] = []
    labels: list[int] = []
    header = ""
    for place, (text, supervised) in enumerate(segments):
        if place == 0:
            own = list(_first_ids(tokenizer, text))
        elif not supervised and place + 1 < len(segments) and segments[place + 1][1]:
            header = text
            continue
        else:
            own = tokenizer.continue_ids(header + text if supervised else text)
        ids += own
        masked = len(tokenizer.continue_ids(header)) if supervised else len(own)
        labels += [IGNORE] * masked + own[masked:]
    return Encoded(input_ids=ids, labels=labels)


@functools.lru_cache(maxsize=64)
def _first_ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The system turn's ids, the same in every conversation."""
    return tuple(tokenizer.encode(text))
