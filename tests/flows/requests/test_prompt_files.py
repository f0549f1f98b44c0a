"""A batch is checked whole before anything runs: bad lines are named by their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.requests.prompt_files import MAX_FILE_BYTES, Defaults, Member, checked_members, parsed_seeds, read_members

PROMPTS = Path(__file__).parents[3] / "../shared/data/prompts/dreamfusion.txt"


@pytest.fixture(autouse=True)
def no_weights_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.requests.request.weights_path", lambda model: model)


def read(folder: Path, content: str | bytes, name: str = "prompts.txt", **defaults: Any) -> list[Member]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_members(folder / name, Defaults(settings={}, out=folder / "out", **defaults))


def test_every_line_is_a_prompt_but_for_empty_ones_and_comments(tmp_path: Path) -> None:
    members = read(tmp_path, "\ufeffa red cube\r\n\n  # a comment \nein grüner Würfel")
    assert [(member.line, member.request.prompt) for member in members] == [
        (1, "a red cube"), (4, "ein grüner Würfel"),
    ]  # fmt: skip


def test_every_seed_makes_an_object_of_every_prompt(tmp_path: Path) -> None:
    members = read(tmp_path, "a\nb", seeds=(0, 5))
    assert [(m.request.prompt, m.request.seed) for m in members] == [("a", 0), ("a", 5), ("b", 0), ("b", 5)]


def test_lines_of_json_have_settings_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "mesh.glb").write_bytes(b"x")
    lines = (
        '{"prompt": "a", "seed": 3, "method": "sds", "settings": {"distill.num_steps": 700}}\n'
        f'{{"prompt": "b", "seeds": [1, 2, 1], "assets": ["{tmp_path / "mesh.glb"}"], "preset": "smoke"}}\n'
    )
    one, two, three = read(tmp_path, lines, "prompts.jsonl")
    assert (one.request.seed, one.request.method, one.request.config.distill.num_steps) == (3, "sds", 700)
    assert (two.request.seed, three.request.seed, two.request.preset) == (1, 2, "smoke")
    assert two.request.assets == (str(tmp_path / "mesh.glb"),)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{half", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('["a red cube"]', "not an object with a prompt"),
        ('{"seed": 1}', "not an object with a prompt"),
        ('{"prompt": 5}', "must be text"),
        ('{"prompt": "a", "seed": "many"}', "must be a whole number"),
        ('{"prompt": "a", "seed": true}', "must be a whole number"),
        ('{"prompt": "a", "seeds": []}', "must be whole numbers"),
        ('{"prompt": "a", "seeds": [1], "seed": 1}', "not both"),
        ('{"prompt": "a", "speed": 1}', "unknown 'speed'"),
        ('{"prompt": "a", "settings": {"distill.speed": 1}}', "unknown setting"),
        ('{"prompt": "a", "settings": {"distill.num_steps": "x"}}', "must be of type int"),
        ('{"prompt": "a", "assets": [1]}', "must be names of files"),
        ('{"prompt": "a", "assets": ["/absent.glb"]}', "no such file"),
        ('{"prompt": "a\\u0007"}', "control character"),
        ('{"prompt": "a", "preset": "huge"}', "unknown preset"),
    ],
)
def test_bad_line_is_refused_with_its_number(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ValueError, match="line 2: ") as refused:
        read(tmp_path, f'{{"prompt": "a red cube"}}\n{line}', "prompts.jsonl")
    assert words in str(refused.value)


def test_bad_lines_of_text_are_named_together(tmp_path: Path) -> None:
    content = b"a red cube\n<|endoftext|>\na\x1b[31m cube\n" + b"x" * 2000 + b"\n\x07\n"
    with pytest.raises(ValueError, match=r"line 2: .*mark.*line 3: .*control.*line 4: .*and 1 more bad lines"):
        read(tmp_path, content)
    with pytest.raises(ValueError, match=r"line 2 is not valid UTF-8"):
        read(tmp_path, b"a red cube\nein W\xfcrfel\n")


def test_files_that_are_no_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prompts"):
        read(tmp_path, "\n\n")
    with pytest.raises(ValueError, match="no such file"):
        read_members(tmp_path, Defaults(settings={}, out=tmp_path))
    with pytest.raises(ValueError, match="at most"):
        read(tmp_path, b"\n" * (MAX_FILE_BYTES + 1))


def test_prompts_without_a_file_are_checked_the_same(tmp_path: Path) -> None:
    defaults = Defaults(settings={}, out=tmp_path)
    assert len(checked_members([(1, {"prompt": "a"}), (2, {"prompt": "b"})], defaults, name="prompts")) == 2


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1.5", "²"])
def test_seeds_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="0,1,2"):
        parsed_seeds(text)
    assert parsed_seeds("0, 7") == [0, 7]


@pytest.mark.skipif(not PROMPTS.is_file(), reason="shared/data/prompts/dreamfusion.txt is not there")
def test_prompts_of_dreamfusion_are_a_batch(tmp_path: Path) -> None:
    members = read_members(PROMPTS, Defaults(settings={}, out=tmp_path))
    assert len(members) == 415
    assert len({member.request.prompt for member in members}) == 415
