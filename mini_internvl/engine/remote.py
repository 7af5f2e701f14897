"""A model behind an OpenAI-compatible server, answering through the same calls as an :class:`Engine`.

Written ``openai:http://host:port/v1#name``. Images travel as data URLs, several requests are under way at a time, and
what is likely to pass (429, 5xx, a timeout) is tried again. Tile limits are the server's own business. The key in the
environment variable OPENAI_API_KEY is sent if there is one; no other address than the given one is ever asked:
redirects are not followed. An answer is bounded in size and in the time from request to last byte.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from mini_internvl.engine.reply import Reply
from mini_internvl.engine.sampling import GenerationConfig
from mini_internvl.inputs.messages import Messages
from mini_internvl.inputs.openai import read_reply, to_wire

PREFIX = "openai:"
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})  # statuses that are worth another try
LARGEST = 16_000_000  # bytes of an answer at most
LONGEST_WAIT = 60.0  # seconds between tries at most


class RemoteError(RuntimeError):
    """The server cannot be used; the message names it and says why."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a remote model is, and its name there."""

    url: str  # up to and including the version, for instance ``http://localhost:8000/v1``
    model: str

    @classmethod
    def read(cls, text: str) -> Address:
        """From ``openai:http://host:port/v1#name``; the prefix may be left out. ValueError for any other form."""
        url, _, model = text.removeprefix(PREFIX).partition("#")
        parts = urllib.parse.urlsplit(url)
        if parts.username or parts.password:
            raise ValueError("the address of a model holds a user or password; give a key as OPENAI_API_KEY instead")
        if parts.scheme not in ("http", "https") or not parts.hostname or not model:
            raise ValueError(f'"{text}" is no address of a model; write {PREFIX}http://host:port/v1#model-name')
        return cls(url=url.rstrip("/"), model=model)


def is_remote(model: str | None) -> bool:
    """Whether a model's name is an address."""
    return bool(model) and str(model).startswith(PREFIX)


