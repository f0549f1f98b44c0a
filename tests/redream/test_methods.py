"""The table of methods says what the code does, and what a method does not use is found by its name."""

from __future__ import annotations

import ast
import typing
from pathlib import Path

import pytest

from redream.distill.methods import table
from redream.methods import METHODS, unused_settings, users_of
from redream.overrides import flatten
from redream.presets import mini
from redream.settings import Method

LOOP = Path(__file__).parents[2] / "redream" / "distill" / "loop.py"


def test_every_method_has_facts_and_a_step() -> None:
    assert list(METHODS) == list(table.METHODS) == list(typing.get_args(Method))


def test_settings_of_methods_exist() -> None:
    known = flatten(mini())
    for facts in METHODS.values():
        for name in facts.settings:
            assert name in known or (name.endswith(".") and any(each.startswith(name) for each in known)), name


def test_the_loop_knows_no_method_by_name() -> None:
    tree = ast.parse(LOOP.read_text())
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not METHODS.keys() & (texts | names)
    assert len(LOOP.read_text().splitlines()) <= 250


@pytest.mark.parametrize(
    ("method", "setting", "is_used"),
    [
        ("sds", "distill.warm_up_steps", False),
        ("sds", "distill.sds_guidance_scale", True),
        ("sds", "adaptation.rank", False),
        ("vsd", "distill.guidance_scale", True),
        ("vsd", "distill.delta_every", False),
        ("redream", "distill.sds_guidance_scale", False),
        ("redream", "adaptation.rank", True),
        ("sjc", "sjc.form", True),
        ("sds", "sjc.form", False),
        ("sjc", "distill.weighting", False),  # its w(t) is 1
        ("sds", "distill.num_steps", True),  # of all methods
        ("sds", "evaluation.num_views", True),
    ],
)
def test_a_setting_is_used_by_the_methods_it_belongs_to(method: str, setting: str, is_used: bool) -> None:
    assert unused_settings(method, [setting]) == ([] if is_used else [setting])
    assert is_used or method not in users_of(setting)
