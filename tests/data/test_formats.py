"""Rows as people write them: roles, images beside and inside, values of the wrong kind."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from mini_internvl.data import Fault, Row
from mini_internvl.data.rows import to_sample
from mini_internvl.records import Sample

ROOT = Path("/data")


def read(raw, **options):
    return to_sample(Row(file=ROOT / "rows.jsonl", place="line 2", raw=raw, id="1"), **options)


def turns(*texts, names=("human", "gpt")):
    return [{"from": names[i % 2], "value": text} for i, text in enumerate(texts)]


def messages(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def content(sample, turn=0):
    """(images, text) of a turn."""
    assert isinstance(sample, Sample), sample
    said = sample.messages[turn]["content"]
    if isinstance(said, str):
        return [], said
    return [p["image"] for p in said if p["type"] == "image"], "".join(p["text"] for p in said if p["type"] == "text")


A, B = str(ROOT / "a.png"), str(ROOT / "b.png")


@pytest.mark.parametrize(
    ("raw", "images", "text"),
    [
        ({"image": "a.png", "conversations": turns("What?", "A.")}, [A], "What?"),
        ({"image": "a.png", "conversations": turns("<image>\nWhat?", "A.")}, [A], "What?"),
        ({"image": "a.png", "conversations": turns("Is <image> red?", "A.")}, [A], "Is <image> red?"),
        ({"image": ["a.png", "b.png"], "conversations": turns("What?", "A.")}, [A, B], "What?"),
        ({"images": ["a.png", "b.png"], "conversations": turns("<image><image>?", "A.")}, [A, B], "<image><image>?"),
        ({"images": ["a.png"], "conversations": turns("What?", "A.")}, [A], "What?"),
        ({"messages": messages("What?", "A."), "images": ["a.png", "b.png"]}, [A, B], "What?"),
        ({"messages": messages("<image>What?", "A."), "images": ["a.png"]}, [A], "<image>What?"),
        ({"messages": messages("What?", "A."), "image": "a.png"}, [A], "What?"),
        ({"query": "<image>What?", "response": "A.", "images": ["a.png"]}, [A], "<image>What?"),
        ({"conversations": turns("See <img>a.png</img> what?", "A.")}, [A], "See <image> what?"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                       *messages("", "A.")[1:]], "images": ["a.png"]}, [A], "What?"),
        ({"image": "data:image/png;base64,AA", "conversations": turns("What?", "A.")},
         ["data:image/png;base64,AA"], "What?"),
        ({"image": float("nan"), "conversations": turns("What?", "A.")}, [], "What?"),
        ({"image": {"bytes": None, "path": "a.png"}, "conversations": turns("What?", "A.")}, [A], "What?"),
        ({"images": [{"bytes": b"\x89PNG", "path": "x"}], "messages": messages("What?", "A.")}, [b"\x89PNG"], "What?"),
        ({"messages": messages("What?", "A."), "images": []}, [], "What?"),
        ({"conversations": turns("What does \\<image> do in SVG?", "A.")}, [], "What does \\<image> do in SVG?"),
        ({"image": "a.png", "conversations": turns("Is \\<image> in it?", "A.")}, [A], "Is \\<image> in it?"),
    ],
)  # fmt: skip
def test_images_reach_the_first_question(raw, images, text):
    assert content(read(raw)) == (images, text)


def test_images_follow_their_marks_over_the_turns():
    sample = read({"image": ["a", "b", "c"], "conversations": turns("1: <image> 2: <image>", "x", "now <image>", "y")})
    assert content(sample) == (["/data/a", "/data/b"], "1: <image> 2: <image>")
    assert content(sample, 2) == (["/data/c"], "now <image>")


def test_both_vocabularies_of_roles_are_read():
    raw = {"conversations": [{"from": "system", "value": "S"}, *turns("Q", "A", names=("user", "assistant"))]}
    assert [message["role"] for message in read(raw).messages] == ["system", "user", "assistant"]
    raw = {"messages": [{"role": "human", "content": "Q"}, {"role": "gpt", "content": "A"}]}
    assert [message["role"] for message in read(raw).messages] == ["user", "assistant"]


def test_a_first_turn_that_no_one_asked_for_is_left_out():
    assert read({"conversations": turns("hi", "Q", "A", names=("gpt", "human"))}).messages == messages("Q", "A")


def test_earlier_exchanges_come_before_the_query():
    raw = {"query": "Q2", "response": "A2", "history": [["Q1", "A1"]], "system": "S"}
    assert [message["content"] for message in read(raw).messages] == ["S", "Q1", "A1", "Q2", "A2"]


def test_relative_urls_are_beside_the_file_as_paths_are():
    part = {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}}
    web = {"type": "image_url", "image_url": {"url": "https://x/a.png"}}
    said = read({"messages": [{"role": "user", "content": [part, web]}, *messages("", "A")[1:]]}).messages[0]["content"]
    assert [one["image_url"]["url"] for one in said] == [A, "https://x/a.png"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "no format reads an empty row; a row holds conversations or messages"),
        ({"text": "x"}, "no format reads a row with the keys text"),
        ({"conversations": "hi"}, "conversations is 'hi'; it must be a list of turns"),
        ({"conversations": []}, "conversations is []; it must be a list of turns"),
        ({"conversations": ["x"]}, "conversations[0] is 'x'; it must be an object with from and value"),
        ({"conversations": [{"value": "x"}]}, "conversations[0] has no from"),
        ({"conversations": turns("Q", 3)}, "conversations[1].value is 3; it must be a text"),
        ({"conversations": turns("Q", None)}, "conversations[1].value is null; it must be a text"),
        ({"conversations": turns("Q", "A", names=("human", "bot"))}, '[1].from: unknown speaker "bot"; known'),
        ({"messages": messages({"a": 1}, "A")}, "messages[0].content is {'a': 1}; it must be a text or a list"),
        ({"messages": messages("Q", None)}, "messages[1].content is null"),
        ({"messages": messages(["x"], "A")}, "messages[0].content[0] is 'x'; it must be an object with a type"),
        ({"query": "Q", "response": 3}, "query or response is 3; it must be a text"),
        ({"image": "a.png", "conversations": turns("<image> <image>", "x")}, "2 <image> placeholders but 1 images"),
        ({"conversations": turns("<image>", "x")}, "1 <image> placeholders but 0 images; write <image> once in "
         "the questions for each image, and \\<image> where the text itself is meant"),
        ({"image": 5, "conversations": turns("Q", "A")}, "image holds 5; an image is a path, a data URL or bytes"),
        ({"image": "a.png", "conversations": [{"from": "system", "value": "S"}]}, "an image but no question"),
        ({"video": "a.mp4", "conversations": turns("Q", "A"), "clip": 3}, "clip is 3; it must be [from, to] in"),
        ({"video": 3, "conversations": turns("Q", "A")}, "video is 3; it must be a text"),
        ({"audio": "a.mp3", "conversations": turns("Q", "A")}, '"audio" would reach no sample'),
        ({"objects": {"bbox": [[1, 2, 3, 4]]}, "messages": messages("Q", "A"), "images": ["a"]}, '"objects" would'),
        ({"conversations": turns("Q", "A"), "independent": "yes"}, "independent is 'yes'; it must be true or false"),
        ({"conversations": turns("Q", "A"), "max_tiles": 2.5}, "max_tiles is 2.5; it must be a whole number"),
        ({"conversations": turns("Q", "A"), "patch_annotations": [{"text": "a"}]}, "patch_annotations holds {'text'"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_a_fault_that_names_the_field(raw, message):
    fault = read(raw)
    assert isinstance(fault, Fault)
    assert message in str(fault)
    assert str(fault).startswith("/data/rows.jsonl:2: ")


def columns(**raw):
    """(images, question, answer) of a row of columns."""
    sample = read(raw)
    return *content(sample), sample.messages[1]["content"]


def test_columns_are_read_by_the_names_that_tables_give_them():
    shown = [A], "What?", "A cat."
    assert columns(image="a.png", question="What?", answer="A cat.") == shown
    assert columns(file_name="a.png", prompt="What?", response="A cat.", index=3, split="train") == shown
    assert columns(Image_Path="a.png", Question="What?", Answer="A cat.") == ([A], "What?", "A cat.")
    assert columns(image="['a.png', 'b.png']", question="What?", answer="x")[0] == [A, B]
    assert columns(image={"bytes": b"\x89PNG", "path": "x"}, file_name="y", question="?", answer=3) == (
        [b"\x89PNG"], "?", "3")  # fmt: skip
    assert columns(image=base64.b64encode(b"\x89PNG" * 400).decode(), question="?", answer="x")[0] == [b"\x89PNG" * 400]
    assert columns(question="Who?", answer="I.") == ([], "Who?", "I.")
    assert columns(image="a.png", question="?", answers=["b", "a", "a"])[2] == "a"


def test_a_caption_or_a_label_needs_no_question():
    assert columns(image="a.png", caption="A cat.") == ([A], "Describe the image.", "A cat.")
    assert columns(file_name="a.png", text="A cat.") == ([A], "Describe the image.", "A cat.")
    assert columns(path="a.png", label="cat")[1].startswith("What does the image show?")


def test_options_follow_the_question_and_the_answer_is_a_letter():
    asked = "Which?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    for answer in ("B", "(B)", "blue", " Blue "):
        assert columns(image="a.png", question="Which?", A="red", B="blue", C="", answer=answer) == ([A], asked, "B")
    assert columns(question="Which?", choices=["red", "blue"], answer=1) == ([], asked, "B")
    assert columns(question="Which?", options="['red', 'blue']", answer="red") == ([], asked, "A")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"image": "a", "question": "Q", "answer": None}, "answer is null; it must hold the answer"),
        ({"image": "a", "question": "Q", "answer": {"a": 1}}, "answer is {'a': 1}; it must be a text"),
        ({"image": "a", "question": "", "answer": "A"}, "question is ''; it must hold the question of answer"),
        ({"image": 5, "question": "Q", "answer": "A"}, "image holds 5; an image is a path"),
        ({"image": "?" * 2000, "question": "Q", "answer": "A"}, "a text this long must be base64"),
        ({"image": "a", "label": 3}, "label is 3, the number of a class; write the class's name"),
        ({"question": "Q", "A": "x", "B": "y", "answer": "z"}, "answer is 'z'; it must be one of the options A, B"),
        ({"question": "Q", "options": "x", "answer": "z"}, "options is 'x'; it must be a list of texts"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_right_are_faults_that_name_them(raw, message):
    fault = read(raw)
    assert isinstance(fault, Fault)
    assert message in str(fault)


def test_a_format_of_ones_own_is_named_by_its_path(tmp_path):
    path = tmp_path / "pairs.py"
    path.write_text(
        "KEYS = frozenset({'q', 'a'})\n"
        "def reads(keys): return 'q' in keys\n"
        "def messages(raw):\n"
        "    return [{'role': 'user', 'content': raw['q']}, {'role': 'assistant', 'content': raw['a']}]\n"
        f"EXAMPLE = {json.dumps([{'q': 'Q', 'a': 'A'}, None])!r}\n"
    )
    assert read({"q": "Q", "a": "A"}, format=str(path)).messages == messages("Q", "A")


def test_options_are_all_asked_and_a_number_is_a_place_beside_a_list_alone():
    many = [f"thing {number}" for number in range(12)]
    sample = read({"question": "Which?", "options": many, "answer": 11})
    assert "\nL. thing 11\n" in sample.messages[0]["content"]
    assert sample.messages[1]["content"] == "L"
    assert read({"question": "How many?", "A": "1", "B": "2", "C": "3", "answer": 2}).messages[1]["content"] == "B"
    fault = read({"question": "Which?", "options": [f"thing {number}" for number in range(27)], "answer": 1})
    assert "there are 27 options; 26 are the most" in fault.reason