class RemoteEngine:
    """A model on a server; ``concurrency`` requests are under way at a time.

    Each request has ``tries`` tries, the second after ``pause`` seconds, doubled each time, and each try ``timeout``
    seconds to the last byte of its answer.
    """

    def __init__(
        self, address: Address, *, concurrency: int = 8, tries: int = 6, pause: float = 0.5, timeout: float = 300.0
    ) -> None:
        self.address, self.concurrency = address, concurrency
        self.tries, self.pause, self.timeout = tries, pause, timeout
        self.arithmetic = f"{PREFIX}{address.url}"
        self.reached = False
        self.local = (urllib.parse.urlsplit(address.url).hostname or "") in ("localhost", "127.0.0.1", "::1")

    def chat(
        self, messages: Messages, config: GenerationConfig | None = None, *, max_tiles: int | None = None
    ) -> Reply:
        """Answer one conversation."""
        return self._chat(messages, config or GenerationConfig(), _Requests())

    def _chat(self, messages: Messages, config: GenerationConfig, requests: _Requests) -> Reply:
        began = time.monotonic()
        body: dict[str, Any] = {"model": self.address.model, "messages": to_wire(messages)}
        body |= _settings(config)
        answer = self._post(body, requests)
        try:
            return Reply(tiles=0, seconds=time.monotonic() - began, **read_reply(answer))
        except ValueError as error:
            raise RemoteError(f"{self.address.url}: {error}") from None

    def chat_batch(
        self, conversations: Sequence[Messages], config: GenerationConfig | None = None, *, max_tiles: int | None = None
    ) -> list[Reply]:
        """Answer several conversations, in their order."""
        replies = dict(self.chat_each(conversations, config, max_tiles=max_tiles))
        return [replies[place] for place in range(len(conversations))]

    def chat_each(
        self, conversations: Sequence[Messages], config: GenerationConfig | None = None, *, max_tiles: int | None = None
    ) -> Iterator[tuple[int, Reply]]:
        """(place, reply) of several conversations as the answers come.

        After a failure no new request is made, and what is under way is still handed out before the error is raised.
        An interrupt, and a caller that wants no more, end the requests under way at once.
        """
        pool, requests = ThreadPoolExecutor(self.concurrency, thread_name_prefix="remote"), _Requests()
        config = config or GenerationConfig()
        try:
            futures: dict[Future[Reply], int] = {
                pool.submit(self._chat, messages, config, requests): place
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
            requests.end()

    def _post(self, body: Mapping[str, Any], requests: _Requests) -> dict[str, Any]:
        """The server's JSON answer, after as many tries as it takes."""
        url = f"{self.address.url}/chat/completions"
        data = json.dumps(body).encode()
        for number in range(1, self.tries + 1):
            result, server_wait, passing = self._try(url, data, requests)
            if isinstance(result, dict):
                self.reached = True
                return result
            if not passing or number == self.tries or requests.ended.is_set():
                tried = f" ({number} tries)" if number > 1 else ""
                raise RemoteError(f"{url}: {result}{tried}")
            wait = max(self.pause * 2.0 ** min(number - 1, 99), server_wait)
            requests.ended.wait(min(wait, LONGEST_WAIT))
        raise AssertionError("every try returns or raises")

    def _try(self, url: str, data: bytes, requests: _Requests) -> tuple[dict[str, Any] | str, float, bool]:
        """The answer or what went wrong; the wait that the server asks for; whether it may pass."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, data, headers)
        try:
            with requests.under_way(_Fetch(self.timeout, proxies=not self.local)) as fetch:
                status, wait, content = fetch(request)
            if not 200 <= status < 300:
                return f"HTTP {status}, {_reason(status, content)}", wait, status in PASSING
            if len(content) > LARGEST:
                return f"the answer has more than {LARGEST:,} bytes; is this an OpenAI-compatible server?", 0.0, False
            answer = json.loads(content)
        except TimeoutError:
            return f"no answer within {self.timeout:.0f} s", 0.0, True
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            refused = isinstance(cause, ConnectionRefusedError)
            # A server that was never there will not come; one that was may be starting again.
            return f"no connection ({cause}); is the server running?", 0.0, self.reached or not refused
        except (ValueError, RecursionError):
            return "the answer is no JSON; is this an OpenAI-compatible server?", 0.0, False
        if not isinstance(answer, dict):
            return "the answer is no JSON object; is this an OpenAI-compatible server?", 0.0, False
        return answer, 0.0, False


def _settings(config: GenerationConfig) -> dict[str, Any]:
    """What a request says of how its answer is drawn; only what differs from the defaults, which all servers know.

    ValueError for a setting that no server takes.
    """
    plain = GenerationConfig()
    if config.no_repeat_ngram or config.logprobs is not None or config.beams > 1:
        raise ValueError("no_repeat_ngram, logprobs and beams are not asked of a server; leave them out")
    body: dict[str, Any] = {"max_tokens": config.max_new_tokens, "temperature": config.temperature}
    for name in ("top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop"):
        if (value := getattr(config, name)) != getattr(plain, name):
            body[name] = value
    if config.constraint:
        if config.constraint.kind != "json":
            raise ValueError(f"a server holds answers to a JSON schema, but not to a {config.constraint.kind}")
        schema = {"name": "answer", "schema": json.loads(config.constraint.text)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


class _Requests:
    """Requests that are made together, so that they can be ended together."""

    def __init__(self) -> None:
        self.ended, self.fetches = threading.Event(), set[_Fetch]()

    @contextlib.contextmanager
    def under_way(self, fetch: _Fetch) -> Iterator[_Fetch]:
        """Count a request among them while it is made."""
        self.fetches.add(fetch)
        try:
            fetch.timer.start()
            if self.ended.is_set():
                fetch.end()
            yield fetch
        finally:
            fetch.timer.cancel()
            self.fetches.discard(fetch)

    def end(self) -> None:
        """Shut every connection; nothing is tried again."""
        self.ended.set()
        for fetch in list(self.fetches):
            fetch.end()


class _AsItIs(urllib.request.HTTPErrorProcessor):
    """Every response is handed out: no error is raised, and no redirect followed."""

    def http_response(self, request: urllib.request.Request, response: Any) -> Any:
        return response

    https_response = http_response


class _Fetch(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """One request within a time limit: when it is over, the connection is shut, whatever the server is sending."""

    def __init__(self, seconds: float, *, proxies: bool) -> None:
        super().__init__()
        self.seconds, self.over = seconds, False
        self.sockets: list[socket.socket] = []
        self.timer = threading.Timer(seconds, self.end)
        self.timer.daemon = True
        direct = [] if proxies else [urllib.request.ProxyHandler({})]
        self.opener = urllib.request.build_opener(self, _AsItIs, *direct)

    def __call__(self, request: urllib.request.Request) -> tuple[int, float, bytes]:
        """Status, seconds to wait before another try, and content, of which more than LARGEST bytes are cut.

        TimeoutError when it took too long; OSError or http.client.HTTPException without a whole answer.
        """
        if self.over:
            raise TimeoutError
        try:
            with self.opener.open(request, timeout=self.seconds) as response:
                content: bytes = response.read(LARGEST + 1)
                status, wait = response.status, _seconds(response.headers.get("Retry-After"))
                if response.length and len(content) <= LARGEST:
                    raise http.client.IncompleteRead(content)
        except (OSError, http.client.HTTPException) as error:
            if self.over or isinstance(getattr(error, "reason", None), TimeoutError):
                raise TimeoutError from None
            raise
        if self.over:
            raise TimeoutError
        return status, wait, content

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(functools.partial(self._connection, http.client.HTTPConnection), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        kind = functools.partial(http.client.HTTPSConnection, context=ssl.create_default_context())
        return self.do_open(functools.partial(self._connection, kind), request)

    def _connection(self, kind: Any, *arguments: Any, **named: Any) -> Any:
        connection = kind(*arguments, **named)
        connect = connection.connect

        def noted() -> None:
            connect()
            self.sockets.append(connection.sock)
            if self.over:
                self.end()

        connection.connect = noted
        return connection

    def end(self) -> None:
        """Shut the connection: whoever waits for it gets a TimeoutError."""
        self.over = True
        for one in self.sockets:
            with contextlib.suppress(OSError):  # closed already
                one.shutdown(socket.SHUT_RDWR)


def _reason(status: int, content: bytes) -> str:
    """The server's own words about an error, in one line."""
    if 300 <= status < 400:
        return "a redirect, which is not followed; give the address that it leads to if you trust it"
    raw = content[:4000].decode("utf-8", "replace")
    try:
        answer = json.loads(raw)
        inner = answer.get("error", answer) if isinstance(answer, dict) else answer
        raw = str(inner.get("message", inner)) if isinstance(inner, dict) else str(inner)
    except (ValueError, RecursionError):
        pass
    return (" ".join(raw.split()) or http.client.responses.get(status, ""))[:300]


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0
