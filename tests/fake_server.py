"""An OpenAI-compatible server in a thread that answers from a script and notes what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """What the test sees."""

    answer: Callable[[dict[str, Any]], Any]
    """Request body -> the text of the reply, or (status, body text, headers) of an error."""
    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Requests in the order in which they came."""
    keys: list[str | None] = field(default_factory=list)
    """Their Authorization headers."""
    answered: list[str] = field(default_factory=list)
    """Requests whose reply was sent, as JSON."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def model(self) -> str:
        return f"openai:{self.url}#fake"


def prompt(body: dict[str, Any]) -> str:
    """All text of a request."""
    contents = [message["content"] for message in body["messages"]]
    parts = [part for c in contents for part in ([{"type": "text", "text": c}] if isinstance(c, str) else c)]
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


@contextmanager
def serve(answer: Callable[[dict[str, Any]], Any]) -> Iterator[Server]:
    """Run a server until the end of the block."""
    server = Server(answer=answer)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.bodies.append(body)
                server.keys.append(self.headers["Authorization"])
            assert self.path == "/v1/chat/completions"
            found = server.answer(body)
            if isinstance(found, str):
                choice = {"message": {"role": "assistant", "content": found}}
                found = (
                    200,
                    json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}),
                    {},
                )
            status, text, headers = found
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())
            except (BrokenPipeError, ConnectionResetError):  # the client was killed
                return
            with lock:
                server.answered.append(json.dumps(body))

        def log_message(self, *arguments: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *arguments: object) -> None:
            pass

    http = Quiet(("127.0.0.1", 0), Handler)
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
