"""Levenshtein distance over code points, a column at a time in the bits of one integer (Hyyrö 2003)."""

from __future__ import annotations


def edit_distance(first: str, second: str) -> int:
    """The fewest insertions, deletions and replacements of one character that turn one text into the other."""
    if first == second or not first or not second:
        return 0 if first == second else max(len(first), len(second))
    places: dict[str, int] = {}
    for place, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << place
    full = (1 << len(first)) - 1
    last = 1 << len(first) - 1
    rises, falls, distance = full, 0, len(first)  # vertical differences of +1 and of -1; the bottom cell
    for character in second:
        match = places.get(character, 0)
        level = (((match & rises) + rises) ^ rises) | match
        up = falls | (~(level | rises) & full)
        down = rises & level
        distance += bool(up & last) - bool(down & last)
        up, down = ((up << 1) | 1) & full, (down << 1) & full
        match |= falls
        rises, falls = down | (~(match | up) & full), up & match
    return distance
