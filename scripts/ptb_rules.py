"""Observe the PTB tokenizer from outside: write mini_internvl/metrics/ptb_lists.py, compare our tokens with its tokens.

Run ``python scripts/ptb_rules.py FOLDER`` to write the lists and tests/metrics/ptb_sample.json again, or with
``--check N --seed S`` to compare N made captions and N hostile strings. FOLDER holds the jar of pycocoevalcap
(``pip download --no-deps pycocoevalcap==1.2`` and unzip); Java must be installed. Only the program's command line is
used: texts go in, tokens come out. docs/ptb.md says where the candidates come from and what is not covered.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import tempfile
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from string import ascii_lowercase, printable

ROOT = Path(__file__).parent.parent
LISTS = ROOT / "mini_internvl" / "metrics" / "ptb_lists.py"
SAMPLE = ROOT / "tests" / "metrics" / "ptb_sample.json"
GUARD = "qzq"
"""A line of its own between two probes, so that neither sees the other."""

# Words longer than the tried lengths, from general knowledge of English: abbreviations of titles, companies, months,
# days, states and terms, and words that open sentences.
LONGER = """
abbrev approx assoc assocs attys avenue bancorp biochem boulev calif capts chapts colloq comdrs commun comptr confed
consol constr contemp coeff deg degs depart depts diagr distr divis econom edition educat electr encyc encycl engin
equip equiv estim execs exper extens facsim februar gazette geneal geograph geolog geom gloss govern govts illust
illus immed import incorp indust infant inorg insol instit instr instruct internat internatl invest invoic italic
januar journ judges laborat lancast lieuts limited linguist mathem maths meas mechan messrs mesdames mfrs micros
minist misc monsig munic museum namely natur notat numism observ octob offic optics orchest organ origin ornith oxford
pamph parag parens parliam partic penna pharm philol philos phonet photog physiol polit postgrad practic preced prelim
prepos presby presid princip probab profs pronoun propr provinc pseudon psych public publ quart rector refrig regist
relig repub resid respect retir rhetor saturd scient sculpt secretar secty senat septemb sergt sociol south special
specif square stand statist street subjunct superint supers suppl supra surgeon surveyor symph synon technol teleg
telegr tempor territ theol therap thurs thursd trans transl treas trigon tuesd typog ultim univers vocab wednesd
western whsle wiscon according accordingly additionally after afterwards again against although always among another
anyone anything around because before behind being below beside besides between beyond certainly clearly consequently
could despite during earlier either elsewhere especially even eventually every everybody everyone everything finally
first following former formerly fortunately from further furthermore generally given hence however immediately indeed
initially instead into itself later least likewise maybe meanwhile might moreover mostly much neither never
nevertheless next nobody none nonetheless nothing notwithstanding obviously often others otherwise ours perhaps please
possibly presumably previously probably quite rather recently regarding second several shall should similarly since
sixth someone something sometimes somewhat somewhere soon still subsequently suddenly surely thank thanks their theirs
them there thereafter therefore these things think third those though three through throughout thus today together
tomorrow toward towards under unfortunately unless unlike until upon usually various very whatever where whereas
wherever whether which whichever while whoever whole whose within without would yesterday yours yourself about above
across
"""
# Endings of file names in general use.
FILE_TYPES = """
class config csv docx eps flac html java jpeg jsonl latex mp3 mp4 mpeg odt parquet pptx properties python rtf scala
sqlite svg swift tiff toml torrent webm webp xhtml xlsx yaml
"""


def run(jar: Path, text: str, *options: str) -> str:
    """What the tokenizer prints for a text."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", suffix=".txt") as file:
        file.write(text)
        file.flush()
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
        done = subprocess.run([*command, "-preserveLines", *options, file.name], capture_output=True, check=True)
    return done.stdout.decode("utf-8")


def probe(jar: Path, lines: Iterable[str], *options: str) -> list[str]:
    """The tokens of each line for itself."""
    lines = list(lines)
    return between_guards(run(jar, "".join(f"{line}\n{GUARD}\n" for line in lines), *options).split("\n"), len(lines))


def between_guards(lines: Iterable[str], count: int) -> list[str]:
    """The lines before each guard, joined by line feeds."""
    found, part = [], []
    for line in lines:
        if line == GUARD:
            found.append("\n".join(part))
            part = []
        else:
            part.append(line)
    assert len(found) == count, f"{count} lines went in, {len(found)} came out"
    return found


