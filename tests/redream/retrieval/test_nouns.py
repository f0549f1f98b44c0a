"""Laws of what texts name and of kinds of things."""

from __future__ import annotations

import gzip
import json

import pytest

from redream.retrieval.nouns import COLORS, TABLE, colors_of, is_named, likeness, named_things, relatives, singular


@pytest.mark.parametrize(
    ("text", "things"),
    [
        ("a red fox wearing a scarf", ["red fox"]),
        ("a DSLR photo of a hamburger with fries", ["hamburger"]),
        ("A bowl of ripe bananas", ["bowl", "banana"]),
        ("a white and purple cube-shaped toy robot with a face", ["robot"]),
        ("a layered cake, 3d model", ["cake"]),
        ("a tower built from bricks", ["tower"]),
        ("a cow standing in a field", ["cow"]),
        ("a yellow taxi sedan with a roof sign", ["sedan", "taxi"]),
        ("a teal desk fan", ["fan"]),
        ("an orange", ["orange"]),
        ("zwergelstern", ["zwergelstern"]),
        ("", []),
        ("...", []),
    ],
)
def test_a_text_is_about_the_noun_that_ends_its_first_phrase(text: str, things: list[str]) -> None:
    assert named_things(text) == things


@pytest.mark.parametrize("pair", [("cab", "taxi"), ("goldfish", "fish"), ("airplane", "airliner"), ("sofa", "couch")])
def test_synonyms_and_kinds_are_alike_from_either_side(pair: tuple[str, str]) -> None:
    assert likeness(*pair) == pytest.approx(likeness(*reversed(pair)))
    assert likeness(*pair) > 0.4


@pytest.mark.parametrize("pair", [("locomotive", "truck"), ("violin", "device"), ("umbrella", "cube"), ("cat", "dog")])
def test_siblings_strangers_and_what_is_too_general_are_not_alike(pair: tuple[str, str]) -> None:
    assert likeness(*pair) == likeness(*reversed(pair)) == 0


def test_an_unknown_compound_is_taken_for_what_its_end_says() -> None:
    assert likeness("starfighter", "fighter") == 1
    assert relatives("qqqq") == {}


def test_every_likeness_is_within_zero_and_one_and_nothing_is_its_own_relative() -> None:
    for thing in ("dog", "vehicle", "chair", "entity", "object"):
        found = relatives(thing)
        assert thing not in found
        assert all(0.4 <= value <= 1 for value in found.values())


def test_plurals_that_are_known_become_singular_and_others_stay() -> None:
    assert [singular(word) for word in ("trucks", "boxes", "puppies", "knives", "glass", "zorgs")] == [
        *("truck", "box", "puppy", "knife", "glass", "zorgs")
    ]


def test_a_text_names_a_thing_only_where_it_is_about_it() -> None:
    assert is_named(["truck"], "a red pickup truck")
    assert not is_named(["bowl"], "a stand mixer with a metal bowl")
    assert not is_named([], "a stand mixer")


def test_colors_are_those_of_the_thing_itself() -> None:
    assert colors_of("a blue pickup truck with red wheels") == {"blue"}
    assert colors_of("a yellow-orange armchair") == {"yellow", "orange"}
    assert colors_of("a gray cat") == colors_of("a grey cat") == {"grey"}
    assert colors_of("an armchair") == frozenset()


def test_the_table_is_a_graph_without_circles_whose_words_all_have_senses() -> None:
    content = json.loads(gzip.decompress(TABLE.read_bytes()))
    above = content["above"]
    assert all(0 <= parent < len(above) for parents in above for parent in parents)
    assert all(0 <= sense < len(above) for senses in content["words"].values() for sense in senses)
    waiting, count = list(range(len(above))), 0
    num_above = [len(parents) for parents in above]
    below: list[list[int]] = [[] for _ in above]
    for sense, parents in enumerate(above):
        for parent in parents:
            below[parent].append(sense)
    waiting = [sense for sense, num in enumerate(num_above) if num == 0]
    while waiting:
        count += 1
        for child in below[waiting.pop()]:
            num_above[child] -= 1
            waiting += [child] if num_above[child] == 0 else []
    assert count == len(above)
    assert all(color == color.lower() for color in COLORS)
