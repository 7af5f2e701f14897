"""PTB tokens: examples by subject (observed from the original program), line breaks, and properties."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_internvl.metrics import ptb
from mini_internvl.metrics.lexer import Lexer
from mini_internvl.metrics.ptb_rules import NAMES, RULES

EXAMPLES = {
    "clitics": [
        ("they'll we've I'd it's drivers'", "they 'll we 've i 'd it 's drivers"),
        ("didn't CAN'T don’t ain`t", "did n't ca n't do n't ai n`t"),
        ("gonna Cannot lemme 'tis 'twas", "gon na can not lem me 't is 't was"),
        ("cannot's cannotx", "cannot 's cannotx"),
    ],
    "apostrophes": [
        ("o'clock O'Neil d'Artagnan Hawai'i", "o'clock o'neil d'artagnan hawai'i"),
        ("'em 'til rock 'n' roll the '90s in '11 now", "'em 'til rock 'n' roll the '90s in '11 now"),
        ("ma'am's y'all C'mon nor'easter", "ma'am 's y' all c'mon nor'easter"),
    ],
    "abbreviations": [
        ("Inc. and Ltd. x.", "inc. and ltd. x."),
        ("no. 5 but no. It is no.", "no. 5 but no it is no"),
        ("Ark. ark. Fig. 3 fig. x", "ark. ark fig. 3 fig x"),
        ("the U.S. at 5 p.m. The end", "the u.s. at 5 p.m. the end"),
        ("Plan B. The end. Plan B. it", "plan b the end plan b. it"),
        ("approx. 5, approx., cat., dog.", "approx 5 approx. cat. dog"),
        ("non-U.S. U.S.-led Ph.D. B.Sc.", "non-u.s. u.s.-led ph.d. b.sc"),
    ],
    "numbers": [
        ("-5 +5 1,200.50 10:30 .5 3.5m/s 1.5x", "-5 +5 1,200.50 10:30 .5 3.5 m/s 1.5 x"),
        ("1/2 3-1/2 ½ 2½ ⅓ ⅗", "1/2 3-1/2 1/2 2 1/2 1/3 ⅗"),
        ("5 7/8 of it", "5\xa07/8 of it"),
        ("12/03/2019 2019-03-12 1990s 22nd", "12/03/2019 2019-03-12 1990s 22nd"),
        ("(415) 555-1212 or 415 555 1212", "-lrb-415-rrb-\xa0555-1212 or 415\xa0555\xa01212"),
        ("$5 US$ 6 €7 £8 ¥9 50¢ 5%", "$ 5 us$ 6 $ 7 # 8 ¥ 9 50 cents 5 %"),
        ("H₂O 10²", "h ₂ o 10 ²"),
    ],
    "addresses": [
        ("http://a.b/c?d=e, www.x.org. x.com", "http://a.b/c?d=e www.x.org x.com"),
        ("me@here.org, <me@here.org> @user #tag #1", "me@here.org, <me@here.org> @user #tag # 1"),
        ("file.txt, notes.py README.md", "file.txt notes.py readme.md"),
    ],
    "tags": [
        (
            '<p> </p> <br/> <a href="x y"> <unk> <!-- c -->',
            '<p> </p> <br/> <a\xa0href="x\xa0y"> <unk> <!--\xa0c\xa0-->',
        ),
        ("<c1,CAM,5.0> <|end|> a < b", "< c1 cam ,5.0 > < | end | > a < b"),
        ("AT&amp;T &lt;x&gt; &quot;q&quot; &mdash; &#39;", "at&t < x > q &#39;"),
    ],
    "signs": [
        (":) ;-( (^_^) -_- <3", ":-rrb- ;--lrb- -lrb-^_^-rrb- -_- < 3"),
        ("wait... no…  . . . ok -- - ---- -----", "wait no ok -----"),
        ("what?! ?? ! * ** _ __ \\*", "what ?! ?? * ** _ __ \\*"),
        ("“Go ‘now’” he said ’” «x»", "go now ''' he said ''' x"),
        ("[a] {b} (c) -LRB-", "-lsb- a -rsb- -lcb- b -rcb- -lrb- c -rrb- -lrb-"),
        ("and/or 100km/h A/B. a\\/b", "and/or 100km/h a/b a\\/b"),
        ("C++ F# AT&T R&D A+B a&b", "c++ f# at&t r&d a+b a & b"),
    ],
    "other scripts": [
        ("Café ÎLE İ ß авто 北京 운전 한。", "café île i̇ ß авто 北京 운전 한 。"),
        ("soft\xadhyphen zero\u200bwidth a\u2011b a\xa0b", "softhyphen zero width a\u2011b a b"),
        ("go 🚗 now 👍🏽!", "go now"),
    ],
}


@pytest.mark.parametrize(("text", "tokens"), [pair for group in EXAMPLES.values() for pair in group])
def test_examples(text, tokens):
    assert ptb.tokenize([text]) == [tokens]


def test_recorded_captions_and_hostile_strings():
    recorded = json.loads(Path(__file__).with_name("ptb_sample.json").read_text(encoding="utf-8"))
    texts = [line for text in recorded for line in (text, "qzq")]  # a line of its own between two texts
    found = dict(zip(recorded, "\n".join(ptb.tokenize(texts)).split("\nqzq"), strict=False))
    wrong = {
        text: found[text].removeprefix("\n") for text in recorded if found[text].removeprefix("\n") != recorded[text]
    }
    assert len(recorded) > 400
    assert not wrong


def test_other_line_ends_shift_later_captions_unless_told_otherwise():
    captions = ["a\rb", "c\nd", "e\u2028", "f"]
    assert ptb.tokenize(captions) == ["a", "b", "c d", "e"]
    assert ptb.tokenize(captions, line_breaks="space") == ["a b", "c d", "e", "f"]
    assert [ptb.has_line_break(caption) for caption in captions] == [True, False, True, False]


def test_nothing_and_empty_captions():
    assert ptb.tokenize([]) == []
    assert ptb.tokenize(["", "  ", "...", "x", ""]) == ["", "", "", "x", ""]


def test_a_tag_may_run_over_the_end_of_a_line():
    # A quoted value may hold a line feed; the token is then written over two lines.
    assert ptb.tokenize(['<a b="', '"> c', "d"]) == ['<a\xa0b="', '"> c', "d"]


WORDS = st.sampled_from(
    [
        "the",
        "car",
        "is",
        "can't",
        "cannot",
        "GONNA",
        "it's",
        "Inc.",
        "U.S.",
        "no.",
        "5",
        "3.5",
        "<",
        ">",
        "<b>",
        "...",
        "--",
        "'",
        '"',
        "“",
        "’",
        "&",
        "&amp;",
        "a@b.c",
        "x.com",
        "🚗",
        "é",
        "\xad",
        "_",
        "/",
        "-",
        "B.",
        "The",
    ]
)
CAPTION = st.lists(st.tuples(WORDS, st.sampled_from(["", " ", " ", ", "])), max_size=8).map(
    lambda parts: "".join(word + gap for word, gap in parts)
)


@cache
def lexer_without_shortcut() -> Lexer:
    return Lexer(RULES, NAMES)


@settings(max_examples=150, deadline=None)
@given(st.lists(CAPTION | st.text(max_size=12), max_size=6))
def test_the_shortcut_changes_nothing(captions):
    text = "\n".join(captions)
    assert ptb._lexer().tokens(text) == lexer_without_shortcut().tokens(text)


@settings(max_examples=100, deadline=None)
@given(st.lists(CAPTION, min_size=1, max_size=6))
def test_every_caption_has_a_line_and_tokens_are_lower_case(captions):
    lines = ptb.tokenize(captions, line_breaks="space")
    assert len(lines) == len(captions)
    for line in lines:
        assert line == line.lower()
        assert not set(line.split(" ")) & ptb.PUNCTUATION