def characters(jar: Path) -> dict[str, list[str]]:
    """Every character of the first 65,536 by how it behaves alone, in a hashtag and between digits."""
    # Line ends and the soft hyphen have rules of their own; surrogates cannot be written.
    tried = [chr(p) for p in range(33, 0x10000) if not 0xD800 <= p < 0xE000 and chr(p) not in "\x85\u2028\u2029\xad"]
    alone = dict(zip(tried, probe(jar, tried), strict=True))
    after_hash = dict(zip(tried, probe(jar, (f"#{c}" for c in tried)), strict=True))
    after_dot = dict(zip(tried, probe(jar, (f".{c}" for c in tried)), strict=True))
    after_digit = dict(zip(tried, probe(jar, (f"5{c}a" for c in tried)), strict=True))
    kinds: dict[str, list[str]] = {"LETTERS": [], "DIGITS": [], "MARKS": [], "SIGNS": []}
    for char in tried:
        if after_hash[char] == f"#{char}" and char != "#":
            kinds["LETTERS" if after_digit[char] == f"5{char}a" else "MARKS"].append(char)
        elif after_dot[char] == f".{char}" and char != ".":
            kinds["DIGITS"].append(char)
        elif alone[char] == char:
            kinds["SIGNS"].append(char)
    return kinds


def short_words() -> Iterator[list[str]]:
    """All words of two to five letters, in parts; then the longer candidates."""
    for length in (2, 3, 4):
        yield ["".join(letters) for letters in itertools.product(ascii_lowercase, repeat=length)]
    for first in ascii_lowercase:
        yield [first + "".join(letters) for letters in itertools.product(ascii_lowercase, repeat=4)]
    yield sorted({word for word in LONGER.split() if len(word) > 5})


def words(jar: Path) -> dict[str, list[str]]:
    """Abbreviations by what keeps their period, and the words before which a single letter ends a sentence."""
    shapes = {"ENDING": "{}. y", "LEADING": "{}. y", "NUMBERED": "{}. 5", "STARTERS": "B. {} x"}
    wanted = {"ENDING": "{}. ", "LEADING": "{}. ", "NUMBERED": "{}. ", "STARTERS": "B . "}
    found: dict[str, list[str]] = {name: [] for name in shapes}
    for part in short_words():
        lines = [f"{w.title()}. 5 {w.title()}. y B. {w.title()} x" for w in part]
        # No guards here: nothing reaches over a line that ends in a plain word.
        for word, tokens in zip(part, run(jar, "\n".join(lines) + "\n").split("\n"), strict=False):
            title = word.title()
            if f" B . {title}" in tokens:
                found["STARTERS"].append(word)
            if tokens.startswith(f"{title}. 5 {title}. y"):
                found["LEADING"].append(word)
            elif tokens.startswith(f"{title}. 5"):
                found["NUMBERED"].append(word)
    # Those that may end a sentence get a second period before a word that begins one.
    second = probe(jar, [f"x {word.title()}. The" for word in found["LEADING"]])
    found["ENDING"] = [w for w, tokens in zip(found["LEADING"], second, strict=True) if tokens.endswith(". . The")]
    found["LEADING"] = [word for word in found["LEADING"] if word not in found["ENDING"]]
    for name, shape in shapes.items():
        lower = probe(jar, [shape.format(word) for word in found[name]])
        upper = probe(jar, [shape.format(word.upper()) for word in found[name]])
        found[name] = [
            as_pattern(word, a.startswith(wanted[name].format(word)), b.startswith(wanted[name].format(word.upper())))
            for word, a, b in zip(found[name], lower, upper, strict=True)
        ]
    found["STARTERS"].append("[A]")  # a letter alone is an initial to the other probes
    return found


def as_pattern(word: str, lower: bool, upper: bool) -> str:
    """A word that is known with a capital as a pattern, by whether it is known in lower and in upper case too."""
    rest = word[1:] if upper else "".join(f"[{letter}]" for letter in word[1:])
    return (word[0] if lower and upper else f"[{word[0].upper()}{word[0] if lower else ''}]") + rest


def file_types(jar: Path) -> list[str]:
    """Endings that join a number: "5.pdf" is one token, "5.car" is not."""
    short = ["".join(t) for n in (1, 2, 3, 4) for t in itertools.product(ascii_lowercase, repeat=n)]
    tried = sorted({*short, *FILE_TYPES.split()})
    return [kind for kind, tokens in zip(tried, probe(jar, (f"5.{k} y" for k in tried)), strict=True)
            if tokens == f"5.{kind} y"]  # fmt: skip


def ranges(chars: list[str]) -> str:
    """Code points in hexadecimal, runs as "first-last"."""
    spans: list[list[int]] = []
    for point in sorted(map(ord, chars)):
        if spans and spans[-1][1] == point - 1:
            spans[-1][1] = point
        else:
            spans.append([point, point])
    return " ".join(f"{low:x}" if low == high else f"{low:x}-{high:x}" for low, high in spans)


