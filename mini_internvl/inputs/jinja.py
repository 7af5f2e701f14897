"""Chat templates as Jinja text, for programs that render conversations themselves: transformers, vLLM, llama.cpp.

The turns are those of :func:`chat.encode`. What stands for an image in a message differs between programs, and so does
the part of the template that writes a message's content.
"""

from __future__ import annotations

import json
import re

from mini_internvl.inputs import chat
from mini_internvl.inputs.messages import PLACEHOLDER
from mini_internvl.inputs.tokenizer import SentencePieceTokenizer, Tokenizer
from mini_internvl.records import ChatTemplate


def chat_template(
    template: ChatTemplate, bos: str = "", system_message: str | None = None, *, marked: bool = False
) -> str:
    """A Jinja template that renders what :func:`chat.encode` renders, ``<IMG_CONTEXT>`` once for each image.

    A message whose text has ``<image>`` says itself where its images go.

    Args:
        bos: stands in front of everything; see :func:`begin`.
        system_message: replaces the template's when it is not ``None``.
        marked: for llama.cpp, whose messages are texts with a marker such as ``<__media__>`` in place of each image. It
            stays, for the program to write the image there; names of images are not known.
    """
    text = {
        "BOS": bos,
        "DEFAULT": template.system_message if system_message is None else system_message,
        "SYSTEM": template.system_role,
        "USER": template.user_role,
        "ASSISTANT": template.assistant_role,
        "SEP": template.sep,
        "PLACEHOLDER": PLACEHOLDER,
        "CONTEXT": chat.IMAGE_CONTEXT,
    }
    whole = _COUNT + (_MARKED if marked else _PARTS) + _TURNS
    return re.sub(r"@(\w+)@", lambda found: json.dumps(text[found[1]], ensure_ascii=False), whole)


def bos_token(tokenizer: Tokenizer) -> str:
    """The token that every text begins with, or nothing."""
    ids = tokenizer.encode("")
    if isinstance(tokenizer, SentencePieceTokenizer) and ids:
        return str(tokenizer.model.id_to_piece(ids[0]))
    return next((token.content for token in tokenizer.added.values() if [token.id] == ids), "")


def begin(tokenizer: Tokenizer, template: ChatTemplate) -> str:
    """What a rendered conversation begins with: BOS, and the lone space that Phi-3 has before its first token."""
    bos = bos_token(tokenizer)
    first = template.system_role
    lone = bos and len(tokenizer.encode(first)) - 1 > len(tokenizer.continue_ids(first))
    return bos + (" " if lone else "")


_COUNT = """\
{%- set count = namespace(all=0, shown=0) -%}
"""
_PARTS = """\
{%- for message in messages if message.content is not string -%}
{%- for part in message.content if part.type in ("image", "image_url") -%}
{%- set count.all = count.all + 1 -%}
{%- endfor -%}
{%- endfor -%}
{%- macro render(content) -%}
{%- if content is string -%}
{{- content | replace(@PLACEHOLDER@, @CONTEXT@) -}}
{%- else -%}
{%- set here = namespace(marked=false) -%}
{%- for part in content if part.type == "text" and @PLACEHOLDER@ in part.text -%}
{%- set here.marked = true -%}
{%- endfor -%}
{%- for part in content -%}
{%- if part.type == "text" -%}
{{- part.text | replace(@PLACEHOLDER@, @CONTEXT@) -}}
{%- elif part.type == "video" -%}
{{- video_token | default("") -}}{{- "\\n" -}}
{%- elif part.type in ("image", "image_url") -%}
{%- set count.shown = count.shown + 1 -%}
{%- if not here.marked -%}
{%- if part.name -%}
{{- part.name + ": " -}}
{%- elif count.all > 1 -%}
{{- "Image-" ~ count.shown ~ ": " -}}
{%- endif -%}
{{- @CONTEXT@ + "\\n" -}}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
_MARKED = """\
{%- for message in messages if message.content is string -%}
{%- set count.all = count.all + message.content.split("<__media") | length - 1 -%}
{%- endfor -%}
{%- macro render(content) -%}
{%- if content is not string -%}
{%- for part in content if part.type == "text" -%}
{{- part.text -}}
{%- endfor -%}
{%- elif "<__media" not in content -%}
{{- content -}}
{%- else -%}
{%- for piece in content.split("<__media") -%}
{%- if loop.first -%}
{{- piece -}}
{%- elif "__>" not in piece -%}
{{- "<__media" + piece -}}
{%- else -%}
{%- set count.shown = count.shown + 1 -%}
{%- if count.all > 1 -%}
{{- "Image-" ~ count.shown ~ ": " -}}
{%- endif -%}
{%- set ends = piece.split("__>", 1) -%}
{{- "<__media" + ends[0] + "__>" -}}
{%- if not ends[-1].startswith("\\n") -%}{{- "\\n" -}}{%- endif -%}
{{- ends[-1] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
_TURNS = """\
{{- @BOS@ -}}
{%- if messages and messages[0].role == "system" -%}
{{- @SYSTEM@ -}}{{- render(messages[0].content) -}}{{- @SEP@ -}}
{%- else -%}
{{- @SYSTEM@ + @DEFAULT@ + @SEP@ -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == "user" -%}
{{- @USER@ -}}{{- render(message.content) -}}{{- @SEP@ -}}
{%- elif message.role == "assistant" -%}
{{- @ASSISTANT@ -}}{{- render(message.content) -}}{{- @SEP@ -}}
{%- elif not (loop.first and message.role == "system") -%}
{{- raise_exception("unknown role, or a system message that is not the first: " ~ message.role) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- @ASSISTANT@ -}}
{%- endif -%}
"""
