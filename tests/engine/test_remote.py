"""A model behind an OpenAI-compatible server: what is sent, what is tried again, what is said when it fails."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from PIL import Image

from mini_internvl.engine import GenerationConfig, constraints, remote
from mini_internvl.engine.remote import Address, RemoteEngine, RemoteError


def engine(server: Any, **settings: Any) -> RemoteEngine:
    return RemoteEngine(Address.read(server.model), **{"pause": 0.01, **settings})


def ask(text: str, *images: Any) -> list[Any]:
    return [
        {
            "role": "user",
            "content": [*({"type": "image", "image": p} for p in images), {"type": "text", "text": text}],
        }
    ]


def test_addresses() -> None:
    assert Address.read("openai:http://host:8000/v1/#org/name") == Address(url="http://host:8000/v1", model="org/name")
    for text in ("openai:http://host/v1", "openai:host#name", "ftp://host/v1#name", "#name"):
        with pytest.raises(ValueError, match="write openai:http://host:port/v1#model-name"):
            Address.read(text)


def test_settings_travel_when_they_are_not_the_defaults(fake_server: Any) -> None:
    form = constraints.json_schema({"type": "integer"})
    with fake_server.serve(lambda body: "7") as server:
        engine(server).chat(ask("What?"), GenerationConfig(stop=("a", "b"), top_k=4, seed=1, constraint=form))
    [body] = server.bodies
    assert (body["stop"], body["top_k"], body["seed"]) == (["a", "b"], 4, 1)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "integer"}
    assert not {"top_p", "min_p", "repetition_penalty"} & body.keys()
    for config in (GenerationConfig(constraint=constraints.regex("a")), GenerationConfig(logprobs=1)):
        with pytest.raises(ValueError, match="server"):
            engine(server).chat(ask("What?"), config)


def test_a_request(fake_server: Any, monkeypatch: pytest.MonkeyPatch, image: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with fake_server.serve(lambda body: " two words \n") as server:
        reply = engine(server).chat(ask("What?", image), GenerationConfig(max_new_tokens=9))
    assert (reply.text, reply.prompt_tokens, reply.tokens) == ("two words", 7, 2)
    [body] = server.bodies
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("fake", 9, 0.0)
    assert server.keys == ["Bearer secret"]
    shown, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    head, _, data = shown["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == image.read_bytes()


def test_images_have_the_names_and_places_that_a_local_model_sees(fake_server: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    image = Image.new("RGB", (2, 2), "red")
    bmp = io.BytesIO()
    image.save(bmp, "BMP")
    named = [{"type": "image", "image": image, "name": "Frame-1"}, {"type": "text", "text": "Q"}]
    marked = [{"type": "image", "image": bmp.getvalue()}, {"type": "text", "text": "see <image> here"}]
    with fake_server.serve(lambda body: "x") as server:
        engine(server).chat(ask("Q", image, image))
        engine(server).chat([{"role": "system", "content": "S"}, {"role": "user", "content": named}])
        engine(server).chat([{"role": "user", "content": marked}])
    kinds = [[part.get("text", "image") for part in body["messages"][-1]["content"]] for body in server.bodies]
    assert kinds == [["Image-1: ", "image", "Image-2: ", "image", "Q"], ["Frame-1: ", "image", "Q"],
                     ["see ", "image", " here"]]  # fmt: skip
    assert server.bodies[1]["messages"][0] == {"role": "system", "content": "S"}
    assert "image/png" in str(server.bodies[2])  # servers do not take BMP
    assert server.keys == [None] * 3


def test_a_image_with_a_scale_is_enlarged(fake_server: Any) -> None:
    part = {"type": "image", "image": Image.new("RGB", (3, 2), "red"), "scale": 2}
    with fake_server.serve(lambda body: "x") as server:
        engine(server).chat([{"role": "user", "content": [part, {"type": "text", "text": "Q"}]}])
    url = server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (6, 4)


def test_what_may_pass_is_tried_again(fake_server: Any) -> None:
    errors = iter([(429, "slow down", {"Retry-After": "0.02"}), (503, "", {}), (500, "{}", {})])
    with fake_server.serve(lambda body: next(errors, "done")) as server:
        assert engine(server).chat(ask("?")).text == "done"
        assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((404, '{"error": {"message": "no such model\\nhere"}}', {}), "HTTP 404, no such model here"),
        ((401, '{"error": "key"}', {}), "HTTP 401, key"),
        ((500, "broken", {}), r"HTTP 500, broken \(3 tries\)"),
        ((200, "<html>", {}), "no JSON"),
        ((200, "[]", {}), "no JSON object"),
        ((200, "{}", {}), "no choices"),
        ((200, '{"choices": 5}', {}), "no choices"),
        ((200, "[" * 100_000, {}), "no JSON"),
    ],
)
def test_failures_name_the_server(fake_server: Any, answer: Any, message: str) -> None:
    with fake_server.serve(lambda body: answer) as server, pytest.raises(RemoteError, match=message) as error:
        engine(server, tries=3).chat(ask("?"))
    assert server.url in str(error.value)


def test_a_server_that_is_not_there_fails_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        RemoteError, match=f"127.0.0.1:{port}/v1/chat/completions: no connection .*is the server running"
    ):
        RemoteEngine(Address(url=f"http://127.0.0.1:{port}/v1", model="m")).chat(ask("?"))


def test_a_reply_that_breaks_off_is_tried_again(fake_server: Any) -> None:
    whole = '{"choices": [{"message": {"content": "done"}}]}'
    answers = iter([(200, whole[:20], {"Content-Length": "47"}), (200, whole, {})])
    with fake_server.serve(lambda body: next(answers)) as server:
        assert engine(server).chat(ask("?")).text == "done"
        assert len(server.bodies) == 2


def test_a_timeout_is_tried_again(fake_server: Any) -> None:
    release = threading.Event()
    calls: list[int] = []

    def answer(body: Any) -> str:
        calls.append(1)
        if len(calls) == 1:
            release.wait(10)
        return "late"

    with fake_server.serve(answer) as server:
        assert engine(server, timeout=0.3).chat(ask("?")).text == "late"
        release.set()
    assert len(calls) == 2


def test_requests_are_under_way_together_and_come_back_in_order(fake_server: Any) -> None:
    barrier = threading.Barrier(4, timeout=10)

    def answer(body: Any) -> str:
        barrier.wait()
        return str(fake_server.prompt(body))

    with fake_server.serve(answer) as server:
        replies = engine(server, concurrency=4).chat_batch([ask(f"q{i}") for i in range(8)])
    assert [reply.text for reply in replies] == [f"q{i}" for i in range(8)]


def test_a_failure_ends_the_asking(fake_server: Any) -> None:
    with fake_server.serve(lambda body: (400, "bad", {})) as server:
        with pytest.raises(RemoteError, match="HTTP 400"):
            list(engine(server, concurrency=1).chat_each([ask(f"q{i}") for i in range(300)]))
        assert len(server.bodies) < 300


def test_after_a_failure_what_was_answered_is_handed_out(fake_server: Any) -> None:
    barrier = threading.Barrier(2, timeout=30)

    def answer(body: Any) -> Any:
        barrier.wait()
        return (400, "bad", {}) if "q0" in fake_server.prompt(body) else "good"

    got: list[tuple[int, str]] = []
    with fake_server.serve(answer) as server:
        replies = engine(server, concurrency=2).chat_each([ask("q0"), ask("q1")])
        with pytest.raises(RemoteError, match="HTTP 400"):
            got.extend((place, reply.text) for place, reply in replies)
    assert got == [(1, "good")]


def test_text_that_is_no_unicode_is_replaced(fake_server: Any) -> None:
    broken = '{"choices": [{"message": {"content": "a\\ud83d"}}]}'
    with fake_server.serve(lambda body: (200, broken, {})) as server:
        assert engine(server).chat(ask("?")).text == "a\ufffd"


def test_no_redirect_is_followed(fake_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with fake_server.serve(lambda body: "from elsewhere") as elsewhere:
        for status in (301, 302, 303, 307, 308):
            there = (status, "", {"Location": f"{elsewhere.url}/chat/completions"})
            with fake_server.serve(lambda body, there=there: there) as server:
                with pytest.raises(RemoteError, match=f"HTTP {status}, a redirect, which is not followed"):
                    engine(server).chat(ask("?"))
                assert len(server.bodies) == 1
        assert not elsewhere.bodies


def test_a_reply_is_bounded_in_size(fake_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LARGEST", 10_000)
    with fake_server.serve(lambda body: "x" * 20_000) as server:
        with pytest.raises(RemoteError, match="the answer has more than 10,000 bytes"):
            engine(server).chat(ask("?"))
        assert len(server.bodies) == 1


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_server_that_drips_is_left_when_the_time_is_over(part: str) -> None:
    """Every read of the drip is quick; only the whole takes for ever."""
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n" + (b"\r\n" if part == "body" else b"X-Slow: ")
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(start)
            while not over.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=[listener], daemon=True)
        thread.start()
        address = Address(url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", model="m")
        began = time.monotonic()
        with pytest.raises(RemoteError, match="no answer within 0 s"):
            RemoteEngine(address, timeout=0.4, tries=1).chat(ask("?"))
        assert time.monotonic() - began < 5
        over.set()
        thread.join()


@pytest.mark.parametrize(
    "usage", ['["a"]', '{"prompt_tokens": NaN, "completion_tokens": "7"}', "3", '{"prompt_tokens": -1}']
)
def test_odd_counts_of_tokens_count_as_none(fake_server: Any, usage: str) -> None:
    body = f'{{"choices": [{{"message": {{"content": "fine"}}}}], "usage": {usage}}}'
    with fake_server.serve(lambda _: (200, body, {})) as server:
        reply = engine(server).chat(ask("?"))
    assert (reply.text, reply.prompt_tokens, reply.tokens, reply.odd) == ("fine", 0, 0, "")


@pytest.mark.parametrize(
    ("content", "text", "odd"),
    [
        ('[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]', "ab", ""),
        ("null", "", ""),
        ('[{"type": "text", "text": 5}]', '[{"type": "text", "text": 5}]', "its content is a list of more than texts"),
        ("[3]", "[3]", "its content is a list of more than texts"),
        ("7", "7", "its content is int"),
        ('{"text": "a"}', '{"text": "a"}', "its content is dict"),
    ],
)
def test_an_odd_reply_is_kept_for_reading(fake_server: Any, content: str, text: str, odd: str) -> None:
    body = f'{{"choices": [{{"message": {{"content": {content}}}}}]}}'
    with fake_server.serve(lambda _: (200, body, {})) as server:
        reply = engine(server).chat(ask("?"))
    assert (reply.text, reply.odd) == (text, odd)


@pytest.mark.parametrize("place", ["a try", "the wait before another"])
def test_an_interrupt_ends_what_is_under_way(place):
    """The process is gone at once: no thread goes on through its time limit and its other tries."""
    program = """
import os, signal, socket, sys, threading, time
from mini_internvl.engine.remote import Address, RemoteEngine

server = socket.socket()
server.bind(("127.0.0.1", 0))
server.listen(16)  # takes connections and never answers
limits = {"timeout": 60, "tries": 3} if sys.argv[1] == "a try" else {"timeout": 0.2, "tries": 3, "pause": 60}
engine = RemoteEngine(Address(url=f"http://127.0.0.1:{server.getsockname()[1]}/v1", model="m"), **limits)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests are a job in the background
threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
began = time.monotonic()
try:
    list(engine.chat_each([[{"role": "user", "content": "x"}]] * 3))
except KeyboardInterrupt:
    print("interrupted", flush=True)
for thread in threading.enumerate():
    if thread.name.startswith("remote"):
        thread.join()
print(f"{time.monotonic() - began:.1f}")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program, place], capture_output=True, text=True, env=environment, timeout=50
    )
    assert done.returncode == 0, done.stderr
    said, seconds = done.stdout.split()
    assert said == "interrupted"
    assert float(seconds) < 20


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as caught:
        Address.read("openai:http://me:secret@host/v1#m")
    assert "secret" not in str(caught.value)
