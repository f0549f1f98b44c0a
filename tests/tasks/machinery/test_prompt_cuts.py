"""What is said of a prompt that is longer than its encoders read."""

from __future__ import annotations

from redream.presets import PRESETS
from tasks.machinery.prompt_cuts import cut_remarks, lost_words

MINI = PRESETS["mini"]()


def test_a_prompt_is_cut_at_the_first_word_that_does_not_fit_whole():
    assert lost_words("a bb ccc d", lambda text: len(text.replace(" ", "")), 3) == "ccc d"
    assert lost_words("a bb", lambda text: len(text), 4) == ""
    assert lost_words("much", lambda text: len(text), 3) == "much"


def test_a_short_prompt_is_not_remarked_upon():
    assert cut_remarks("a turquoise robot with a hat", MINI) == []


def test_each_encoder_says_which_words_it_does_not_read():
    prompt = "a red car " * 12 + "and a ball"  # 39 tokens behind the prefix, of 32 that the miniature's prior reads
    (line,) = cut_remarks(prompt.strip(), MINI)
    assert line.startswith("the prompt is too long for the prior: ") and "and a ball' is not read" in line
    assert len(cut_remarks(prompt * 3, MINI)) > 1
