"""How far an encoder agrees with a teacher, hidden state by hidden state, on pictures of a task.

CKA of every pair of states is taken over pictures (means of their patches), without bias, for pictures are few. Cosines
are taken over class tokens and the means of 2 x 2 cells of patches, for states that distillation would pair: the last
with the last, the one before with the one before. Where widths differ, or an encoder was distilled through linear maps,
only the mapped cosine means something: a map is fitted on training pictures and judged on test pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mini_internvl.evaluate.probing.features import Encoder, Wanted, collect
from mini_internvl.evaluate.probing.tasks import Picture, Task
from mini_internvl.metrics.similarity import cka_table, mapped_cosine, mean_cosine

PICTURES = 128  # most training pictures, and most test pictures
GRID = 2  # cells of patches a side
STATES_BYTES = 400_000_000  # of an encoder's states; a wide and deep one is asked fewer pictures


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One encoder beside its teacher on one task."""

    task: str
    model: str
    teacher: str
    pictures: int  # test pictures
    cka: np.ndarray  # (states of the encoder, states of the teacher)
    mapped: Mapping[int, float]  # by number of the encoder's state: cosine after a linear map
    plain: Mapping[int, float]  # without a map; empty where widths differ

    def as_json(self) -> dict[str, Any]:
        return {
            **{"task": self.task, "model": self.model, "teacher": self.teacher, "pictures": self.pictures},
            "cka": [[round(float(value), 5) for value in row] for row in self.cka],
            "mapped": {str(state): round(value, 5) for state, value in self.mapped.items()},
            "plain": {str(state): round(value, 5) for state, value in self.plain.items()},
        }


def agree(
    encoder: Encoder,
    teacher: Encoder,
    task: Task,
    *,
    sizes: tuple[int, int],
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Agreement:
    """Compare every hidden state; ``sizes`` are the tiles' sides for encoder and teacher. Raises as ``collect``."""
    values = max(one.states * one.model.config.hidden_size for one in (encoder, teacher)) * (1 + GRID**2)
    most = min(PICTURES, max(8, STATES_BYTES // (8 * values)))
    train, test = task.train[:most], task.test[:most]
    asked: list[Picture] = [*train, *test]
    mine, theirs = (
        collect(
            one,
            asked,
            Wanted(layers=tuple(range(one.states)), size=size, grid=GRID),
            progress=progress,
            should_stop=should_stop,
        )
        for one, size in zip((encoder, teacher), sizes, strict=True)
    )  # (pictures, states, rows, hidden)
    means = [[side[:, state, 1:].mean(1) for state in range(side.shape[1])] for side in (mine, theirs)]
    mapped, plain = dict[int, float](), dict[int, float]()
    for back in range(1, min(encoder.states, teacher.states) + 1):
        rows = [np.split(side[:, -back], [len(train)]) for side in (mine, theirs)]
        (fit, held), (wanted, reference) = ([part.reshape(-1, part.shape[-1]) for part in side] for side in rows)
        state = encoder.states - back
        mapped[state] = mapped_cosine(fit, wanted, held, reference)
        if fit.shape[1] == wanted.shape[1]:
            plain[state] = mean_cosine(held, reference)
    return Agreement(
        task=task.name,
        model=encoder.name,
        teacher=teacher.name,
        pictures=len(test),
        cka=cka_table(*means, unbiased=True),
        mapped=dict(sorted(mapped.items())),
        plain=dict(sorted(plain.items())),
    )
