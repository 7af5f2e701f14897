r"""The token rules of the English PTB tokenizer that caption metrics are defined with, as a table for `lexer.Lexer`.

The standard caption scores (COCO, BDD-X, DriveLM) tokenize with CoreNLP 3.4.1's PTBTokenizer; this table gives the
tokens which that program prints. It was written from the outside: text was fed to the program's command line and the
printed tokens were described by rules of our own. The lists in `ptb_lists` are written by `scripts/ptb_rules.py` in the
same way. docs/ptb.md says what was probed and how agreement is measured.

Three things surprise:

* The longest match wins and the *following* text counts for its length, so "Inc." keeps its period while "cat." does
  not, "no. 5" differs from "no. It", and a sentence that ends in a single letter ("Plan B. The") loses its period.
* Letters in a pattern match in any case; letters in [...] match exactly as written. Hence "Ark." (abbreviation) and
  "ark." (a boat at the end of a sentence), written "[A]rk".
* Characters that no rule knows (most emoji, control characters) disappear.

Punctuation tokens are dropped before scoring, so where two spellings of a rule differ only in such tokens the simpler
one is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mini_internvl.metrics import ptb_lists
from mini_internvl.metrics.lexer import Rule


def _set(ranges: str) -> str:
    """A pattern for the characters whose code points are listed in hexadecimal: "41-5a 5f"."""
    escaped = re.sub("[0-9a-f]+", lambda point: rf"\u{point[0]:0>4}", ranges)
    return f"[{''.join(escaped.split())}]"


def _one_of(words: str) -> str:
    return "(" + " | ".join(words.split()) + ")"


def _always(text: str) -> Callable[[str], str]:
    return lambda token: text


#: Rules build on the named patterns; \xad is the soft hyphen, which vanishes from inside tokens.
NAMES: dict[str, str] = {
    "ANY": r"[\x00-\U0010ffff]",
    # Characters and single signs.
    "LETTER": _set(ptb_lists.LETTERS),
    "DIGIT": _set(ptb_lists.DIGITS),
    "MARK": _set(ptb_lists.MARKS),
    "SIGN": _set(ptb_lists.SIGNS),
    "SPACE": r"[\ \t\xa0]",
    "GAP": r"[\ \t\xa0\n\r\v\f\u2028\u2029]",
    "APOSTROPHE": r"['’\x92]",
    "CURLY": r"[’\x92]",
    "TICK": r"['’\x92`‘\x91]",
    "ACCENTED": r"& [aeiouAEIOU] (acute | grave | uml) ;",
    # Words, and what joins with hyphens, dots and apostrophes.
    "HEAD": r"({LETTER} | {MARK} | \xad | {ACCENTED})",
    "WORD": r"{HEAD} ({HEAD} | {DIGIT})*",
    "PLAIN": r"({LETTER} | {DIGIT})+",
    "COUNTED": r"{DIGIT}+ {LETTER} {PLAIN}?",
    "ELIDED": r"(d | l | o) {TICK} ({LETTER} | {DIGIT}) {PLAIN}",
    "JOINED": r"({PLAIN} | {ELIDED}) ([_‐‑֊-] ({PLAIN} | {ELIDED}))*",
    "HYPHENED": r"[A-Za-z0-9] [A-Za-z0-9.,\xad]* (- [A-Za-z0-9\xad]+)+",
    "DOTTED": r"{WORD} ([.!?] {WORD})+",
    "AND": r"[A-Z]+ (([&+] | &amp;) [A-Z]+)+",
    "INNER": "({WORD} | {DOTTED} | {JOINED} | {HYPHENED} | {AND})",
    "SUFFIX": r"(s | d | m | ll | re | ve)",
    "FINAL": r"{APOSTROPHE} {SUFFIX}",
    "SLASHED": r"[A-Za-z0-9]+ (- [A-Za-z]+)*",
    # Abbreviations and numbers.
    "ENDING": _one_of(ptb_lists.ENDING + r" ph\.d"),
    "LEADING": _one_of(ptb_lists.LEADING),
    "NUMBERED": _one_of(ptb_lists.NUMBERED),
    "STARTER": _one_of(ptb_lists.STARTERS),
    "DIGITS": r"{DIGIT}+ (\xad {DIGIT}+)*",
    "NUMBER": r"([.:,] | \xad)? {DIGITS} ([.:,] {DIGITS})*",
    "EYE": r"[\^x=~<>'-]",
    "GROUP_GAP": r"[\ \xa0-]",
    # Addresses and tags.
    "FILE_TYPE": _one_of(ptb_lists.FILE_TYPES),
    "URL": r"[^\ \t\n\f\r\"<>|()\{\}]",
    "PATH": r"[^\ \t\n\f\r\"<>|()]",
    "URL_END": r"[^\ \t\n\f\r\"<>|()\{\}.,?!-]",
    "MAIL": r"[^\ \t\n\f\r\"<>|()\{\}\xa0]",
    "MAIL_HOST": r"[^\ \t\n\f\r\"<>|()\{\}\xa0.]",
    "WWW_LABEL": r"[^\x00-\x20!\"(),.<>?\{\|\}\xa0]",
    "LABEL": r"[^\x00-\x22\x24\x27-\x29\x2c-\x60\x7b-\x7d\xa0]",
    "TAG_NAME": r"[A-Za-z] [A-Za-z0-9_:.-]*",
    "ATTRIBUTE": r"\ + {TAG_NAME} (\ * = \ * (' [^']* ' | \" [^\"]* \"))?",
    "TAG": r"< ({TAG_NAME} {ATTRIBUTE}* \ * /? \ * | / {TAG_NAME} \ * | [!?] [A-Za-z-] [^>\n\r]*) >",
}

_BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": "''", "apos": "'", "nbsp": "", "mdash": "--", "ndash": "--"}
_REPLACED = str.maketrans(
    {"‘": "`", "‛": "`", "‹": "`", "\x91": "`", "’": "'", "›": "'", "\x92": "'"}
    | {"“": "``", "«": "``", "\x93": "``", "”": "''", "»": "''", "\x94": "''", '"': "''"}
    | {"¢": "cents", "£": "#", "\x80": "$", "¤": "$", "₠": "$", "€": "$", "…": "...", "\x85": "..."}
    | {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
    | dict.fromkeys("–—―\x96\x97", "--")
)
_ONE_TOKEN = str.maketrans({" ": "\xa0", "(": "-LRB-", ")": "-RRB-"})


def _unhyphened(token: str) -> str:
    return token.replace("\xad", "") or "-"


def _replaced(token: str) -> str:
    return token.translate(_REPLACED)


def _spaces_kept(token: str) -> str:
    return token.replace(" ", "\xa0")


def _one_token(token: str) -> str:
    return token.translate(_ONE_TOKEN)


#: The longest match wins, the earlier rule on a tie.
RULES = [
    Rule(name="space", pattern=r"[\ \t\xa0]+", text=_always("")),
    Rule(name="line end", pattern=r"\r\n | [\n\r\v\f\u2028\u2029]", text=_always("\n")),
    # Words and compounds.
    Rule(name="can|not", pattern="can", before="not"),
    Rule(name="gon|na", pattern="gon | wan", before="na"),
    Rule(name="got|ta", pattern="got", before="ta"),
    Rule(name="lem|me", pattern="lem | gim", before="me"),
    Rule(name="'t|is", pattern="'t", before="is | was"),
    Rule(name="word", pattern="{WORD} | {COUNTED}", text=_unhyphened),
    Rule(name="words with dots", pattern="{DOTTED}", text=_unhyphened),
    Rule(name="abbreviation that may end a sentence", pattern=r"{ENDING} \.", before="{ANY}{ANY}?"),
    Rule(name="compound", pattern="{JOINED} | {HYPHENED}", text=_unhyphened),
    Rule(name="alternatives", pattern=r"{SLASHED} (\\? / {SLASHED}){1,2}"),
    Rule(name="initials", pattern=r"[A-Za-z] (\. [A-Za-z])* \."),
    Rule(name="initials in a compound", pattern=r"(({PLAIN} [.,]*)+ -)* [A-Za-z] (\. [A-Za-z])+ \. (- {PLAIN})*"),
    Rule(name="last letter", pattern="[A-Za-z]", before=r"\. {GAP}+ ({STARTER} | [M](r | s)\. | {TAG}) {GAP}"),
    Rule(name="abbreviation before a name", pattern=r"{LEADING} \."),
    Rule(name="abbreviation before a number", pattern=r"{NUMBERED} \.", before="{SPACE}? {DIGIT}"),
    Rule(name="period inside a sentence", pattern=r"{INNER} \.", before="[,;:]", text=_unhyphened),
    # Apostrophes.
    Rule(name="elision", pattern="{ELIDED} | o{TICK}o | [nA-HJ-XZ] {TICK} {LETTER} {LETTER}+"),
    Rule(name="glottal stop", pattern="{LETTER}+ [aeiouyAEIOUY] {TICK} [aeiouA-Z] {LETTER}*"),
    Rule(name="clitic", pattern="{FINAL}", before="[^A-Za-z]", text=_replaced),
    Rule(name="curly clitic", pattern="{CURLY} {SUFFIX}", text=_replaced),
    Rule(name="before a clitic", pattern="{HEAD}+", before="{FINAL} [^A-Za-z]", text=_unhyphened),
    Rule(name="before a curly clitic", pattern="{HEAD}+", before="{CURLY} {SUFFIX}", text=_unhyphened),
    Rule(name="before n't", pattern=r"[A-Za-z\xad]* [A-MO-Za-mo-z] \xad*", before="n{TICK}t", text=_unhyphened),
    Rule(name="n't", pattern="n{TICK}t", text=_replaced),
    Rule(name="before s, d, m", pattern="{WORD} | {DOTTED}", before="{APOSTROPHE} [dmsDMS]", text=_unhyphened),
    Rule(name="y'", pattern="y{APOSTROPHE}", before="{LETTER}"),
    Rule(name="j'", pattern="(j | ol){APOSTROPHE}", before="{ANY}"),
    Rule(name="d'", pattern="(d | l){APOSTROPHE}"),
    Rule(name="apostrophe first", pattern="{APOSTROPHE} (n{APOSTROPHE} | em | till? | cause | [2-9]0s) | {CURLY} n"),
    Rule(name="apostrophe first, then a gap", pattern="{APOSTROPHE} (n | [0-9][0-9])", before=r"{GAP} | \x85"),
    Rule(
        name="apostrophe inside",
        pattern="c{APOSTROPHE}(est | mon) | e{APOSTROPHE}er | ev{APOSTROPHE}ry"
        " | nor{APOSTROPHE}easter | cap{APOSTROPHE}n | nat{APOSTROPHE}l",
    ),
    # Numbers and short notations.
    Rule(name="number", pattern="[+-]? {NUMBER}", text=_unhyphened),
    Rule(name="fraction", pattern=r"({DIGIT}{1,4} {GROUP_GAP})? {DIGIT}{1,4} \\? / {DIGIT}{1,4}", text=_spaces_kept),
    Rule(name="date", pattern="{DIGIT}{1,2} [-/] {DIGIT}{1,2} [-/] {DIGIT}{2,4}"),
    Rule(
        name="telephone",
        pattern=r"(\( {DIGIT}{2,3} \) [\ \xa0]? | \+? ({DIGIT}{2,4} {GROUP_GAP})? {DIGIT}{2,4} {GROUP_GAP})"
        " {DIGIT}{3,4} {GROUP_GAP}? {DIGIT}{3,5}",
        text=_one_token,
    ),
    Rule(name="dollars", pattern=r"[A-Z]+ \$"),
    Rule(name="capitals with and", pattern="{AND}", text=lambda token: token.lower().replace("&amp;", "&")),
    Rule(name="programming language", pattern=r"c\+\+ | (c | f)\#"),
    Rule(name="hashtag", pattern=r"\# {HEAD}+"),
    Rule(name="user name", pattern="@ [A-Za-z_] [A-Za-z_0-9]*"),
    # Addresses, files, tags.
    Rule(name="mail", pattern="(< | &lt;)? [A-Za-z0-9] {MAIL}* @ ({MAIL_HOST}+ [.])* {MAIL_HOST}+ (> | &gt;)?"),
    Rule(name="web address", pattern="https? : / / {URL}+ {URL_END}"),
    Rule(
        name="web address without http",
        pattern=r"(www\. ({WWW_LABEL}+ \.)+ [A-Za-z]{2,4} | ({LABEL}+ \.)+ (com|net|org|edu)) (/ {PATH}+ {URL_END})?",
    ),
    Rule(name="file", pattern=r"(({HEAD} | {DIGIT})+ \.)+ {FILE_TYPE}", before="{GAP} | [,?!.]"),
    Rule(name="tag", pattern="{TAG}", text=_spaces_kept),
    Rule(name="emoticon", pattern=r"[<>]? [:;=] [-'o*]? [()\[\]\{DdPpO\\|@]", before="[^A-Za-z0-9]", text=_one_token),
    Rule(name="face", pattern=r"{EYE} _ {EYE} | \( ({EYE} [_.]? {EYE} | [\^x=~<>'] - [\^x=~<>'`]) \)", text=_one_token),
    # Signs.
    Rule(name="dots", pattern=r"\.{3,5} | \. \  \. \  \.", text=_always("...")),
    Rule(name="dashes", pattern="--+", text=lambda token: "--" if len(token) < 5 else token),
    Rule(name="repeated sign", pattern=r"__+ | \*+ | (\\\*)+ | [?!]+ | \#+ | @@+ | << | >> | ''"),
    Rule(name="written bracket", pattern="-(l | r)(r | c | s)b-"),
    Rule(name="bracket", pattern=r"[()\[\]\{\}]", text=lambda token: _BRACKETS[token]),
    Rule(
        name="entity", pattern=f"& {_one_of(' '.join(_ENTITIES))} ;", text=lambda token: _ENTITIES[token[1:-1].lower()]
    ),
    Rule(name="entity by number", pattern=r"& \# {DIGIT}+ ;"),
    Rule(name="quotes", pattern=r"[`‘’“”„‚‛‹›«»\x91-\x94]{1,2}", text=_replaced),
    Rule(name="replaced sign", pattern=r"[\"¢£\x80¤₠€¼½¾⅓⅔…\x85–—―\x96\x97]", text=_replaced),
    Rule(name="sign", pattern="{SIGN}"),
    Rule(name="unknown", pattern="{ANY}", text=_always("")),
]
