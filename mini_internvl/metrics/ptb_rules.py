r"""The token rules of the English PTB tokenizer that caption metrics are defined with, as a table for `lexer.Lexer`.

The standard caption scores (COCO, BDD-X, DriveLM) tokenize with CoreNLP 3.4.1's PTBTokenizer; this table gives the
tokens which that program gives. Where it comes from: patterns and arrangement are our own, but they were worked out
with the program at hand, by feeding it text and by reading the state tables of its compiled lexer. Word lists and
character classes were listed from those tables, and the result was compared with them state by state. CoreNLP is
under the GPL; whoever needs a clean origin should rebuild the lists from observed output alone.

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
import unicodedata
from collections.abc import Callable

from mini_internvl.metrics.lexer import CharSet, Rule


def _ranges(text: str) -> CharSet:
    """The set of characters whose code points are listed in hexadecimal: "41-5a 5f"."""
    spans = [(int(low, 16), int(high or low, 16)) for low, _, high in (part.partition("-") for part in text.split())]
    return lambda char: any(low <= ord(char) <= high for low, high in spans)


# The tokenizer knows the Basic Multilingual Plane as of Unicode 6.1. These letters and digits were added later.
_NEWER = _ranges(
    "37f 528-52f 560 588 5ef 860-86a 870-887 889-88e 8a1 8ad-8c9 978 980 9fc af9 c34 c5a c5d c80 cdd d04 d54-d56 d5f "
    "de6-def e86 e89 e8c e8e-e93 e98 ea0 ea8-ea9 eac 13f5 13f8-13fd 16f1-16f8 170d 171f 1878 191d-191e 19b0-19c0 "
    "19c8-19c9 1b4c 1c80-1c8a 1c90-1cba 1cbd-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f 31bb-31bf 4db6-4dbf 9fcd-9fff "
    "a698-a69d a78f a794-a79f a7ab-a7dc a7f1-a7f7 a8fd-a8fe a9e0-a9e4 a9e6-a9fe aa7e-aa7f ab30-ab5a ab5c-ab69 ab70-abbf"
)
_LETTERS_THEN = "\u1885\u1886"  # letters in Unicode 6.1, marks today


def _letter(char: str) -> bool:
    newer = ord(char) > 0xFFFF or _NEWER(char)
    return (unicodedata.category(char)[0] == "L" and not newer) or char in _LETTERS_THEN


def _digit(char: str) -> bool:
    return unicodedata.category(char) == "Nd" and ord(char) <= 0xFFFF and not _NEWER(char)


def _none_of(chars: str) -> CharSet:
    return lambda char: char not in chars


#: Characters that end a web address or mail address wherever they stand.
_URL_STOPS = ' \t\n\f\r"<>|()'

_SENTENCE_OPENERS = (
    "a about according additionally after an as at but earlier he her here however if in it last many more now once "
    "one other our she since so some such that the their then there these they this we what when while yet you"
)

NAMES: dict[str, str | CharSet] = {
    # Sets of characters.
    "letter": _letter,
    "digit": _digit,
    # Combining marks and modifier letters of the scripts up to Lao; they may even begin a word.
    "mark": _ranges(
        "2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2 5c4-5c5 5c7 "
        "615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3 900-903 93c 93e-94e 951-955 "
        "962-963 981-983 9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 "
        "bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44 d46-d48 e31 e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd"
    ),
    # Signs that are a token each.
    "sign": _ranges(
        "23-26 2b-2c 2e 3a-3b 3d 40 5c 5e-5f 7c 7e a1 a6-a9 ac ae-b1 b4 b6-b8 bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 "
        "5f3-5f4 600-603 606-60a 60c 614 61b 61e-61f 66a 66d 6d4 700-70d 7f6-7f8 964-965 e4f 1fbd 2016-2017 2020-2023 "
        "2030-2038 203b 203e-2042 2044 207a-207e 208a-208e 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 "
        "2127 2129 212e 213a-213b 2140-2144 214a-214d 214f 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 "
        "ff5b-ff65"
    ),
    "money": _ranges("80 a2-a5 60b e3f 20a0 20a4 20ac ffe0-ffe1 ffe5-ffe6"),
    "fraction": _ranges("bc-be 2153-215e"),
    "quote": _ranges("60 91-94 ab bb 2018-201f 2039-203a"),  # all but the two ASCII ones
    "hyphen": _ranges("2d 5f 58a 2010-2011"),
    "space": _ranges("9 20 a0 2000-200a 3000"),
    "eye": lambda char: char in "-^x=~<>'",
    "in_url": _none_of(_URL_STOPS + "{}"),
    "in_path": _none_of(_URL_STOPS),
    "url_end": _none_of(_URL_STOPS + "{}.!?,-"),
    "in_www": _none_of(_URL_STOPS + "{}.!?,"),
    "in_host": lambda char: char not in _URL_STOPS + "{}!?$'`" and not "," <= char <= "_",
    "in_mailbox": _none_of(_URL_STOPS + "{}\xa0"),
    "in_domain": _none_of(_URL_STOPS + "{}\xa0."),
    # Parts that several rules share.
    "newline": r"(\r\n | [\r\n\v\f\x85\u2028\u2029])",
    "gap": "({space} | {newline})",
    "apostrophe": r"(['\x92\u2019] | &apos;)",
    "any_apostrophe": r"(['`\x91\x92\u2018\u2019\u201b] | &apos;)",
    "stop": r"[,;:\u3001]",
    "word_letter": r"([{letter}{mark}\xad] | & [aeiouAEIOU] (acute|grave|uml) ;)",
    "word": r"{word_letter} ({word_letter}|{digit})* ([.!?] {word_letter} ({word_letter}|{digit})*)*",
    "clitic": "{apostrophe} ([smdSMD] | re|ve|ll)",
    "acronym": r"([A-Za-z] (\.[A-Za-z])+ | (canada|sino|korean|eu|japan|non)-u\.s | u\.s\.-(u\.k|u\.s\.s\.r))",
    "hyphenated": r"[A-Za-z0-9] [A-Za-z0-9.,\xad]* (- ([A-Za-z0-9\xad]+ | {acronym}\.))+",
    "part": "((d|o|l){any_apostrophe}[{letter}{digit}])? [{letter}{digit}]+",
    "compound": "{part} ({hyphen} {part})*",
    "initials": "[A-Z]+ (([&+] | &amp;) [A-Z]+)+",
    "slash": r"\\?/",
    "slash_part": "[A-Za-z0-9]+ (-[A-Za-z]+){0,2}",
    "tag_name": "[A-Za-z][A-Za-z0-9_:.-]*",
    "sentence_opener": "("
    + "|".join(f"[{w[0].upper()}]{w[1:]}" for w in _SENTENCE_OPENERS.split())
    + r" | [M](r|s)\.)",
    # Abbreviations that may end a sentence, ones that do not, and ones that only count before a number.
    "may_end": r"""(
        inc|cos?|corp|p?pt[ey]s?|ltd|plc|bancorp|bhd|assn|univ|intl|sys|bros|bldg|blvd|rd
        |jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec |mon|tues?|wed|thu(rs)?|fri
        |ala|ariz|[A]z|[A]rk|calif|colo|conn|ct|dak|[D]el|fla|ga|[I]ll|ind|kans?|ky|[L]a|[M]ass|md|mich|minn
        |[M]iss|mo|mont|neb|nev|okla|[O]re|[P]a|penn|tenn|[T]ex|va|vt|[W]ash|wisc?|wyo
        |al|est|etc|ext|seq|sq|tel|rt|jr|sr|esq |ed\.d|ph\.d ) \.""",
    "in_sentence": r"""(
        [A-Za-z] |mrs?|ms|mme|mlle|messrs|msgr|drs?|profs?|asst|assoc|attys?|gen|sens?|reps?|govs?|pres|hon|rev|st|ste
        |adm|brig|capt|cmdr|comdr|col|cpl|ens|insp|lieut|lt|maj|pfc|pvt|sfc|sgt|spc|supts?|treas
        |alex|wm|jos|cie|adj|adv|cf|vs|ph|ave|ft|mt|dept|det|elec|invt|m[ft]g|natl|a\.k\.a ) \.""",
    "numbered": r"(nos? | figs? | pp | art | bldg | prop | op | ca) \.",
    "file_ending": (
        "(bat|bmp|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar"
        "|txt|wav|x|xml|zip)"
    ),
    "phone": r"""(
        ( \([0-9]{2,3}\) [\x20\xa0]? | (\+\+?)? ([0-9]{2,4}[-\x20\xa0])? [0-9]{2,4}[-\x20\xa0] )
            [0-9]{3,4} [-\x20\xa0]? [0-9]{3,5}
        | ((\+\+?)? [0-9]{2,4}\.)? [0-9]{2,4} \. [0-9]{3,4} \. [0-9]{3,5} )""",
    "tag": r"""(
        < / {tag_name} \x20* >
        | < {tag_name} (\x20+ {tag_name} (\x20* = \x20* ("[^"]*" | '[^']*'))?)* \x20* /? \x20* >
        | < [!?][A-Za-z-] [^>\r\n]* > )""",
    "path": "/ {in_path}+ {url_end}",
}

_QUOTES = str.maketrans(
    dict.fromkeys("\x91‘‛‹", "`")
    | dict.fromkeys("\x92’›", "'")
    | dict.fromkeys("\x93“«", "``")
    | dict.fromkeys("\x94”»", "''")
)
_MONEY = str.maketrans({"¢": "cents", "£": "#", "\x80": "$", "¤": "$", "₠": "$", "€": "$"})
_FRACTIONS = str.maketrans({"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"})
_PARENTHESES = str.maketrans({"(": "-LRB-", ")": "-RRB-", " ": "\xa0"})


def _without_soft_hyphens(token: str) -> str:
    return token.replace("\xad", "") or "-"


def _plain_apostrophes(token: str) -> str:
    return token.replace("&apos;", "'").translate(_QUOTES)


def _plain_ampersand(token: str) -> str:
    return re.sub("&amp;", "&", token, flags=re.IGNORECASE)


def _joined_by_hard_spaces(token: str) -> str:
    return token.replace(" ", "\xa0")


def _always(text: str) -> Callable[[str], str]:
    return lambda token: text


#: One rule for every kind of token; on equal length the earlier rule wins.
RULES = [
    # Contractions that are two words.
    Rule(name="cannot", pattern="cannot", keep=3),
    Rule(name="'twas", pattern="'twas | 'tis", keep=2),
    Rule(name="gonna", pattern="gonna | gotta | lemme | gimme | wanna", keep=3),
    # Words and their clitics.
    Rule(
        name="apostrophe word",
        pattern=r"""
        (d|j|l|ol|dunkin|somethin){apostrophe} | {apostrophe}(n{apostrophe}? | em | till? | cause)
        | o{any_apostrophe}o | cap{apostrophe}n | c{apostrophe}est
        | nor'easter | li'l | nat'l | c'mon | e'er | s'mores | ev'ry | cont'd\.""",
    ),
    Rule(name="decade", pattern="{apostrophe}[2-9]0s"),
    Rule(name="word", pattern="{word}", text=_without_soft_hyphens),
    Rule(name="word before clitic", pattern="{word}", before="{clitic}", text=_without_soft_hyphens),
    Rule(
        name="name with apostrophe",
        pattern="""
        {letter}+ [aeiouyAEIOUY] {any_apostrophe} [aeiouA-Z] {letter}*
        | [A-HJ-XZn] {any_apostrophe} {letter}{2} {letter}*""",
    ),
    Rule(
        name="word before n't",
        pattern=r"[A-Za-z\xad]* [A-MO-Za-mo-z] \xad*",
        before="n{any_apostrophe}t",
        text=_without_soft_hyphens,
    ),
    Rule(name="y'", pattern="y{apostrophe}", before="{letter}"),
    Rule(name="last clitic", pattern="{clitic} | n{any_apostrophe}t", before="[^A-Za-z]", text=_plain_apostrophes),
    Rule(name="opening quote", pattern="'", before=r"[A-Za-z] [^\t\n\r\x20\xa0]"),
    Rule(name="clitic", pattern="{clitic} | n{any_apostrophe}t", text=_plain_apostrophes),
    # Things with their own spelling: addresses, tags, file names, dates, telephone numbers.
    Rule(name="tag", pattern="{tag}", text=_joined_by_hard_spaces),
    Rule(name="mail", pattern=r"(< | &lt;)? [A-Za-z0-9]{in_mailbox}* @ ({in_domain}+\.)* {in_domain}+ (> | &gt;)?"),
    Rule(
        name="url",
        pattern=r"""https?:// {in_url}+ {url_end} | www\. ({in_www}+\.)+ [A-Za-z]{2,4} {path}?
        | ({in_host}+\.)+ (com|net|org|edu) {path}?""",
    ),
    Rule(name="user or hash tag", pattern=r"@[A-Za-z_][A-Za-z0-9_]* | \# {word_letter}+"),
    Rule(name="phone", pattern="{phone}", text=lambda token: token.translate(_PARENTHESES)),
    Rule(name="date", pattern="{digit}{1,2} [-/] {digit}{1,2} [-/] {digit}{2,4}"),
    Rule(name="short year", pattern="{apostrophe}[0-9]{2}", before="{gap}"),
    # Periods that belong to the token.
    Rule(name="period before stop", pattern=r"({word} | {hyphenated}) \.", before="{stop}", text=_without_soft_hyphens),
    Rule(name="period of compound", pattern=r"({compound} | {initials}) \.", before="{stop}", text=_plain_ampersand),
    Rule(name="acronym", pattern=r"{acronym} \."),
    Rule(name="acronym without period", pattern=r"{acronym}", before="{gap}"),
    Rule(name="abbreviation in sentence", pattern="{in_sentence}"),
    Rule(name="letter at end of sentence", pattern=r"[A-Za-z]", before=r"\. {gap}+ ({sentence_opener} | {tag}) {gap}"),
    Rule(name="abbreviation", pattern="{may_end}", again=1),
    Rule(name="abbreviation in context", pattern="{may_end}", before="[^][^]"),
    Rule(
        name="file name",
        pattern=r"({word_letter}|{digit})+ (\. ({word_letter}|{digit})+)* \. {file_ending}",
        before=r"{gap} | [.?!,]",
    ),
    Rule(name="abbreviation before number", pattern="{numbered}", before="{gap}? {digit}"),
    # Numbers.
    Rule(
        name="number",
        pattern=r"[-+]? ({digit}+ | {digit}* ([.:,\xad\u066b\u066c] {digit}+)+)",
        text=_without_soft_hyphens,
    ),
    Rule(name="small digits", pattern=r"[⁺⁻₊₋]? ([²³¹⁰⁴-⁹]+ | [₀-₉]+)"),
    Rule(
        name="fraction",
        pattern=r"({digit}{1,4}[-\x20\xa0])? {digit}{1,4} ({slash} | ⁄) {digit}{1,4}",
        text=_joined_by_hard_spaces,
    ),
    Rule(name="fraction sign", pattern="{fraction}", text=lambda token: token.translate(_FRACTIONS)),
    Rule(name="money", pattern="{money}", text=lambda token: token.translate(_MONEY)),
    Rule(name="currency code", pattern=r"[A-Z]+ \$"),
    # Compounds.
    Rule(name="hyphenated", pattern="{hyphenated}", text=_without_soft_hyphens),
    Rule(name="compound", pattern="{compound}"),
    Rule(name="slashed", pattern=r"{slash_part} ({slash} {slash_part}){1,2}"),
    Rule(name="initials", pattern="{initials} | s (& | &amp;) (ls | p-500) | pro- | anti-", text=_plain_ampersand),
    Rule(name="programming language", pattern=r"c\+\+ | (c|f) \#"),
    # Signs.
    Rule(
        name="smiley",
        pattern=r"[<>]? [:;=] [-o*']? [()DPdpO\\\{@|\[\]]",
        before="[^A-Za-z0-9]",
        text=lambda token: token.translate(_PARENTHESES),
    ),
    Rule(
        name="face",
        pattern=r"""{eye} _ {eye} | \( {eye} [_.]? {eye} \) | \( [\^x=~<>'] - [\^x=~<>'`] \)
            | [\^x=~<>] \.\[\^x= [^<]* <>\]""",
        text=lambda token: token.translate(_PARENTHESES),
    ),
    Rule(name="ellipsis", pattern=r"\.{3,5} | (\.[\x20\xa0]){2,4} \. | [\x85…]", text=_always("...")),
    Rule(name="long dash", pattern=r"-{3,4} | [\x96\x97\u2013-\u2015] | &(md|mdash|ndash);", text=_always("--")),
    Rule(name="dash", pattern="-+"),
    Rule(
        name="quotes",
        pattern=r"{apostrophe} | '' | \" | &quot; | {quote}{1,2}",
        text=lambda token: "''" if token in ('"', "&quot;") else _plain_apostrophes(token),
    ),
    Rule(name="less", pattern="< | &lt;", text=_always("<")),
    Rule(name="greater", pattern="> | &gt;", text=_always(">")),
    Rule(name="ampersand", pattern="&amp;", text=_always("&")),
    Rule(name="(", pattern=r"\(", text=_always("-LRB-")),
    Rule(name=")", pattern=r"\)", text=_always("-RRB-")),
    Rule(name="{", pattern=r"\{", text=_always("-LCB-")),
    Rule(name="}", pattern=r"\}", text=_always("-RCB-")),
    Rule(name="[", pattern=r"\[", text=_always("-LSB-")),
    Rule(name="]", pattern=r"\]", text=_always("-RSB-")),
    Rule(name="bracket name", pattern="- (lrb|rrb|lcb|rcb|lsb|rsb) -"),
    Rule(name="repeated sign", pattern=r"[!?]+ | \*+ | (\\\*){1,3} | __+ | \#\#+ | @@+ | << | >>"),
    Rule(name="sign", pattern=r"{sign} | / | &(ht|lr|qc|ql|qr|tl|ur|cdq|odq); | &\# [0-9]+ ;"),
    # What leaves no token.
    Rule(name="newline", pattern="{newline}", text=_always("\n")),
    Rule(name="space", pattern="{space}+ | &nbsp;", text=_always("")),
    Rule(name="unknown character", pattern="[^]", text=_always("")),
]
