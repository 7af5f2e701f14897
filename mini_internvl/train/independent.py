"""Independent questions about the same images: packed into one row, each trained as if it alone had been asked.

The row begins with the prefix that they share, up to the last visual token (segment 0), and goes on with the rest of
each question and its answer (segments 1, 2, ...). Each question attends to the prefix and to itself only, and its
positions count on from the prefix, so loss and gradients are those of one row per question, while the images are read
once.

Where the rotary embedding depends on the length ("dynamic" and "longrope" above their limits), questions of different
lengths rotate the same prefix differently and cannot share it. They stand in documents of their own, each of which
reads the images again; other ways would leave questions out or rotate some as no answer would.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mini_internvl.inputs import chat
from mini_internvl.model.config import RopeConfig
from mini_internvl.model.decoder import rotation_group
from mini_internvl.records import Encoded

PADDING = -1  # segment of a padding token


def join(pieces: Sequence[Encoded], context: int, rope: RopeConfig) -> tuple[Encoded, list[int], list[int]]:
    """One row of questions as ``inputs.questions`` splits them; those that rotate the prefix alike are one document.

    ``context`` is the id of the visual token, which each piece has. Returns the row, and the segment and the document
    of each of its tokens. ValueError: the conversations do not begin alike, or an answer has no supervised token.
    """
    begin = pieces[0].input_ids
    shared = len(begin) - begin[::-1].index(context)
    groups: dict[int, list[Encoded]] = {}
    for number, piece in enumerate(pieces, 1):
        if piece.input_ids[:shared] != begin[:shared] or context in piece.input_ids[shared:]:
            raise ValueError(
                f"question {number} does not begin with the images as the first does; they cannot be independent"
            )
        if all(label == chat.IGNORE for label in piece.labels):
            raise ValueError(f"answer {number} has no supervised token; write one")
        groups.setdefault(rotation_group(rope, len(piece.input_ids)), []).append(piece)
    ids, labels, segments, documents = list[int](), list[int](), list[int](), list[int]()
    for document, group in enumerate(groups.values()):
        ids += begin[:shared]
        labels += pieces[0].labels[:shared]
        segments += [0] * shared
        for segment, piece in enumerate(group, 1):
            ids += piece.input_ids[shared:]
            labels += piece.labels[shared:]
            segments += [segment] * (len(piece.input_ids) - shared)
        documents += [document] * (len(ids) - len(documents))
    return Encoded(input_ids=ids, labels=labels), segments, documents


def position_ids(segment_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """(T,) segments of one row, each in one piece -> (T,) positions: all count on from the end of segment 0.

    Each document, if there are several, counts from 0.
    """
    if document_ids is not None:
        _, lengths = document_ids.unique_consecutive(return_counts=True)
        return torch.cat([position_ids(segments) for segments in segment_ids.split(lengths.tolist())])
    places = torch.arange(len(segment_ids))
    starts = torch.ones(len(segment_ids), dtype=torch.bool)
    starts[1:] = segment_ids[1:] != segment_ids[:-1]
    start = (places * starts).cummax(0).values
    return torch.where(segment_ids == 0, places, places - start + (segment_ids == 0).sum())
