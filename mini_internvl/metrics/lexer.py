"""A small longest-match lexer generator: a table of regular expressions becomes one lazily built automaton.

Python's `re` takes the first alternative that fits; a classical lexer takes the *longest* match over all its rules, and
the earlier rule on a tie. This module provides the second kind: the rules are compiled to one nondeterministic
automaton (Thompson's construction), which is made deterministic (subset construction) state by state as text needs it.
After a short warm-up, reading a character costs one dictionary look-up.

The pattern language is small: literals (matched in any case), `[...]` and `[^...]` (matched as written), groups, `|`,
`?`, `*`, `+`, `{m}` and `{m,n}`, and `{NAME}` for a named set of characters or another named pattern. A backslash makes
the next character a literal; `t`, `n`, `v`, `f`, `r`, `xHH` and `uHHHH` behind it mean what they mean in Python. White
space in a pattern means nothing, except inside brackets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

CharSet = Callable[[str], bool]

#: The mark behind the last character of a text; no pattern reads it.
END = "\0"

#: A node of a parsed pattern: ("set", number) | ("cat", nodes) | ("or", nodes) | ("repeat", node, least, most or None).
Node = tuple

#: Escapes of control characters; any other escaped character is itself.
_ESCAPES = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r"}

#: Characters that count as the same letter when a literal is matched in any case, beyond lower and upper case.
_ALSO_SAME = {"i": "ıİ", "k": "\u212a", "s": "ſ"}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One kind of token.

    The rule competes with the length of `pattern` and `before` together, but `before` is not part of the token.
    """

    name: str  #: What the rule recognises, for readers and error messages.
    pattern: str  #: The text of the token, in the pattern language of this module.
    before: str = ""  #: What must follow the token.
    text: Callable[[str], str] | None = None  #: Changes the token's text; "" drops the token; None leaves it.


class PatternSyntaxError(ValueError):
    """A pattern of the rule table cannot be read."""


class _Parser:
    """Recursive descent over one pattern; `names` holds the named sets (callables) and patterns (strings)."""

    def __init__(self, pattern: str, names: Mapping[str, str | CharSet], classes: CharClasses) -> None:
        self.pattern, self.names, self.classes, self.at = pattern, names, classes, 0

    def parse(self) -> Node:
        node = self._alternatives()
        if self.at != len(self.pattern):
            raise PatternSyntaxError(f"unexpected {self.pattern[self.at]!r} at {self.at} in pattern {self.pattern!r}")
        return node

    def _peek(self) -> str:
        while self.at < len(self.pattern) and self.pattern[self.at].isspace():
            self.at += 1
        return self.pattern[self.at : self.at + 1]

    def _alternatives(self) -> Node:
        options = [self._sequence()]
        while self._peek() == "|":
            self.at += 1
            options.append(self._sequence())
        return options[0] if len(options) == 1 else ("or", options)

    def _sequence(self) -> Node:
        items = []
        while self._peek() not in ("", "|", ")"):
            items.append(self._repeated())
        return ("cat", items)

    def _repeated(self) -> Node:
        node = self._atom()
        while (mark := self._peek()) in ("?", "*", "+") or (mark == "{" and self.pattern[self.at + 1].isdigit()):
            if mark == "{":
                least, _, most = self._until("}").partition(",")
                node = ("repeat", node, int(least), int(most or least))
            else:
                self.at += 1
                node = ("repeat", node, int(mark == "+"), 1 if mark == "?" else None)
        return node

    def _until(self, end: str) -> str:
        """The text between the current one-character mark and `end`; moves behind it."""
        stop = self.pattern.index(end, self.at)
        inner, self.at = self.pattern[self.at + 1 : stop], stop + 1
        return inner

    def _atom(self) -> Node:
        mark = self._peek()
        if mark == "(":
            self.at += 1
            node = self._alternatives()
            if self._peek() != ")":
                raise PatternSyntaxError(f"missing ')' in pattern {self.pattern!r}")
            self.at += 1
            return node
        if mark == "[":
            return ("set", self._bracket())
        if mark == "{":
            name = self._until("}")
            value = self.names[name]
            if callable(value):
                return ("set", self.classes.register("{" + name + "}", value))
            return _Parser(value, self.names, self.classes).parse()
        letter = self._letter()
        same = {letter, letter.lower(), letter.upper(), *_ALSO_SAME.get(letter.lower(), "")}
        return ("set", self.classes.register(letter.lower(), lambda char: char in same))

    def _bracket(self) -> int:
        begin = self.at
        self.at += 1
        negated = self.pattern[self.at] == "^"
        self.at += negated
        singles: set[str] = set()
        ranges: list[tuple[str, str]] = []
        tests: list[CharSet] = []
        while (mark := self.pattern[self.at]) != "]":
            if mark == "{":
                test = self.names[self._until("}")]
                assert callable(test), f"a pattern is named inside brackets in {self.pattern!r}; only sets fit there"
                tests.append(test)
                continue
            first = self._letter()
            if self.pattern[self.at] == "-" and self.pattern[self.at + 1] != "]":
                self.at += 1
                ranges.append((first, self._letter()))
            else:
                singles.add(first)
        self.at += 1

        def contains(char: str) -> bool:
            inside = (
                char in singles or any(low <= char <= high for low, high in ranges) or any(test(char) for test in tests)
            )
            return inside != negated

        return self.classes.register(self.pattern[begin : self.at], contains)

    def _letter(self) -> str:
        """Reads one literal character, escaped or not."""
        if self.pattern[self.at] != "\\":
            self.at += 1
            return self.pattern[self.at - 1]
        kind = self.pattern[self.at + 1]
        digits = {"x": 2, "u": 4}.get(kind, 0)
        self.at += 2 + digits
        return chr(int(self.pattern[self.at - digits : self.at], 16)) if digits else _ESCAPES.get(kind, kind)


