"""The rule-table lexer on small tables: longest match, ties, contexts, and the pattern language."""

from __future__ import annotations

import re

import pytest

from mini_internvl.metrics.lexer import Lexer, PatternSyntaxError, Rule

SPACE = Rule(name="space", pattern=r"\x20+", text=lambda token: "")
OTHER = Rule(name="other", pattern=r"[\x00-\U0010ffff]")


def cut(text, *rules, **names):
    return Lexer([*rules, SPACE, OTHER], names).tokens(text)


def test_the_longest_match_wins_whatever_the_order():
    assert cut("abab", Rule(name="short", pattern="ab"), Rule(name="long", pattern="abab")) == ["abab"]


def test_the_earlier_rule_wins_a_tie():
    first = Rule(name="first", pattern="ab", text=lambda token: "first")
    second = Rule(name="second", pattern="[a-z]+", text=lambda token: "second")
    assert cut("ab abc", first, second) == ["first", "second"]


def test_longer_beats_earlier_even_after_a_dead_end():
    # "a.b." starts well for the first rule, which then fails; the lexer goes back to the last complete match.
    assert cut("a.b.d", Rule(name="dots", pattern=r"a\.b\.c"), Rule(name="word", pattern="[a-z]")) == [*"a.b.d"]


def test_context_counts_for_the_length_but_is_read_again():
    number = Rule(name="number word", pattern="no", before=r"\. [0-9]", text=lambda token: "#")
    assert cut("no.5 no.x", number, Rule(name="word", pattern="[a-z]+")) == ["#", ".", "5", "no", ".", "x"]


def test_a_context_of_any_length_leaves_the_longest_token():
    assert cut("aaab", Rule(name="a", pattern="a+", before="a*b")) == ["aaa", "b"]


def test_literals_match_in_any_case_and_brackets_as_written():
    rule = Rule(name="ark", pattern="[A]rk", text=lambda token: "state")
    word = Rule(name="word", pattern="[A-Za-z]+")
    assert cut("Ark ARK ark", rule, word) == ["state", "state", "ark"]


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a{2}", "aa", "a"),
        ("a{1,3}b", "aaab", "aaaab"),
        ("(a|bc)+", "abca", "b"),
        ("[^a-c]x", "dx", "ax"),
        (r"[\]\-a]+", "]-a", "b"),
        (r"\u00e9\x41", "éA", "e"),
        ("{vowel}+", "aeo", "b"),
        ("{pair}{pair}", "xyxy", "xy"),
        ("a ? b", "ab", "a"),
    ],
)
def test_pattern_language(pattern, yes, no):
    names = {"vowel": "[aeiou]", "pair": "x y"}
    rule = Rule(name="rule", pattern=pattern, text=lambda token: "!")
    assert cut(yes, rule, **names) == ["!"]
    assert cut(no, rule, **names) != ["!"]


@pytest.mark.parametrize("pattern", ["(a", "a)"])
def test_unbalanced_patterns_are_refused(pattern):
    with pytest.raises(PatternSyntaxError):
        cut("a", Rule(name="bad", pattern=pattern))


def test_shortcut_gives_the_same_tokens():
    rules = [Rule(name="word", pattern="[a-z]+"), SPACE, OTHER]
    quick = Lexer(rules, {}, shortcut=re.compile("(?:[a-z]+ )+"))
    assert quick.tokens("ab cd ef.") == Lexer(rules, {}).tokens("ab cd ef.") == ["ab", "cd", "ef", "."]
