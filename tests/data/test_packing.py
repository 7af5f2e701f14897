"""Packing: every sample once, both budgets kept, near the best, and shared out evenly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_internvl.data.packing import balance, fill, pack

TOKENS, TILES = 100, 12
SIZES = st.lists(st.tuples(st.integers(0, TOKENS), st.integers(0, 14)), max_size=60)


def arrays(sizes):
    return tuple(np.array([size[kind] for size in sizes], dtype=np.int64) for kind in (0, 1))


def packed(sizes, method="fit", seed=0):
    return pack(*arrays(sizes), max_tokens=TOKENS, max_tiles=TILES, method=method, seed=seed)


@given(SIZES, st.sampled_from(["fit", "buffer"]), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_every_sample_is_in_one_pack_and_no_budget_is_passed(sizes, method, seed):
    tokens, tiles = arrays(sizes)
    packs = packed(sizes, method, seed)
    assert sorted(packs.members.tolist()) == np.flatnonzero(tokens).tolist()
    for members in (packs[number] for number in range(len(packs))):
        assert len(members)
        assert tokens[members].sum() <= TOKENS
        assert tiles[members].sum() <= TILES or (tiles[members] > 0).sum() == 1
    again = packed(sizes, method, seed)
    assert np.array_equal(packs.members, again.members)
    assert np.array_equal(packs.ends, again.ends)


def fewest(sizes):
    """The number of packs of the best packing, by trying all."""
    for count in range(1, len(sizes) + 1):
        for places in itertools.product(range(count), repeat=len(sizes)):
            sums = np.zeros((count, 2), dtype=int)
            np.add.at(sums, list(places), np.array(sizes))
            if (sums <= (TOKENS, TILES)).all():
                return count
    return 0


@given(st.lists(st.tuples(st.integers(1, TOKENS), st.integers(0, TILES)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_fit_takes_at_most_one_pack_more_than_the_best(sizes):
    assert fewest(sizes) <= len(packed(sizes)) <= fewest(sizes) + 1


def test_a_real_mix_is_packed_to_more_than_97_percent_and_better_than_by_the_buffer():
    random = np.random.default_rng(0)
    tiles = random.choice([0, 1, 3, 5, 7, 9, 13], size=4000, p=[0.15, 0.1, 0.15, 0.2, 0.2, 0.1, 0.1])
    tokens = np.minimum(tiles * 256 + np.exp(random.normal(5.5, 0.8, 4000)).astype(int) + 60, 8192)
    limits = {"max_tokens": 16384, "max_tiles": 48}
    fills = [fill(pack(tokens, tiles, **limits, method=way), tokens, tiles, **limits) for way in ("fit", "buffer")]
    assert fills[0] > 0.97
    assert fills[0] > fills[1]


def test_the_buffer_lets_the_fullest_go_when_too_many_wait():
    """Twenty wait; the twenty-first sends off the one with most tiles. One that is full of tiles never waits."""
    sizes = [(60, 5)] * 20 + [(60, 7), (10, 12)]
    found = list(packed(sizes, "buffer").members)
    assert sorted(found) == list(range(22))
    packs = packed(sizes, "buffer")
    assert [20] in [packs[number].tolist() for number in range(len(packs))]


def test_a_sample_over_the_tokens_of_a_pack_is_told():
    with pytest.raises(ValueError, match="sample 1 has 101 tokens, more than the 100 of a pack"):
        packed([(5, 0), (101, 0)])


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 48)), min_size=1, max_size=24), st.integers(1, 8))
@settings(deadline=None)
def test_processes_share_the_packs_of_a_step(loads, processes):
    tokens, tiles = arrays(loads)
    shares = balance(tokens, tiles, processes)
    assert sorted(place for share in shares for place in share) == list(range(len(loads)))
    assert max(map(len, shares)) - min(map(len, shares)) <= max(1, -(-len(loads) // processes))
    assert max(map(len, shares)) == -(-len(loads) // processes)


def test_shares_are_even_in_tiles():
    tiles = np.array([48, 3, 45, 6, 30, 20, 2, 46])
    shares = balance(np.full(8, 1000), tiles, 2)
    sums = [int(tiles[share].sum()) for share in shares]
    assert abs(sums[0] - sums[1]) <= 6
