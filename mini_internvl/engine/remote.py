"""A model behind an OpenAI-compatible server, answering through the same calls as an :class:`Engine`.

Written ``openai:http://host:port/v1#name``. Images travel as data URLs, several requests are under way at a time, and
what is likely to pass (429, 5xx, a timeout) is tried again. Tile limits are the server's own business. The key in the
environment variable OPENAI_API_KEY is sent if there is one; no other address than the given one is ever asked.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mini_internvl.engine.engine import Reply
from mini_internvl.engine.generate import GenerationConfig
from mini_internvl.inputs import chat
from mini_internvl.inputs.images import ImageError, load_image
from mini_internvl.records import Message

PREFIX = "openai:"
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that are worth another try."""
KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
"""First bytes of a file -> kind that servers take as it is; others are sent as PNG."""
LONGEST_WAIT = 60.0
"""Seconds between tries at most."""


class RemoteError(RuntimeError):
    """The server cannot be used; the message names it and says why."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a remote model is."""

    url: str
    """Up to and including the version, for instance ``http://localhost:8000/v1``."""
    model: str
    """Its name on the server."""

    @classmethod
    def read(cls, text: str) -> Address:
        """From ``openai:http://host:port/v1#name``; the prefix may be left out.

        Raises:
            ValueError: the text has another form.
        """
        url, _, model = text.removeprefix(PREFIX).partition("#")
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not model:
            raise ValueError(f'"{text}" is no address of a model; write {PREFIX}http://host:port/v1#model-name')
        return cls(url=url.rstrip("/"), model=model)


def is_remote(model: str | None) -> bool:
    """Whether a model's name is an address."""
    return bool(model) and str(model).startswith(PREFIX)


class RemoteEngine:
    """A model on a server.

    Args:
        address: where it is.
        concurrency: requests under way at a time.
        tries: of one request.
        pause: seconds before the second try; doubled each time.
        timeout: seconds to wait for one answer.
    """

    def __init__(
        self, address: Address, *, concurrency: int = 8, tries: int = 6, pause: float = 0.5, timeout: float = 300.0
    ) -> None:
        self.address, self.concurrency, self.tries, self.pause = address, concurrency, tries, pause
        self.timeout = timeout
        self.arithmetic = f"{PREFIX}{address.url}"
        self.reached = False
        local = (urllib.parse.urlsplit(address.url).hostname or "") in ("localhost", "127.0.0.1", "::1")
        handlers = [urllib.request.ProxyHandler({})] if local else []
        self.opener = urllib.request.build_opener(*handlers)

    def chat(
        self, messages: Sequence[Message], config: GenerationConfig | None = None, *, max_tiles: int | None = None
    ) -> Reply:
        """Answer one conversation."""
        began = time.monotonic()
        config = config or GenerationConfig()
        body: dict[str, Any] = {
            "model": self.address.model,
            "messages": [_turn(message, count, before) for message, count, before in _numbered(messages)],
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature,
        }
        if config.top_p < 1:
            body["top_p"] = config.top_p
        if config.seed is not None:
            body["seed"] = config.seed
        answer = self._post("chat/completions", body)
        usage = answer.get("usage") or {}
        return Reply(
            text=_text(answer, self.address.url).strip(),
            tiles=0,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            tokens=int(usage.get("completion_tokens") or 0),
            seconds=time.monotonic() - began,
        )

    def chat_batch(
        self,
        conversations: Sequence[Sequence[Message]],
        config: GenerationConfig | None = None,
        *,
        max_tiles: int | None = None,
    ) -> list[Reply]:
        """Answer several conversations, in their order."""
        replies = dict(self.chat_each(conversations, config, max_tiles=max_tiles))
        return [replies[place] for place in range(len(conversations))]

    def chat_each(
        self,
        conversations: Sequence[Sequence[Message]],
        config: GenerationConfig | None = None,
        *,
        max_tiles: int | None = None,
    ) -> Iterator[tuple[int, Reply]]:
        """(place, reply) of several conversations as the answers come.

        After a failure no new request is made, and what is under way is still handed out before the error is raised.
        """
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="remote")
        try:
            futures: dict[Future[Reply], int] = {
                pool.submit(self.chat, messages, config, max_tiles=max_tiles): place
                for place, messages in enumerate(conversations)
            }
            problem: BaseException | None = None
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                if error := future.exception():
                    problem = problem or error
                    for other in futures:
                        other.cancel()
                else:
                    yield futures[future], future.result()
            if problem:
                raise problem
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The server's JSON answer, after as many tries as it takes."""
        url = f"{self.address.url}/{path}"
        data = json.dumps(body).encode()
        wait = self.pause
        for number in range(1, self.tries + 1):
            reason, asked_wait, passing = self._try(url, data)
            if isinstance(reason, dict):
                self.reached = True
                return reason
            if not passing or number == self.tries:
                tried = f" ({number} tries)" if number > 1 else ""
                raise RemoteError(f"{url}: {reason}{tried}")
            time.sleep(min(max(wait, asked_wait), LONGEST_WAIT))
            wait *= 2
        raise AssertionError("every try returns or raises")

    def _try(self, url: str, data: bytes) -> tuple[dict[str, Any] | str, float, bool]:
        """The answer or what went wrong; the wait that the server asks for; whether it may pass."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        try:
            with self.opener.open(urllib.request.Request(url, data, headers), timeout=self.timeout) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return f"HTTP {error.code}, {_reason(error)}", _retry_after(error), error.code in PASSING
        except TimeoutError:
            return f"no answer within {self.timeout:.0f} s", 0.0, True
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
            cause = getattr(error, "reason", error)
            refused = isinstance(cause, ConnectionRefusedError)
            # A server that was never there will not come; one that was may be starting again.
            return f"no connection ({cause}); is the server running?", 0.0, self.reached or not refused
        except ValueError:
            return "the answer is no JSON; is this an OpenAI-compatible server?", 0.0, False
        if not isinstance(answer, dict):
            return "the answer is no JSON object; is this an OpenAI-compatible server?", 0.0, False
        return answer, 0.0, False


def _reason(error: urllib.error.HTTPError) -> str:
    """The server's own words about an error, in one line."""
    raw = error.read(4000).decode("utf-8", "replace")
    try:
        told = json.loads(raw)
        inner = told.get("error", told) if isinstance(told, dict) else told
        raw = str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)
    except ValueError:
        pass
    return (" ".join(raw.split()) or str(error.reason))[:300]


