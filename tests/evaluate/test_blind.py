"""What answers without seeing: grey in place of images, guesses from training answers."""

from __future__ import annotations

import pytest
from PIL import Image

from mini_internvl.evaluate.blind import GREY, Guesser, blinded
from mini_internvl.evaluate.keys import plain_prompt
from mini_internvl.inputs import boxes
from mini_internvl.inputs.messages import image_parts
from mini_internvl.records import Item, Sample


def sample(*turns: str) -> Sample:
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(turns)]
    return Sample(id="1", messages=messages)


def test_a_question_keeps_its_form_and_loses_what_is_seen():
    image = {"type": "image", "image": Image.new("RGB", (4, 4)), "name": "Frame-1", "scale": 2}
    placed = [image, image, {"type": "text", "text": "<image> and <image>: which is\nred?"}]
    lead = [image, {"type": "text", "text": "What is it?"}]
    items = [
        Item(id=str(n), messages=[{"role": "user", "content": content}], reference={"answer": n}, max_tiles=6)
        for n, content in enumerate([placed, lead, "Two?"])
    ]
    blind = blinded(items)
    assert [[part.source is GREY for part in image_parts(one.messages)] for one in blind] == [[True] * 2, [True], []]
    assert [plain_prompt(one.messages) for one in blind] == [plain_prompt(one.messages) for one in items]
    assert [(one.id, one.reference, one.max_tiles) for one in blind] == [
        (one.id, one.reference, one.max_tiles) for one in items
    ]


def test_the_most_frequent_answer_to_the_same_kind_of_question():
    samples = [sample("Is there a car?", "yes"), sample("Is there a car?", "no", "Colour of <ref>a</ref>?", "red")]
    samples += [sample("Is there a car?", "no"), sample("Colour of <ref>b</ref>?", "blue")]
    samples += [sample("Colour of <ref>c</ref>?", "blue")]
    guess = Guesser(samples)
    assert guess("Is there a car?") == "no"
    assert guess("Colour of <ref>z</ref>?") == "blue"
    assert guess("Where?") == "no"  # of all answers: no, no, blue, blue, yes, red
    assert Guesser([])("Where?") == ""


def test_an_unknown_question_is_guessed_by_its_first_words_if_there_are_enough():
    samples = [sample(f"How many {name} are there in it?", "3") for name in ("ships", "cars", "trees", "birds")]
    samples += [sample(f"What colour is the {name}?", "red") for name in "abcdef"]
    assert Guesser(samples)("How many planes are there in it?") == "red"  # four are too few
    assert Guesser([*samples, sample("How many dogs are there in it?", "4")])("How many planes are there?") == "3"


def test_of_numbers_the_median_as_training_writes_it():
    guess = Guesser([sample("Speed?", text) for text in ("1.00", "2.00", "10.00", "900.00", "3.50")])
    assert guess("Speed?") == "3.50"
    whole = Guesser([sample("Count?", text) for text in ("1", "2", "2", "8", "9")])
    assert whole("Count?") == "2"


def test_of_boxes_the_median_with_the_phrase_that_is_asked_for():
    drawn = [[10 * n, 20, 500 + n, 800] for n in range(5)]
    guess = Guesser(
        [sample(f"Detect <ref>ship {n}</ref>", boxes.render(f"ship {n}", [box])) for n, box in enumerate(drawn)]
    )
    assert guess("Detect <ref>the red one</ref>") == "<ref>the red one</ref><box>[[20, 20, 502, 800]]</box>"


@pytest.mark.parametrize("letters", ["A B B C B", "B B A C B"])
def test_options_do_not_make_a_kind(letters):
    samples = [sample(f"What is shown?\nA. {n}\nB. {n + 1}\nC. {n + 2}", one) for n, one in enumerate(letters.split())]
    assert Guesser(samples)("What is shown?\nA. cat\nB. dog\nC. cow") == "B"
