"""Nearest neighbours by cosine: classes by their votes, and whether the right picture is found.

Similarities are taken block by block, so memory grows with pictures times neighbours, not with pictures squared.
Source of the votes: DINO's ``eval_knn.py`` (arXiv 2104.14294): each of the k nearest votes with exp(cosine / T).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""DINO's k and T."""
BLOCK = 1 << 22  # similarities that are held at a time
_EPSILON = 1e-12


def unit(features: np.ndarray) -> np.ndarray:
    """(n, d) float32 rows of length 1; a row of zeros stays so."""
    rows = np.asarray(features, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _EPSILON)


def nearest(
    queries: np.ndarray, keys: np.ndarray, k: int, *, leave_out_self: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (n, k) int64 and cosines (n, k) float32 of the nearest keys, the nearest first, equal ones by number.

    Args:
        queries: (n, d).
        keys: (m, d).
        k: neighbours of each; fewer where there are fewer keys.
        leave_out_self: query i is key i, which is not its own neighbour.
    """
    if len(queries) and queries.shape[1] != keys.shape[1]:
        raise ValueError(f"queries have {queries.shape[1]} values, keys {keys.shape[1]}")
    one, other = unit(queries), unit(keys)
    k = min(k, len(other) - leave_out_self)
    if k < 1:
        raise ValueError(f"there are {len(keys)} keys; too few to have a neighbour")
    places, cosines = np.empty((len(one), k), np.int64), np.empty((len(one), k), np.float32)
    step = max(1, BLOCK // len(other))
    for start in range(0, len(one), step):
        alike = one[start : start + step] @ other.T
        if leave_out_self:
            rows = np.arange(len(alike))
            alike[rows, start + rows] = -np.inf
        order = np.argsort(-alike, axis=1, kind="stable")[:, :k]
        places[start : start + step] = order
        cosines[start : start + step] = np.take_along_axis(alike, order, axis=1)
    return places, cosines


def vote(
    features: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """The class (n,) of each query by its k nearest among ``features`` (m, d); of equal votes the smaller number.

    ``labels`` (m,) are numbers of classes from 0.
    """
    places, cosines = nearest(queries, features, k)
    weights = np.exp((cosines.astype(np.float64) - 1) / temperature)  # minus 1 alters no order and overflows nowhere
    votes = np.zeros((len(queries), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(queries))[:, None], labels[places]), weights)
    return votes.argmax(1)


def class_recall(features: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 5)) -> dict[int, np.ndarray]:
    """By k, whether one of the k nearest others is of a picture's own class, bool (n,).

    Pictures that are alone in their class are left out, so n may be smaller than the number of rows.
    """
    counts = np.bincount(labels)
    asked = counts[labels] > 1
    if not asked.any():
        raise ValueError("no class has two pictures; nothing could be found")
    places, _ = nearest(features, features, max(ks), leave_out_self=True)
    same = (labels[places] == labels[:, None])[asked]
    return {k: same[:, :k].any(1) for k in ks}


def pair_recall(one: np.ndarray, other: np.ndarray, ks: Sequence[int] = (1, 5)) -> dict[int, np.ndarray]:
    """By k, whether row i of ``other`` is among the k nearest of row i of ``one``, bool (n,): two views of pictures."""
    if one.shape != other.shape:
        raise ValueError(f"the views have the shapes {one.shape} and {other.shape}; they must be of the same pictures")
    places, _ = nearest(one, other, max(ks))
    found = places == np.arange(len(one))[:, None]
    return {k: found[:, :k].any(1) for k in ks}
