"""How alike the features of two encoders are, and how many directions one of them uses.

Linear CKA (arXiv 1905.00414) does not change when features are turned or scaled as a whole, so that layers of different
widths can be compared. With few rows beside many features it is too high; its unbiased form (arXiv 2010.15327) is not,
and may fall below 0. Cosines need equal widths, or a linear map from one to the other, which is fitted on some rows and
judged on others. All sums are float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RIDGES = (1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Shares of the features' mean variance that are added to each direction's when a map is fitted."""
RANK_EPSILON = 1e-7  # RankMe's


def linear_cka(one: np.ndarray, other: np.ndarray, *, unbiased: bool = False) -> float:
    """Linear CKA of (n, d) and (n, e) over the same rows; NaN where one of them never changes.

    ``unbiased`` takes the estimate of HSIC without bias, for which rows must be independent and at least 4.
    """
    return float(cka_table([one], [other], unbiased=unbiased)[0, 0])


def cka_table(one: Sequence[np.ndarray], other: Sequence[np.ndarray], *, unbiased: bool = False) -> np.ndarray:
    """Linear CKA of each of ``one`` with each of ``other``, float64 (len(one), len(other)); see :func:`linear_cka`.

    Holds a matrix (n, n) for each of ``one`` and three more.
    """
    rows = {len(features) for features in (*one, *other)}
    if len(rows) != 1 or rows.pop() < (4 if unbiased else 2):
        raise ValueError("CKA compares features of the same pictures, at least 2, or 4 without bias")
    kernels = [_kernel(features, unbiased=unbiased) for features in one]
    table = np.empty((len(one), len(other)))
    own = [np.vdot(kernel, kernel) for kernel in kernels]
    for column, features in enumerate(other):
        kernel = _kernel(features, unbiased=unbiased)
        scale = np.vdot(kernel, kernel)
        for row, theirs in enumerate(kernels):
            size = np.sqrt(own[row] * scale)
            table[row, column] = np.vdot(theirs, kernel) / size if size > 0 else np.nan
    return table


def _kernel(features: np.ndarray, *, unbiased: bool) -> np.ndarray:
    """The centred matrix (n, n) of products of rows; unbiased, its diagonal is 0 and its rows sum to 0."""
    x = features.astype(np.float64)
    x -= x.mean(0)
    kernel = x @ x.T
    if not unbiased:
        return kernel
    n = len(x)
    np.fill_diagonal(kernel, 0.0)
    sums = kernel.sum(1)
    shift = sums / (n - 2) - sums.sum() / (2 * (n - 1) * (n - 2))
    kernel -= shift[:, None] + shift[None]
    np.fill_diagonal(kernel, 0.0)
    return kernel


def mean_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over rows of the cosine of (n, d) with (n, d); a row of zeros counts 0."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    sizes = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float((np.einsum("nd,nd->n", a, b) / np.maximum(sizes, 1e-300)).mean())


def mapped_cosine(
    student: np.ndarray, teacher: np.ndarray, student_test: np.ndarray, teacher_test: np.ndarray
) -> float:
    """Mean cosine of the teacher's rows (m, e) with what a linear map makes of the student's (m, d).

    The map, with bias, is fitted by ridge regression on (n, d) and (n, e); how strong the ridge is, a fifth of these
    rows decides, the last ones.
    """
    cut = len(student) - max(1, len(student) // 5)
    if cut < 2:
        raise ValueError(f"a map cannot be fitted on {len(student)} rows")
    scores = [mean_cosine(mapped, teacher[cut:]) for mapped in _maps(student[:cut], teacher[:cut], student[cut:])]
    best = int(np.argmax(scores))
    mapped = list(_maps(student, teacher, student_test))[best]
    return mean_cosine(mapped, teacher_test)


def _maps(x: np.ndarray, y: np.ndarray, test: np.ndarray) -> list[np.ndarray]:
    """What the map of each ridge makes of ``test``."""
    x, y, test = (values.astype(np.float64) for values in (x, y, test))
    mean, shift = x.mean(0), y.mean(0)
    left, sizes, right = np.linalg.svd(x - mean, full_matrices=False)
    turned, wanted = (test - mean) @ right.T, left.T @ (y - shift)
    scale = max(float((sizes**2).mean()), 1e-300)
    return [(turned * (sizes / (sizes**2 + ridge * scale))) @ wanted + shift for ridge in RIDGES]


def effective_rank(features: np.ndarray) -> float:
    """RankMe (arXiv 2210.02885): exp of the entropy of the singular values of (n, d), not centred, between 1 and d.

    Singular values come from the smaller matrix of products, so those below 1e-8 of the largest count as about 0.
    """
    x = features.astype(np.float64)
    products = x @ x.T if len(x) < x.shape[1] else x.T @ x
    sizes = np.sqrt(np.maximum(np.linalg.eigvalsh(products), 0.0))
    total = sizes.sum()
    if not total:
        return 0.0
    shares = sizes / total + RANK_EPSILON
    return float(np.exp(-(shares * np.log(shares)).sum()))
