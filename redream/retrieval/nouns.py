"""What a text names, and whether one thing is a kind of another: "a goldfish" is asked for, "a cartoon fish" is there.

Words come from WordNet (Miller, 1995): 41,000 nouns of visible things, with the kinds above each of their senses, in
`nouns.json.gz` (`index_build/wordnet.py` makes it; `nouns.LICENSE` is Princeton's). How alike two things are is Lin's
measure (1998) with the information content that the graph itself gives (Seco et al., 2004),
    IC(s) = 1 - ln(1 + number of senses below s) / ln(number of senses),
    likeness(a, b) = 2 IC(a) / (IC(a) + IC(b))
for a above b, likewise for b above a, and 0 if neither is above: a truck is not a kind of locomotive, although both are
vehicles. Only English is known; words of other languages are alike if they are equal.
"""

# ruff: noqa: SIM905  (a list of words reads best as one text)

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path

TABLE = Path(__file__).with_name("nouns.json.gz")
MIN_LIKENESS = 0.4  # below it the kind that two things share is too general to say anything, such as "device"
MIN_KINSHIP = 0.5  # of two nouns in a row that both name the thing: "taxi sedan", but not "desk fan"
MIN_PART = 4  # letters of a part of a compound: "starfighter" holds "fighter"

COLORS = frozenset(
    "beige black blue brown cream cyan gold golden gray green grey magenta maroon navy olive orange pink purple red "
    "silver tan teal turquoise violet white yellow".split()
)
_SAME_COLOR = {"gray": "grey", "golden": "gold"}
# Before "of": says how the thing is shown, and not what it is.
_FRAMES = frozenset("asset closeup drawing image mesh model painting photo photograph picture render rendering".split())
# Where the phrase that names a thing ends, once it has named one.
_ENDS = frozenset(
    "a about above against an and anything are as at be behind below beside but by can could for from had has have her "
    "his holding if in inside into is its like made near next nothing of on or over she so somebody someone something "
    "than that the their them they this to under up was we wearing were when where which who whom whose will with "
    "without would you".split()
)
_PLURALS = (
    ("ies", "y"),
    ("ves", "f"),
    ("ves", "fe"),
    ("ses", "s"),
    ("xes", "x"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
)
_TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[,.;:()]")


def named_things(text: str) -> list[str]:
    """Return the nouns that a text is about, in the singular: those that end its first phrase and what follows "of".

    "a DSLR photo of a red fox wearing a scarf" is about a fox, "a bowl of noodles" about a bowl and noodles.
    """
    things: list[str] = []
    tokens = _TOKEN.findall(text.lower())
    start = 0
    while start < len(tokens):
        phrase, end = _phrase(tokens, start)
        named = _names(phrase)
        is_frame = named[:1] in [[frame] for frame in _FRAMES] and end < len(tokens) and tokens[end] == "of"
        things += [] if is_frame else named
        if end >= len(tokens) or tokens[end] != "of":
            break
        start = end + 1
    return things


def colors_of(text: str) -> frozenset[str]:
    """Return the colors that a text gives its thing: those before the noun that ends its first phrase."""
    phrase, _ = _phrase(_TOKEN.findall(text.lower()), 0)
    words = {part for word in phrase for part in word.split("-")}
    return frozenset(_SAME_COLOR.get(word, word) for word in words & COLORS)


def is_named(things: Sequence[str], text: str) -> bool:
    """Tell whether a text is about one of some things, or a kind of it, or what it is a kind of."""
    pairs = product(things, named_things(text))
    return any(likeness(one, other) >= MIN_LIKENESS for one, other in pairs)


def likeness(first: str, second: str) -> float:
    """Return how much one thing is a kind of the other: 1 for equal ones and synonyms, 0 for strangers."""
    if first == second:
        return 1.0
    return max(relatives(first).get(second, 0.0), relatives(second).get(first, 0.0))


@lru_cache(maxsize=1024)
def relatives(thing: str) -> dict[str, float]:
    """Return the words for kinds of a thing and for what it is a kind of, with their likeness.

    A word that is not known, such as "starfighter", is taken for what its end says, or else its beginning.
    """
    graph = _graph()
    if thing not in graph.senses:
        part = _known_part(thing)
        return {} if part is None else {part: 1.0, **relatives(part)}
    found: dict[str, float] = {}
    for sense in graph.senses[thing]:
        for other in (*graph.over(sense), *graph.under(sense), sense):
            value = graph.likeness(sense, other)
            if value >= MIN_LIKENESS:
                for word in graph.words[other]:
                    found[word] = max(found.get(word, 0.0), value)
    found.pop(thing, None)
    return found


def singular(word: str) -> str:
    """Return the singular of an English plural that is known, else the word."""
    senses = _graph().senses
    if word in senses:
        return word
    for ending, instead in (*_PLURALS, ("es", ""), ("s", "")):
        if word.endswith(ending) and (shorter := word.removesuffix(ending) + instead) in senses:
            return shorter
    return word


class _Graph:
    """The table, unpacked: words, the senses above and below each sense, and how much each sense says."""

    def __init__(self, table: Path) -> None:
        content = json.loads(gzip.decompress(table.read_bytes()))
        self.senses: dict[str, list[int]] = content["words"]
        self.above: list[list[int]] = content["above"]
        self.below: list[list[int]] = [[] for _ in self.above]
        self.words: list[list[str]] = [[] for _ in self.above]
        for sense, parents in enumerate(self.above):
            for parent in parents:
                self.below[parent].append(sense)
        for word, senses in self.senses.items():
            for sense in senses:
                self.words[sense].append(word)

    def over(self, sense: int) -> set[int]:
        return _reached(self.above, sense)

    def under(self, sense: int) -> set[int]:
        return _reached(self.below, sense)

    @lru_cache(maxsize=65_536)  # noqa: B019  (one graph per process)
    def information(self, sense: int) -> float:
        return 1.0 - math.log(1 + len(self.under(sense))) / math.log(len(self.above))

    def likeness(self, first: int, second: int) -> float:
        """Return Lin's measure of two senses one of which is above the other."""
        values = self.information(first), self.information(second)
        return 2.0 * min(values) / max(sum(values), 1e-9)

    def kinship(self, first: str, second: str) -> float:
        """Return Lin's measure of two words, with the kind that says most among those that both belong to."""
        best = 0.0
        for one, other in product(self.senses[first], self.senses[second]):
            shared = ({one} | self.over(one)) & ({other} | self.over(other))
            above = max(map(self.information, shared), default=0.0)
            best = max(best, 2.0 * above / max(self.information(one) + self.information(other), 1e-9))
        return best


@lru_cache(maxsize=1)
def _graph() -> _Graph:
    return _Graph(TABLE)


def _reached(edges: list[list[int]], start: int) -> set[int]:
    found: set[int] = set()
    pending = [*edges[start]]
    while pending:
        if (sense := pending.pop()) not in found:
            found.add(sense)
            pending += edges[sense]
    return found


def _phrase(tokens: list[str], start: int) -> tuple[list[str], int]:
    """Return the words up to where the phrase ends, and where that is."""
    phrase: list[str] = []
    has_noun = False
    for place in range(start, len(tokens)):
        token = tokens[place]
        ahead = tokens[place + 1] if place + 1 < len(tokens) else ","
        if has_noun and (_ends(token) or _is_participle(token, ahead)):
            return phrase, place
        if not _ends(token):
            phrase.append(token)
            has_noun = has_noun or (token not in COLORS and singular(token) in _graph().senses)
    return phrase, len(tokens)


def _ends(token: str) -> bool:
    return token in _ENDS or not token[0].isalnum()


def _is_participle(token: str, ahead: str) -> bool:
    """Tell "standing" in "a cow standing" from "building", and "joined to" from "a layered cake"."""
    if token in _graph().senses:
        return False
    return token.endswith("ing") or (token.endswith("ed") and _ends(ahead))


def _names(phrase: list[str]) -> list[str]:
    """Return the noun that ends a phrase, and the one before it if both name the thing.

    Without a known noun it is the last word; a color is the last resort.
    """
    graph = _graph()
    words = [singular(word) for word in phrase]
    nouns = [place for place, word in enumerate(words) if word in graph.senses and word not in COLORS]
    if not nouns:
        return words[-1:]
    last = nouns[-1]
    before = words[last - 1] if last else ""
    if f"{before} {words[last]}" in graph.senses:
        return [f"{before} {words[last]}"]
    is_double = last - 1 in nouns and graph.kinship(before, words[last]) >= MIN_KINSHIP
    return [words[last], before] if is_double else [words[last]]


def _known_part(word: str) -> str | None:
    return next((part for part in _parts(word) if part in _graph().senses), None)


def _parts(word: str) -> Iterator[str]:
    """Yield the ends of a word, then its beginnings, the longest first."""
    lengths = range(len(word) - 1, MIN_PART - 1, -1)
    yield from (word[-length:] for length in lengths)
    yield from (word[:length] for length in lengths)
