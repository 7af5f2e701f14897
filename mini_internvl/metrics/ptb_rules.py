"""v1"""
from __future__ import annotations
import unicodedata
from mini_internvl.metrics.lexer import Rule

def ranges(text):
    spans=[tuple(int(x,16) for x in (r.split("-") if "-" in r else (r,r))) for r in text.split()]
    return lambda c: any(a<=ord(c)<=b for a,b in spans)
NOT_YET = ranges("37f 528-52f 560 588 5ef 860-86a 870-887 889-88e 8a1 8ad-8c9 978 980 9fc af9 c34 c5a c5d c80 cdd d04 d54-d56 d5f e86 e89 e8c e8e-e93 e98 ea0 ea8-ea9 eac 13f5 13f8-13fd 16f1-16f8 170d 171f 1878 191d-191e 19b0-19c0 19c8-19c9 1b4c 1c80-1c88 1c90-1cba 1cbd-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f 31bb-31bf 4db6-4dbf 9fcd-9fff a698-a69d a78f a794-a79f a7ab-a7ca a7d0-a7d1 a7d3 a7d5-a7d9 a7f2-a7f7 a8fd-a8fe a9e0-a9e4 a9e6-a9ef a9fa-a9fe aa7e-aa7f ab30-ab5a ab5c-ab69 ab70-abbf")
WASLETTER=ranges("1885-1886")
MARKS=ranges("2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2 5c4-5c5 5c7 615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3 900-903 93c 93e-94e 951-955 962-963 981-983 9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44 d46-d48 e31 e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd")
SYMS=ranges("25 a1 a6-a9 ac ae-b1 b4 b6-b8 bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60a 60c 614 61b 61e-61f 66a 66d 6d4 700-70d 7f6-7f8 964-965 e4f 1fbd 2016-2017 2020-2023 2030-2038 203b 203e-2042 207c-207e 208c-208e 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d 214f 2190-24b5 24d0-2bff 3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65")
def alpha(c): return ord(c)<65536 and (unicodedata.category(c)[0] == "L" and not NOT_YET(c) or WASLETTER(c))
NAMES = {
 "alpha": alpha,
 "mark": MARKS,
 "roman": ranges("2160-216f"), "circled": ranges("24b6-24cf"),
 "symbol": SYMS,
 "D": lambda c: c in "0123456789" or (unicodedata.category(c)=="Nd" and ord(c)<65536 and not (0xde6<=ord(c)<=0xdef or 0xa9f0<=ord(c)<=0xa9f9)),
 "SPACE": lambda c: c in " \t\xa0\u3000" or 0x2000<=ord(c)<=0x200a,
 "currency": ranges("80 a2-a5 60b e3f 20a0 20a4 20ac ffe0-ffe1 ffe5-ffe6"),
 "vulgar": ranges("bc-be 2153-215e"),
 "NEWLINE": "(\r\n | [\r\n\u2028\u2029\x0b\x0c])",
 "APOS": "(['\x92\u2019] | &apos;)",
 "APOSW": "(['\x92\u2019\x91\u2018\u201b] | &apos;)",
 "LETTER": "([{alpha}{mark}\xad] | & [aeiouAEIOU] (acute|grave|uml) ;)",
 "WORD": "({LETTER} ({LETTER}|[{D}])* ([.!?] {LETTER} ({LETTER}|[{D}])*)*)",
 "NUM": "([{D}]+ | [{D}]* ([.:,\xad\u066b\u066c] [{D}]+)+)",
 "NUMBER": "([-+]? {NUM} | [\u207a\u207b\u208a\u208b]? ([\xb2\xb3\xb9\u2070\u2074-\u2079]+ | [\u2080-\u2089]+))",
 "CLITIC": "({APOS} ([msdMSD] | re|ve|ll))",
 "DATE": "([{D}]{1,2} [-/] [{D}]{1,2} [-/] [{D}]{2,4})",
 "ALWAYS": "([A-Za-z] | cf|dr|ft|lt|mr|ms|mt|ph|st|vs|wm|adj|adm|adv|ave|cie|col|cpl|det|drs|ens|gen|gov|hon|jos|maj|mfg|mme|mrs|mtg|pfc|pvt|rep|rev|sen|sfc|sgt|spc|ste|alex|asst|atty|brig|capt|cmdr|dept|elec|govs|insp|invt|mlle|msgr|natl|pres|prof|reps|sens|supt|assoc|attys|comdr|lieut|profs|supts|treas|messrs) \\.",
 "ENDS": "(al|co|ct|ga|jr|ky|md|mo|rd|rt|sq|sr|va|vt|ala|apr|aug|bhd|cos|dak|dec|esq|est|etc|ext|feb|fla|fri|inc|ind|jan|jul|jun|kan|ltd|mar|mon|neb|nev|nov|oct|plc|pte|pty|sep|seq|sys|tel|thu|tue|wed|wis|wyo|ariz|assn|bldg|blvd|bros|colo|conn|corp|intl|kans|mich|minn|mont|okla|penn|ppte|ppty|ptes|ptys|sept|tenn|tues|univ|wisc|calif|pptes|pptys|thurs) \\.",
 "ACRO": "([A-Za-z] (\\.[A-Za-z])+)",
}
RULES = [
 Rule(name="cannot", pattern="cannot|'twas", ),
 Rule(name="gonna", pattern="gonna|gotta|lemme|gimme|wanna|'tis", ),
 Rule(name="entity6", pattern="{WORD}"),
 Rule(name="clitic", pattern="{WORD}", before="{CLITIC}"),
 Rule(name="not", pattern="{LETTER}+", before="n{APOSW}t"),
 Rule(name="clitic2", pattern="{CLITIC}|n{APOSW}t", before="[^A-Za-z]"),
 Rule(name="clitic3", pattern="{CLITIC}|n{APOSW}t"),
 Rule(name="date", pattern="{DATE}"),
 Rule(name="number", pattern="{NUMBER}"),
 Rule(name="frac", pattern="([{D}]{1,4}[-\xa0 ])? [{D}]{1,4} (\\\\?/|\u2044) [{D}]{1,4}"),
 Rule(name="thing", pattern="[dj]{APOS} | [A-Za-z][aeiouyAEIOUY]{APOS}[aeiouAEIOU][A-Za-z]* | [dnlo]{APOS}[A-Za-z]{2}[A-Za-z]* | 'til|'em|li'l|dunkin'|somethin'"),
 Rule(name="always", pattern="{ALWAYS}"),
 Rule(name="ends", pattern="{ENDS}"),
 Rule(name="acro", pattern="{ACRO} \\.", before=""),
 Rule(name="alone", pattern="[A-Za-z]", before="[{SPACE}]|{NEWLINE}"),
 Rule(name="numdot", pattern="{NUMBER}\\.", before="[,;:\u3001]"),
 Rule(name="worddot", pattern="{WORD}\\.", before="[,;:\u3001]"),
 Rule(name="hyph", pattern="[A-Za-z0-9][A-Za-z0-9.,\xad]* (-([A-Za-z0-9\xad]+ | {ACRO}\\.))+"),
 Rule(name="hyphdot", pattern="[A-Za-z0-9][A-Za-z0-9.,\xad]* (-([A-Za-z0-9\xad]+ | {ACRO}\\.))+\\.", before="[,;:\u3001]"),
 Rule(name="slashes", pattern="[A-Za-z0-9]+(-[A-Za-z]+){0,2}(/[A-Za-z0-9]+(-[A-Za-z]+){0,2}){1,2}"),
 Rule(name="amps", pattern="[A-Z]+(([&+]|&amp;)[A-Z]+)+ | pro-|anti- | s(&|&amp;)ls | s(&|&amp;)p-500|&amp;"),
 Rule(name="ampsdot", pattern="[A-Z]+(([&+]|&amp;)[A-Z]+)+\\.", before="[,;:\u3001]"),
 Rule(name="under", pattern="[A-Za-z0-9]+(_[A-Za-z0-9]+)+"),
 Rule(name="unders", pattern="__+|<<+|##+|@@+|>>+"),
 Rule(name="twitter", pattern="[#][A-Za-z]+|@[A-Za-z][A-Za-z0-9_]*"),
 Rule(name="digitword", pattern="[{D}]+({LETTER}[{D}]*)+"),
 Rule(name="dollar", pattern="[A-Z]+\\$"),
 Rule(name="csharp", pattern="c\\+\\+|[cf]\\#"),
 Rule(name="y", pattern="y{APOS}", before="[A-Za-z]"),
 Rule(name="nineties", pattern="'[0-9][0-9]", before="[{SPACE}]|{NEWLINE}"),
 Rule(name="ninetiess", pattern="'[0-9]0s|'n'?"),
 Rule(name="nofig", pattern="(ca|fig|no|nos|pp|ed|eq|sect|bldg|chap|ch|vol)\\.", before="([{SPACE}]|{NEWLINE})* [{D}]"),
 Rule(name="phone", pattern="[{D}]{2}[- ][{D}]{3}[- ]?[{D}]{3,5}"),
 Rule(name="space", pattern="[{SPACE}]+ | &nbsp; | [\x00\u200b\u200e\u200f\ufeff]"),
 Rule(name="newline", pattern="{NEWLINE}"),
 Rule(name="sgml", pattern="< [/?!]? [A-Za-z] [^>]* >"),
 Rule(name="less", pattern="< | &lt;"),
 Rule(name="greater", pattern="> | &gt;"),
 Rule(name="mdash", pattern="[\x96\x97\u2013-\u2015] | &(md|mdash|ndash);"),
 Rule(name="slash", pattern="/"),
 Rule(name="euro", pattern="[{currency}]"),
 Rule(name="vulgar", pattern="[{vulgar}]"),
 Rule(name="dashes", pattern="-+"),
 Rule(name="dots", pattern="\\.\\.\\.+ | \\.[{SPACE}]\\.[{SPACE}]\\.([{SPACE}]\\.)* | [\x85\u2026]"),
 Rule(name="quote", pattern="{APOS} | [`\"\x91\u2018\u201b\x93\x94\xab\xbb\u201a\u201c-\u201f\u2039\u203a]|''|&quot;"),
 Rule(name="lp", pattern="\\("), Rule(name="rp", pattern="\\)"),Rule(name="lc", pattern="\\{"),Rule(name="rc", pattern="}"),Rule(name="ls", pattern="\\["),Rule(name="rs", pattern="]"),
 Rule(name="star", pattern="\\*+ | (\\\\\\*){1,3}"),
 Rule(name="single", pattern="[{symbol}_=&;#:+\\\\\u2044$.,^@~|\u3001{circled}{roman}\u207a\u207b\u208a\u208b\u0025!?]"),
 Rule(name="bangs", pattern="[!?]+"),
 Rule(name="del", pattern="\x7f"),
 Rule(name="other", pattern="[^]"),
]
