"""Questions over images as training samples: shared by the domains whose records are questions with answers.

Unusual: questions of one image that follow each other become one sample of independent questions, so that the image is
read once for all of them. Each is trained as if it had been asked alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mini_internvl.benchmarks._questions import Question
from mini_internvl.data import Fault
from mini_internvl.records import Message, Sample

MOST = 8  # questions in a sample: more would make one image weigh too much in a step


def samples(questions: Iterable[Question | Fault], source: str) -> Iterator[Sample | Fault]:
    """The questions as samples, in their order, each with the id of its first question; faults pass through."""
    held: list[Question] = []
    for one in questions:
        if isinstance(one, Fault):
            yield one
            continue
        if held and (one.image != held[0].image or len(held) == MOST):
            yield sample(held, source)
            held = []
        held.append(one)
    if held:
        yield sample(held, source)


def sample(questions: Sequence[Question], source: str) -> Sample:
    """One sample of questions about one image."""
    first, *others = questions
    image = {"type": "image", "image": first.image}
    messages: list[Message] = [
        {"role": "user", "content": [image, {"type": "text", "text": first.prompt}]},
        {"role": "assistant", "content": first.answer},
    ]
    for one in others:
        messages += [{"role": "user", "content": one.prompt}, {"role": "assistant", "content": one.answer}]
    return Sample(id=first.id, messages=messages, source=source, independent=bool(others))


def expected(source: str, name: str, image: str, *turns: tuple[str, str]) -> Sample:
    """The sample of a worked example: questions as they are asked, and answers."""
    return sample([Question(id=name, image=image, prompt=asked, answer=answer) for asked, answer in turns], source)
