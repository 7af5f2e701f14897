"""Measures of features against scikit-learn and plain float64 references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_internvl.metrics import linear_probe, neighbours, similarity


def clusters(rng, n=240, d=12, classes=4, spread=1.2):
    labels = rng.integers(0, classes, n)
    centres = rng.normal(size=(classes, d))
    return (centres[labels] + spread * rng.normal(size=(n, d))).astype(np.float32), labels


@pytest.mark.parametrize("k", [1, 20, 1000])
def test_votes_are_those_of_scikit_learn(k):
    sklearn = pytest.importorskip("sklearn.neighbors")
    features, labels = clusters(np.random.default_rng(0))
    train, test = features[:180], features[180:]
    reference = sklearn.KNeighborsClassifier(
        min(k, 180), metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(train, labels[:180])
    assert (neighbours.vote(train, labels[:180], test, k=k) == reference.predict(test)).all()


def test_blocks_change_nothing(monkeypatch):
    features, _ = clusters(np.random.default_rng(1), n=50)
    whole = neighbours.nearest(features, features, 5, leave_out_self=True)
    monkeypatch.setattr(neighbours, "BLOCK", 130)
    parts = neighbours.nearest(features, features, 5, leave_out_self=True)
    assert (whole[0] == parts[0]).all()
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-6)
    assert not (whole[0] == np.arange(50)[:, None]).any()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(1, 6))
def test_neighbours_are_those_of_all_cosines(seed, k):
    rng = np.random.default_rng(seed)
    queries, keys = rng.normal(size=(7, 5)), rng.normal(size=(9, 5))
    cosines = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (keys / np.linalg.norm(keys, axis=1)[:, None]).T
    places, alike = neighbours.nearest(queries, keys, k)
    assert (places == np.argsort(-cosines, axis=1)[:, :k]).all()
    np.testing.assert_allclose(alike, np.sort(cosines, axis=1)[:, ::-1][:, :k], atol=1e-6)


def test_recall_of_classes_and_of_views():
    features = np.eye(6)[[0, 0, 1, 2, 2, 3]] + 0.01 * np.arange(6)[:, None]
    labels = np.array([0, 0, 0, 1, 1, 2])
    found = neighbours.class_recall(features, labels, (1, 2))
    assert found[1].tolist() == [True, True, False, True, True]  # the last is alone in its class
    assert found[2].tolist()[:2] == [True, True]
    views = np.eye(4)
    assert neighbours.pair_recall(views, views[[0, 1, 3, 2]], (1, 4)) == {
        1: pytest.approx([1, 1, 0, 0]),
        4: pytest.approx([1] * 4),
    }
    with pytest.raises(ValueError, match="no class has two"):
        neighbours.class_recall(features, np.arange(6))


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_probe_is_that_of_scikit_learn(penalty, classes):
    linear = pytest.importorskip("sklearn.linear_model")
    features, labels = clusters(np.random.default_rng(2), classes=classes, spread=3.0)
    features *= np.linspace(0.1, 50, features.shape[1], dtype=np.float32)
    probe = linear_probe.fit(features, labels, [1.0, penalty] if penalty < 1 else [penalty])[-1]
    x = (features - probe.mean) / probe.deviation
    np.testing.assert_allclose(x.std(0), 1, atol=1e-6)
    if classes == 2:  # there scikit-learn has one row of weights for two
        expected = linear.LogisticRegression(C=2 / (penalty * len(x)), tol=1e-10, max_iter=5000).fit(x, labels)
        np.testing.assert_allclose(probe.weight[1] - probe.weight[0], expected.coef_[0], atol=2e-3)
    else:
        expected = linear.LogisticRegression(C=1 / (penalty * len(x)), tol=1e-10, max_iter=5000).fit(x, labels)
        np.testing.assert_allclose(probe.weight, expected.coef_, atol=2e-3)
    assert (probe.predict(features) == expected.predict(x)).all()


def test_the_penalty_is_chosen_on_what_is_held_out():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 60)
    noise = rng.normal(size=(60, 200)).astype(np.float32)
    noise[:, 0] += 3 * labels
    probe = linear_probe.choose(noise, labels, penalties=(1.0, 1e-6))
    assert probe.penalty == 1.0  # the weak one fits the noise
    with pytest.raises(ValueError, match="two classes"):
        linear_probe.choose(noise, np.zeros(60, int))


def naive_cka(x, y, unbiased):
    n = len(x)
    k, m = (z.astype(np.float64) @ z.astype(np.float64).T for z in (x, y))
    if not unbiased:
        h = np.eye(n) - 1 / n
        return np.trace(k @ h @ m @ h) / np.sqrt(np.trace(k @ h @ k @ h) * np.trace(m @ h @ m @ h))

    def hsic(a, b):
        a, b = a - np.diag(np.diag(a)), b - np.diag(np.diag(b))
        ones = np.ones(n)
        middle = (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
        return (np.trace(a @ b) + middle - 2 / (n - 2) * ones @ a @ b @ ones) / (n * (n - 3))

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_is_its_definition(unbiased):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(30, 6)) + 3
    y = x[:, :4] @ rng.normal(size=(4, 9)) + rng.normal(size=(30, 9))
    assert similarity.linear_cka(x, y, unbiased=unbiased) == pytest.approx(naive_cka(x, y, unbiased), rel=1e-9)
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert similarity.linear_cka(x, 7 * x @ turn + 5, unbiased=unbiased) == pytest.approx(1)


def test_cka_of_noise_is_high_with_bias_and_about_0_without():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(40, 300)), rng.normal(size=(40, 300))
    assert similarity.linear_cka(x, y) > 0.8
    assert abs(similarity.linear_cka(x, y, unbiased=True)) < 0.1
    assert np.isnan(similarity.linear_cka(x, np.ones((40, 3))))


def test_a_map_is_found_and_judged_on_other_rows():
    rng = np.random.default_rng(6)
    student = rng.normal(size=(200, 8))
    teacher = student @ rng.normal(size=(8, 20)) + 2
    assert similarity.mapped_cosine(student[:150], teacher[:150], student[150:], teacher[150:]) > 0.9999
    assert similarity.mean_cosine(teacher, teacher) == pytest.approx(1)
    noise = rng.normal(size=(200, 20))
    assert abs(similarity.mapped_cosine(student[:150], noise[:150], student[150:], noise[150:])) < 0.3


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_effective_rank_is_that_of_all_singular_values(shape):
    x = np.random.default_rng(7).normal(size=shape) * np.linspace(0.01, 3, shape[1])
    sizes = np.linalg.svd(x, compute_uv=False)
    shares = sizes / sizes.sum() + 1e-7
    assert similarity.effective_rank(x) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    assert similarity.effective_rank(np.outer(np.ones(20), np.arange(1, 5))) == pytest.approx(1, abs=1e-4)
