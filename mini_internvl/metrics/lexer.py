"""A small longest-match lexer generator: a table of regular expressions becomes one lazily built automaton.

Python's `re` takes the first alternative that fits; a classical lexer takes the *longest* match over all its rules, and
the earlier rule on a tie. This module provides the second kind: the rules are compiled to one nondeterministic
automaton (Thompson's construction), which is made deterministic (subset construction) state by state as text needs it.
After a short warm-up, reading a character costs one dictionary look-up.

The pattern language is small: literals (matched in any case), `[...]` and `[^...]` (matched as written), groups, `|`,
`?`, `*`, `+`, `{m}` and `{m,n}`, and `{NAME}` for another named pattern. Brackets and escapes are Python's own. White
space in a pattern means nothing, except inside brackets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

#: The mark behind the last character of a text; no pattern reads it.
END = "\0"

#: A part of a pattern: ("set", notation) | ("cat", nodes) | ("or", nodes) | ("repeat", node, least, most or None).
Node = tuple

_TOKEN = re.compile(
    r"""\s+ | (?P<set> \[ (?:\\.|[^\]\\])+ \]) | \{(?P<name>[A-Za-z_]+)\} | (?P<times>[?*+]|\{\d+(?:,\d+)?\})
    | (?P<sign>[()|]) | (?P<literal>\\x..|\\u....|\\.|.)""",
    re.VERBOSE,
)
_TIMES = {"?": (0, 1), "*": (0, None), "+": (1, None)}


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
    """Recursive descent over the parts of one pattern; `names` holds the named patterns, parsed."""

    def __init__(self, pattern: str, names: Mapping[str, Node], classes: CharClasses) -> None:
        self.pattern, self.names, self.classes = pattern, names, classes
        matches = (match for match in _TOKEN.finditer(pattern) if match.lastgroup)
        self.left = [(str(match.lastgroup), match[str(match.lastgroup)]) for match in matches]
        self.left.reverse()

    def parse(self) -> Node:
        node = self._alternatives()
        if self.left:
            raise PatternSyntaxError(f"unexpected {self.left[-1][1]!r} in pattern {self.pattern!r}")
        return node

    def _take(self, sign: str) -> bool:
        """Whether `sign` comes next; moves behind it."""
        found = self.left[-1:] == [("sign", sign)]
        if found:
            self.left.pop()
        return found

    def _alternatives(self) -> Node:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else ("or", options)

    def _sequence(self) -> Node:
        items = []
        while self.left and self.left[-1] not in (("sign", "|"), ("sign", ")")):
            node = self._atom(*self.left.pop())
            while self.left and self.left[-1][0] == "times":
                times = self.left.pop()[1]
                least, _, most = times.strip("{}").partition(",")
                node = ("repeat", node, *(_TIMES.get(times) or (int(least), int(most or least))))
            items.append(node)
        return ("cat", items)

    def _atom(self, kind: str, text: str) -> Node:
        if kind == "set":
            return self.classes.add(text)
        if kind == "literal":
            return self.classes.add(f"(?i:[{text.lower()}])")
        if kind == "name":
            return self.names[text]
        if kind == "times":
            raise PatternSyntaxError(f"nothing before {text!r} to repeat in pattern {self.pattern!r}")
        node = self._alternatives()
        if not self._take(")"):
            raise PatternSyntaxError(f"missing ')' in pattern {self.pattern!r}")
        return node


class CharClasses(dict):
    """Maps a code point to a mark (a character) that stands for all characters no set of the rules tells apart.

    It is a table for `str.translate`: a whole text is classified in one call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sets: dict[str, re.Pattern[str]] = {}  # by their notation
        self.marks: dict[frozenset[str], str] = {}  # sets that hold a character -> mark
        self.inside: dict[str, frozenset[str]] = {}  # the reverse

    def add(self, notation: str) -> Node:
        """The node of a set of characters in Python's notation."""
        if notation not in self.sets:
            self.sets[notation] = re.compile(notation)
        return ("set", notation)

    def __missing__(self, point: int) -> str:
        inside = frozenset(notation for notation, characters in self.sets.items() if characters.match(chr(point)))
        mark = self[point] = self.marks.setdefault(inside, chr(len(self.marks) + 1))
        self.inside[mark] = inside
        return mark


class _State(dict):
    """A state of the deterministic automaton: class mark -> next state, filled when a mark is first seen.

    `rule` is the number of the rule that is complete here, or -1; the dead state is the one with no places.
    """

    __slots__ = ("automaton", "places", "rule")

    def __init__(self, automaton: Automaton, places: frozenset[int]) -> None:
        super().__init__()
        self.automaton, self.places = automaton, places
        self.rule = min((automaton.accepts[place] for place in places if place in automaton.accepts), default=-1)

    def __missing__(self, mark: str) -> _State:
        state = self[mark] = self.automaton.successor(self.places, mark)
        return state