def _retry_after(error: urllib.error.HTTPError) -> float:
    try:
        return max(0.0, float(error.headers.get("Retry-After", 0)))
    except ValueError:
        return 0.0


def _text(answer: Mapping[str, Any], url: str) -> str:
    """The text of the first choice; what is no Unicode is replaced."""
    try:
        content = answer["choices"][0]["message"].get("content")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise RemoteError(f"{url}: the answer has no choices; is this an OpenAI-compatible server?") from None
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return str(content or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _numbered(messages: Sequence[Message]) -> Iterator[tuple[Message, int, int]]:
    """Each message with the number of images in all, and of those before it."""
    count, before = len(chat.images(messages)), 0
    for message in messages:
        yield message, count, before
        before += len(chat.images([message]))


def _turn(message: Message, count: int, before: int) -> dict[str, Any]:
    """A message in the server's form: images where a local model would have them, with the same names."""
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    images = iter(chat.images([message]))
    marked = any(chat.IMAGE in part["text"] for part in content if part["type"] == "text")
    parts: list[dict[str, Any]] = []
    for part in content:
        if part["type"] == "text":
            for place, text in enumerate(part["text"].split(chat.IMAGE) if marked else [part["text"]]):
                if place:
                    parts.append(_image(next(images)))
                if text:
                    parts.append({"type": "text", "text": text})
        elif not marked:
            before += 1
            label = part.get("name") or (f"Image-{before}" if count > 1 else "")
            if label:
                parts.append({"type": "text", "text": f"{label}: "})
            parts.append(_image(next(images)))
    return {"role": message["role"], "content": parts}


def _image(part: Any) -> dict[str, Any]:
    """An image of a message; one with a scale is enlarged here, as a server knows of none."""
    source, scale = part["image"], part.get("scale", 1)
    if scale != 1:
        image = load_image(source)
        source = image.resize((image.width * scale, image.height * scale), Image.Resampling.BILINEAR)
    return {"type": "image_url", "image_url": {"url": _data_url(source)}}


def _data_url(source: Any) -> str:
    """An image as it is, where servers take its kind; as PNG otherwise."""
    if isinstance(source, str) and source.startswith("data:"):
        return source
    if hasattr(source, "read"):
        source = source.read()
    if isinstance(source, str | os.PathLike):
        try:
            with open(source, "rb") as file:
                source = file.read()
        except OSError as error:
            raise ImageError(f"{os.fspath(source)} cannot be read: {error.strerror}") from None
    if hasattr(source, "read"):
        source = source.read()
    if isinstance(source, bytes | bytearray):
        kind = next((kind for start, kind in KINDS.items() if source.startswith(start)), None)
        if kind:
            return f"data:image/{kind};base64,{base64.b64encode(source).decode()}"
    buffer = io.BytesIO()
    load_image(source).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