class _Network:
    """The nondeterministic automaton: numbered places, arcs that read a character of a set, and free moves."""

    def __init__(self) -> None:
        self.free: list[list[int]] = []
        self.arc: list[tuple[int, int] | None] = []  # (number of a set, place reached)
        self.accepts: dict[int, int] = {}  # place -> number of the rule that is complete there

    def place(self) -> int:
        self.free.append([])
        self.arc.append(None)
        return len(self.free) - 1

    def add(self, node: Node, start: int) -> int:
        """Adds what `node` describes behind place `start`; returns the place where it ends."""
        kind = node[0]
        if kind == "set":
            # A fresh place carries the arc, so that no place ever needs two.
            here, end = self.place(), self.place()
            self.free[start].append(here)
            self.arc[here] = (node[1], end)
            return end
        if kind == "cat":
            for part in node[1]:
                start = self.add(part, start)
            return start
        if kind == "or":
            end = self.place()
            for part in node[1]:
                fork = self.place()
                self.free[start].append(fork)
                self.free[self.add(part, fork)].append(end)
            return end
        _, inner, least, most = node
        for _ in range(least):
            start = self.add(inner, start)
        if most is None:
            loop = self.place()
            self.free[start].append(loop)
            self.free[self.add(inner, loop)].append(loop)
            end = self.place()
            self.free[loop].append(end)
            return end
        end = self.place()
        self.free[start].append(end)
        for _ in range(most - least):
            start = self.add(inner, start)
            self.free[start].append(end)
        return end

    def spread(self, places: Sequence[int]) -> frozenset[int]:
        """All places reachable from `places` by free moves, reduced to those that matter (arcs and accepting)."""
        seen, todo = set(places), list(places)
        while todo:
            for place in self.free[todo.pop()]:
                if place not in seen:
                    seen.add(place)
                    todo.append(place)
        return frozenset(p for p in seen if self.arc[p] is not None or p in self.accepts)


class _State(dict):
    """A state of the deterministic automaton: class mark -> next state, filled when a mark is first seen.

    `rule` is the number of the rule that is complete here, or -1; the dead state is the one with no places.
    """

    __slots__ = ("automaton", "places", "rule")

    def __init__(self, automaton: Automaton, places: frozenset[int]) -> None:
        super().__init__()
        self.automaton, self.places = automaton, places
        self.rule = min((automaton.network.accepts[p] for p in places if p in automaton.network.accepts), default=-1)

    def __missing__(self, mark: str) -> _State:
        state = self[mark] = self.automaton.successor(self.places, mark)
        return state