def write_lists(jar: Path) -> None:
    """Writes the module of lists."""
    tables = {name: " ".join(sorted(found)) for name, found in words(jar).items()}
    tables["FILE_TYPES"] = " ".join(file_types(jar))
    tables |= {name: ranges(chars) for name, chars in characters(jar).items()}
    about = {
        "ENDING": "Abbreviations that keep their period and may end a sentence; [A] is a capital as written.",
        "LEADING": "Abbreviations that keep their period before a name.",
        "NUMBERED": "Abbreviations that keep their period before a number.",
        "STARTERS": 'Words that make "B." before them the end of a sentence.',
        "FILE_TYPES": "Endings of file names.",
        "LETTERS": "Characters of words: code points in hexadecimal.",
        "DIGITS": "Digits.",
        "MARKS": "Characters of words that no compound and no number holds.",
        "SIGNS": "Characters that are tokens of their own; all others disappear.",
    }
    text = '"""What the PTB tokenizer was seen to treat specially. Written by scripts/ptb_rules.py; do not edit."""\n'
    for name, comment in about.items():
        lines = textwrap.wrap(tables[name], 118, break_long_words=False, break_on_hyphens=False)
        text += f'\n#: {comment}\n{name} = """\n' + "\n".join(lines) + '\n"""\n'
    LISTS.write_text(text, encoding="utf-8")


THINGS = """
car truck bus bicycle motorcycle pedestrian dog cat horse tree building bridge road sign lamp chair table cup plate
phone laptop screen chart graph map photo mother-in-law X-ray T-shirt ice-cream e-mail check-in follow-up
bow-and-arrow 4x4 F-16 Boeing-747 St.-Bernard U.S.-flag lung lesion nodule CT-scan roof field river harbour runway
café naïveté jalapeño Zürich
"""
PLACES = """
London|New York, N.Y.|Washington, D.C.|St. Louis|Mt. Fuji|the U.S.|the U.K.|Cambridge, Mass.
|Los Angeles, Calif.|Tokyo (東京)
|5th Ave.|10 Downing St.|I-95|Route 66|Côte d'Azur|O'Hare|Hawai'i|Martha's Vineyard|Terminal 2|Gate B12|Москва
""".replace("\n", "").split("|")
PEOPLE = """
Mr. Smith|Mrs. O'Neil|Dr. J. K. Rowling|Prof. d'Artagnan|Jean-Luc|Sgt. Pepper|Martin Luther King, Jr.|a man
|two women|the driver
|John B. Good|Ms. Li|Gen. Lee|J.R.R. Tolkien|my mother-in-law|y'all|somebody|they|María José|Capt. Hook|Plan B
""".replace("\n", "").split("|")
COUNTS = """
2|10|1,200|3.5|1/2|3 1/2|½|22nd|1990s|'90s|10:30 a.m.|12/03/2019|2019-03-12|-5|+3|50%|$5|US$ 1,000.50|€7.99|£8
|50¢|5'6"|20 °C
|100km/h|1.5m|3x|#1|no. 5|Fig. 3|pp. 5-7|(415) 555-1212|555-1212|+44 20 7946 0958|Jan. 5|5 p.m.|10²|twenty-one|1st
""".replace("\n", "").split("|")
SAYINGS = """
it's|isn't|can't|won't|they've|he'll|I'd|we're|there's|doesn’t|it’s|cannot|gonna|wanna|'tis|let's|who's|ain't
|o'clock|rock 'n' roll
|C'mon|y'know|must've|shouldn't|o'er|'em|’til
""".replace("\n", "").split("|")
EXTRAS = """
www.example.com|https://a.org/b?c=1|me@here.org|@user|#sunset|AT&T|R&D|C++|file.txt|photo.jpg|and/or|<b>bold</b>|<unk>|&amp;|:)|:-D
|(^_^)|...|…|--|—|– |a.k.a.|e.g.|i.e.|etc.|Inc.|Ltd.|vs.|Ph.D.|[sic]|{x}|*|~|™|©|🚗|👍🏽|«quoted»|“so”|‘so’|"so"
|``so''|_under_
|non\u2011breaking|soft\xadhyphen|a\xa0b|<c1,CAM_FRONT,714.3,503.6>|<box>[[10, 20, 30, 40]]</box>|\\n|A+B|x_1
|H₂O|μm|±2|3×3
""".replace("\n", "").split("|")
SHAPES = """
A {thing} is parked next to {count} {thing}s in {place}.|{person} {saying} sure that the {thing} in {place} is {count}
|{person}'s {thing}, {extra}, stands behind the {thing}'s {thing}; {saying} {count}!|the {thing}s' {thing} at {count}
|In {place} {person} says "{saying} a {thing}" ({extra})|Is the {thing} left of {person}? {saying} {count} {thing}.
|{extra} {thing}/{thing} - {count}: {person} & {person}
|The car slows down because {saying} {count} {thing}s ahead, {extra}
|CT image of {count} {thing} {extra}; {person} {saying} {saying}.
|{count} {thing} and {count} {thing} near {place}, {extra}.
|There are {count} {thing}s in the image (see {extra}). {person} {saying} there
|{place}: {person}, {count}, {thing} {extra}
""".replace("\n", "").split("|")