class Automaton:
    """Longest-match automaton over one or more patterns that share a table of character classes.

    Its nondeterministic form has numbered places with free moves and at most one arc each, which reads a character.
    """

    def __init__(self, nodes: Sequence[Node], classes: CharClasses) -> None:
        self.classes = classes
        self.free: list[list[int]] = []
        self.arcs: dict[int, tuple[str, int]] = {}  # place -> notation of a set, place reached
        self.accepts: dict[int, int] = {}  # place -> number of the rule that is complete there
        self.states: dict[frozenset[int], _State] = {}
        start = self._place()
        for number, node in enumerate(nodes):
            self.accepts.setdefault(self._add(node, start), number)
        self.dead = self._state([])
        self.start = self._state([start])

    def _place(self) -> int:
        self.free.append([])
        return len(self.free) - 1

    def _add(self, node: Node, start: int) -> int:
        """Adds what `node` describes behind place `start`; returns the place where it ends."""
        kind = node[0]
        if kind == "cat":
            for part in node[1]:
                start = self._add(part, start)
            return start
        if kind == "set":
            # A fresh place carries the arc, so that no place ever needs two.
            here, end = self._place(), self._place()
            self.free[start].append(here)
            self.arcs[here] = (node[1], end)
            return end
        end = self._place()
        if kind == "or":
            for part in node[1]:
                self.free[self._add(part, start)].append(end)
            return end
        _, inner, least, most = node
        for _ in range(least):
            start = self._add(inner, start)
        self.free[start].append(end)
        if most is None:
            self.free[self._add(inner, end)].append(end)
            return end
        for _ in range(most - least):
            start = self._add(inner, start)
            self.free[start].append(end)
        return end

    def _state(self, places: Sequence[int]) -> _State:
        """The state of all places that free moves reach from `places`, reduced to those with an arc or a rule."""
        seen, todo = set(places), list(places)
        while todo:
            for place in self.free[todo.pop()]:
                if place not in seen:
                    seen.add(place)
                    todo.append(place)
        reached = frozenset(place for place in seen if place in self.arcs or place in self.accepts)
        if reached not in self.states:
            self.states[reached] = _State(self, reached)
        return self.states[reached]

    def successor(self, places: frozenset[int], mark: str) -> _State:
        """The state reached from `places` by any character of the class `mark`."""
        inside = self.classes.inside.get(mark, frozenset())
        arcs = [self.arcs[place] for place in places if place in self.arcs]
        return self._state([target for notation, target in arcs if notation in inside])

    def ends(self, marks: str, start: int) -> Iterator[int]:
        """Every position at which a match that begins at `start` is complete, in rising order."""
        state = self.start
        for at in range(start, len(marks) + 1):
            if state.rule >= 0:
                yield at
            if at < len(marks):
                state = state[marks[at]]


class Lexer:
    """The compiled rule table: cuts a text into tokens.

    `names` holds the named patterns, each of which may use those before it. `shortcut` matches text that is known to
    consist of unchanged tokens with one space behind each; such text is cut at the spaces without asking the automaton,
    which makes ordinary prose several times faster.
    """

    def __init__(
        self, rules: Sequence[Rule], names: Mapping[str, str], *, shortcut: re.Pattern[str] | None = None
    ) -> None:
        self.rules, self.shortcut = rules, shortcut
        self.classes = CharClasses()
        nodes: dict[str, Node] = {}
        for name, pattern in names.items():
            nodes[name] = _Parser(pattern, nodes, self.classes).parse()
        parts = [rule.pattern for rule in rules], [rule.before for rule in rules]
        self.patterns, self.contexts = ([_Parser(part, nodes, self.classes).parse() for part in side] for side in parts)
        both = [("cat", pair) for pair in zip(self.patterns, self.contexts, strict=True)]
        self.automaton = Automaton(both, self.classes)
        self.splitters: dict[int, tuple[Automaton, Automaton]] = {}  # of pattern and context, for rules with one
        self.token_length = lru_cache(maxsize=1 << 14)(self._token_length)

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
            end = at + self.token_length(number, marks[at:stop]) if rules[number].before else stop
            change = rules[number].text
            token = text[at:end] if change is None else change(text[at:end])
            if token:
                found.append(token)
            at = end
        return found

    def _token_length(self, number: int, marks: str) -> int:
        """Characters of the longest token of rule `number` whose remainder in `marks` is a complete context."""
        if number not in self.splitters:
            pair = [self.patterns[number]], [self.contexts[number]]
            self.splitters[number] = Automaton(pair[0], self.classes), Automaton(pair[1], self.classes)
        pattern, context = self.splitters[number]
        stop = len(marks)
        return max(end for end in pattern.ends(marks, 0) if stop in context.ends(marks, end))
