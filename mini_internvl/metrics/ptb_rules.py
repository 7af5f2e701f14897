"""v0"""
from __future__ import annotations
import unicodedata
from mini_internvl.metrics.lexer import Rule

LATER = {}
def letter(c): return unicodedata.category(c)[0] == "L" and ord(c)<65536
def between(*spans):
    return lambda c: any(a <= ord(c) <= b for a,b in spans)
NAMES = {
 "L": letter,
 "D": lambda c: c in "0123456789" or (unicodedata.category(c)=="Nd" and ord(c)<65536),
 "MARK": between((0x2c2,0x2c5),(0x2d2,0x2df)),
 "SPACE": lambda c: c in " \t\xa0\u3000" or 0x2000<=ord(c)<=0x200a,
 "NEWLINE": "\r\n | [\r\n\u2028\u2029\x0b\x0c]",
 "APOS": "['\x92\u2019] | &apos;",
 "WORD": "[{L}\xad] [{L}{D}\xad]* ([.!?] [{L}] [{L}{D}]*)*",
 "NUMBER": "[-+]? ([{D}]+ | [{D}]* ([.:,\xad\u066b\u066c] [{D}]+)+ )",
}
RULES = [
 Rule(name="word", pattern="{WORD}"),
 Rule(name="number", pattern="{NUMBER}"),
 Rule(name="space", pattern="[{SPACE}]+ | &nbsp;"),
 Rule(name="newline", pattern="{NEWLINE}"),
 Rule(name="other", pattern="[^]"),
]
