"""The table of settings is read from the code, so it cannot lag behind."""

from __future__ import annotations

from pathlib import Path

from redream.overrides import flatten
from redream.presets import mini
from redream.setting_table import all_settings, page

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_setting_is_listed_once_and_says_what_it_does() -> None:
    settings = all_settings()
    assert [each.name for each in settings] == list(flatten(mini()))
    assert not [each.name for each in settings if not each.meaning]


def test_a_setting_shows_its_limits_its_choices_and_its_value_in_each_preset() -> None:
    by_name = {each.name: each for each in all_settings()}
    assert by_name["distill.min_t"].allowed == ">= 0 and <= 1"
    assert by_name["distill.background"].allowed == "learned, grey"
    assert by_name["distill.use_adapter"].allowed == "true or false"
    assert by_name["distill.warm_up_steps"].defaults == {"mini": 250, "sd21": 1_000, "smoke": 2}


def test_the_page_of_settings_is_the_one_that_the_code_writes() -> None:
    assert DOCS.read_text() == page(), "run: python -m redream.setting_table > docs/settings.md"