class CharClasses(dict):
    """Maps a code point to a mark (a character) that stands for all characters no set of the rules tells apart.

    It is a table for `str.translate`: a whole text is classified in one call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sets: list[CharSet] = []
        self.numbers: dict[str, int] = {}  # notation of a set -> its number
        self.marks: dict[tuple[bool, ...], str] = {}  # which sets hold a character -> mark
        self.signatures: dict[str, tuple[bool, ...]] = {}  # the reverse

    def register(self, notation: str, contains: CharSet) -> int:
        """The number of a set of characters; sets of the same notation share one."""
        if notation not in self.numbers:
            self.numbers[notation] = len(self.sets)
            self.sets.append(contains)
        return self.numbers[notation]

    def __missing__(self, point: int) -> str:
        signature = tuple(contains(chr(point)) for contains in self.sets)
        mark = self.marks.setdefault(signature, chr(len(self.marks) + 1))
        self.signatures[mark] = signature
        self[point] = mark
        return mark


class Automaton:
    """Longest-match automaton over one or more patterns that share a table of character classes."""

    def __init__(self, nodes: Sequence[Node], classes: CharClasses) -> None:
        self.classes = classes
        self.network = _Network()
        self.states: dict[frozenset[int], _State] = {}
        start = self.network.place()
        for number, node in enumerate(nodes):
            end = self.network.add(node, start)
            self.network.accepts.setdefault(end, number)
        self.dead = self._state(frozenset())
        self.start = self._state(self.network.spread([start]))

    def _state(self, places: frozenset[int]) -> _State:
        if places not in self.states:
            self.states[places] = _State(self, places)
        return self.states[places]

    def successor(self, places: frozenset[int], mark: str) -> _State:
        """The state reached from `places` by any character of the class `mark`."""
        if mark == END:
            return self.dead
        inside = self.classes.signatures[mark]
        arcs = filter(None, (self.network.arc[place] for place in places))
        return self._state(self.network.spread([target for number, target in arcs if inside[number]]))

    def accepting_ends(self, marks: str, start: int, stop: int) -> Iterator[int]:
        """Every position in start..stop at which a match that began at `start` is complete, in rising order."""
        state = self.start
        for at in range(start, stop + 1):
            if state.rule >= 0:
                yield at
            if at < stop:
                state = state[marks[at]]


class Lexer:
    """The compiled rule table: cuts a text into tokens.

    `names` holds the named sets of characters and the named patterns. `shortcut` matches text that is known to consist
    of unchanged tokens with one space behind each; such text is cut at the spaces without asking the automaton, which
    makes ordinary prose several times faster.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        names: Mapping[str, str | CharSet],
        *,
        shortcut: re.Pattern[str] | None = None,
    ) -> None:
        self.rules, self.shortcut = rules, shortcut
        self.classes = CharClasses()
        tokens = [_Parser(rule.pattern, names, self.classes).parse() for rule in rules]
        contexts = [_Parser(rule.before, names, self.classes).parse() for rule in rules]
        both = [("cat", pair) for pair in zip(tokens, contexts, strict=True)]
        self.automaton = Automaton(both, self.classes)
        # Where a following context can have several lengths, the split is found by two more automata.
        self.context_length = [_fixed_length(context) for context in contexts]
        self.splitters = {
            number: (Automaton([tokens[number]], self.classes), Automaton([contexts[number]], self.classes))
            for number, length in enumerate(self.context_length)
            if length is None
        }

    def tokens(self, text: str) -> list[str]:
        """The tokens of `text` in order, each changed as its rule says; tokens that became empty are left out."""
        marks = text.translate(self.classes) + END
        begin, dead = self.automaton.start, self.automaton.dead
        run_at = self.shortcut.match if self.shortcut is not None else (lambda text, at: None)
        rules, found = self.rules, []
        at, size = 0, len(text)
        while at < size:
            if run := run_at(text, at):
                found += run.group().split()
                at = run.end()
                continue
            state, here, number, stop = begin, at, -1, at
            while state is not dead:
                state = state[marks[here]]
                here += 1
                if state.rule >= 0:
                    number, stop = state.rule, here
            assert number >= 0, f"no rule matches {text[at : at + 10]!r}"
            end = self.token_end(number, marks, at, stop)
            change = rules[number].text
            token = text[at:end] if change is None else change(text[at:end])
            if token:
                found.append(token)
            at = end
        return found

    def token_end(self, number: int, marks: str, start: int, stop: int) -> int:
        """Where the token of rule `number` ends when rule and context together match marks[start:stop]."""
        length = self.context_length[number]
        if length is not None:
            return stop - length
        token, context = self.splitters[number]
        # The longest token whose remainder is a complete context.
        ends = [e for e in token.accepting_ends(marks, start, stop) if stop in context.accepting_ends(marks, e, stop)]
        return ends[-1]


def _fixed_length(node: Node) -> int | None:
    """The number of characters that every match of `node` has, or None when matches differ in length."""
    if node[0] == "set":
        return 1
    if node[0] == "repeat":
        _, inner, least, most = node
        length = _fixed_length(inner)
        return None if length is None or least != most else length * least
    lengths = [_fixed_length(part) for part in node[1]]
    if None in lengths:
        return None
    if node[0] == "cat":
        return sum(length for length in lengths if length is not None)
    return lengths[0] if len(set(lengths)) == 1 else None