def captions(count: int, seed: int) -> Iterator[str]:
    """Made captions: a template of some domain, filled, at times in capitals or with another ending."""
    rng = random.Random(seed)
    parts = {
        "thing": THINGS.split(),
        "place": PLACES,
        "person": PEOPLE,
        "count": COUNTS,
        "saying": SAYINGS,
        "extra": EXTRAS,
    }
    for _ in range(count):
        words = rng.choice(SHAPES).replace("{", "\0{").split("\0")
        filled = ""
        for word in words:
            name, closed, rest = word.partition("}")
            filled += rng.choice(parts[name[1:]]) + rest if closed else word
        if rng.random() < 0.1:
            filled = filled.upper() if rng.random() < 0.5 else filled.lower()
        yield filled + rng.choice(["", "", "", ".", " .", "!", "?", "...", " ", ","])


def hostile(count: int, seed: int) -> Iterator[str]:
    """Strings that no caption looks like: signs, signs beyond ASCII, and scraps of all the lists without gaps."""
    rng = random.Random(seed)
    plain = [c for c in printable if c not in "\n\r\v\f"]
    odd = [*plain, *"’‘“”–—…éÉß\xad\xa0\u0301ñ北Жжα½¼€£¢°·•№\u200b🚗٣\u3000𝐀\x92\x85"]
    scraps = [
        *THINGS.split(),
        *PLACES,
        *PEOPLE,
        *COUNTS,
        *SAYINGS,
        *EXTRAS,
        *"-.,'/&<>!?:_()",
        "The",
        "B.",
        "Inc.",
        "no.",
    ]
    for number in range(count):
        if number % 4 == 2:
            yield "".join(rng.choice(scraps) + rng.choice(["", " ", " "]) for _ in range(rng.randint(1, 8)))
        else:
            signs = (plain, odd, None, "abAB5.,'-/ ’&<>!?:_()")[number % 4]
            yield "".join(rng.choice(signs) for _ in range(rng.randint(1, 20)))


def scored(line: str) -> str:
    """Tokens as the scorers see them: punctuation dropped."""
    from mini_internvl.metrics.ptb import _without_punctuation

    return "\n".join(map(_without_punctuation, line.split("\n")))


def check(jar: Path, count: int, seed: int) -> None:
    """Compares our tokens with the program's: captions as one file, then each hostile string for itself."""
    from mini_internvl.metrics.ptb import tokenize

    made = list(captions(count, seed))
    theirs = [scored(line) for line in run(jar, "\n".join(made) + "\n", "-lowerCase").split("\n")[:count]]
    report("captions, as one file", made, theirs, tokenize(made))
    made = list(hostile(count, seed))
    theirs = [scored(line) for line in probe(jar, made, "-lowerCase")]
    guarded = tokenize([line for text in made for line in (text, GUARD)])
    report("hostile strings", made, theirs, between_guards(guarded, count))


def report(name: str, texts: list[str], theirs: list[str], ours: list[str]) -> None:
    """Prints how many agree and which do not."""
    other = [row for row in zip(texts, theirs, ours, strict=True) if row[1] != row[2]]
    print(f"{name}: {len(texts) - len(other)} of {len(texts)} equal")
    for text, wanted, given in other[:20]:
        print(f"  {text!r}\n    program {wanted!r}\n    ours    {given!r}")


def write_sample(jar: Path) -> None:
    """Records the program's tokens for some captions and hostile strings, for the tests."""
    texts = [*captions(300, seed=1), *hostile(200, seed=1)]
    rows = dict(zip(texts, map(scored, probe(jar, texts, "-lowerCase")), strict=True))
    SAMPLE.write_text(json.dumps(rows, ensure_ascii=True, indent=0) + "\n", encoding="utf-8")


def main() -> None:
    """Write the lists and the sample, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a folder with the jar of pycocoevalcap")
    parser.add_argument("--check", type=int, metavar="N", help="compare N made captions and N hostile strings")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    jar = next(arguments.folder.rglob("stanford-corenlp-3.4.1.jar"))
    if arguments.check:
        check(jar, arguments.check, arguments.seed)
    else:
        write_lists(jar)
        write_sample(jar)


if __name__ == "__main__":
    main()
