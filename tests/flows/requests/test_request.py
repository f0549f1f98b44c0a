"""What the door refuses, each in one sentence that says what to do; and what it lets through unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.requests import request
from flows.requests.request import checked_prompt, checked_request, parsed_settings


@pytest.fixture(autouse=True)
def weights_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about requests; whether the miniature's weights are trained is another question."""
    monkeypatch.setattr(request, "weights_path", lambda model: model)
    monkeypatch.setattr("redream.weights.weights_digest", lambda model: "0123456789abcdef")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n\t "}, "the prompt is empty"),
        ({"prompt": "x" * 20_000}, "20,000 characters; at most 1,000"),
        ({"prompt": "a red\x00 cube"}, "control character '\\\\x00'"),
        ({"prompt": "a red\ncube"}, "control character"),
        ({"prompt": "a \x1b[31mred cube"}, "control character"),
        ({"prompt": "a \udcff cube"}, "control character"),
        ({"prompt": "\u200b\ufeff\u200d\u2060"}, "the prompt is empty"),
        ({"prompt": "a cube<|endoftext|>"}, "'<|endoftext|>', by which text encoders mark a prompt's ends"),
        ({"prompt": "<start_of_text> a cube"}, "by which text encoders mark"),
        ({"preset": "minni"}, "unknown preset 'minni'; did you mean mini"),
        ({"method": "dreamfusion"}, "unknown method 'dreamfusion'; There are: redream, vsd, sds, sjc, mvdream"),
        ({"method": "mvdream", "preset": "sd21"}, "mvdream needs a multi-view prior; name its weights"),
        ({"method": "mvdream", "settings": {"perp_neg.enabled": True}}, "mvdream does not use perp_neg.enabled"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 2**63}, "--seed is"),
        ({"settings": {"distill.num_stepps": 5}}, "unknown setting 'distill.num_stepps'.*'distill.num_steps'"),
        ({"settings": {"distill.num_steps": "many"}}, "distill.num_steps is 'many'; it must be of type int"),
        ({"settings": {"distill.num_steps": 0}}, "distill.num_steps is 0"),
        ({"settings": {"distill.method": "sds"}}, "--method"),
        (
            {"settings": {"distill.sds_guidance_scale": 5.0}},
            "does not use distill.sds_guidance_scale; sds does",
        ),
        (
            {"method": "sds", "settings": {"distill.camera_dropout": 0.5}},
            "sds does not use distill.camera_dropout; redream and vsd do",
        ),
        ({"assets": ["absent.glb"]}, "--asset absent.glb: there is no such file"),
        ({"assets": ["."]}, "--asset .: there is no such file"),
        ({"assets": ["a.glb"], "method": "sds"}, "--asset needs --method redream"),
        ({"assets": ["a.glb"], "index": "i"}, "exclude each other"),
        ({"index": "absent"}, "--index absent: no index there"),
        ({"preset": "sd21"}, "preset sd21 searches an index of your own"),
    ],
)
def test_bad_input_is_refused_with_a_remedy(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_request(**{"prompt": "a red cube", "out": tmp_path, **parameters})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("a.txt", b"text", "its name must end in .glb"), ("a.glb", b"", "the file is empty")],
)
def test_file_that_cannot_be_a_mesh_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        checked_request("a red cube", out=tmp_path, assets=[str(tmp_path / name)])


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ('{"clip_model": "ViT-B-32/openai"}', "made with CLIP ViT-B-32/openai"),
        ('{"clip_model": "mini:clip-retrieval@fedcba9876543210"}', "made with CLIP mini:clip-retrieval@fedc"),
        ("{half", "damaged"),
        ("[]", "damaged"),
    ],
)
def test_index_of_another_model_is_refused(tmp_path: Path, manifest: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match=message):
        checked_request("a red cube", out=tmp_path, index=str(tmp_path))


def test_index_of_the_same_model_passes(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"clip_model": "mini:clip-retrieval@0123456789abcdef"}))
    assert checked_request("a red cube", out=tmp_path, index=str(tmp_path)).index == str(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(ValueError, match="cannot be written"):
        checked_request("a red cube", out=tmp_path / "closed" / "out")


def test_file_in_place_of_the_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        checked_request("a red cube", out=tmp_path / "out")


@pytest.mark.parametrize(
    "prompt", ["a cube", "ein grüner Würfel", "立方体", "a 👩‍🚀 riding", 'it\'s "quoted" & <b>bold</b>']
)
def test_ordinary_prompts_of_any_language_pass(prompt: str) -> None:
    assert checked_prompt(f"  {prompt} ") == prompt


@pytest.mark.parametrize(
    "alike",
    [
        "\ufeffa caf\u00e9 table",
        "a cafe\u0301 table",
        "a  caf\u00e9\u00a0 table ",
        "\u200b a caf\u00e9 table\u200d\u200e",
        "a caf\u00e9 \u2060ta\u00adble",
    ],
)
def test_prompts_that_look_alike_are_the_same(alike: str) -> None:
    assert checked_prompt(alike) == "a caf\u00e9 table"


def test_what_a_flag_or_a_family_is_made_of_stays() -> None:
    for emoji in ("\U0001f469\u200d\U0001f680", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\u2764\ufe0f"):
        assert checked_prompt(f"a {emoji}") == f"a {emoji}"


def test_values_are_literals_or_else_texts() -> None:
    read = parsed_settings(
        ["a.b=5", "a.c=5.5", "a.d=(1, 2)", "a.e=true", "a.f=None", "a.g=/some/folder", "a.h=x=y", "a.i='5'"]
    )
    assert read == {
        "a.b": 5, "a.c": 5.5, "a.d": (1, 2), "a.e": True, "a.f": None, "a.g": "/some/folder", "a.h": "x=y", "a.i": "5",
    }  # fmt: skip


@pytest.mark.parametrize("assignment", ["distill.num_steps", "num_steps=5", "=5", ""])
def test_assignment_of_another_form_is_refused(assignment: str) -> None:
    with pytest.raises(ValueError, match="section.field=value"):
        parsed_settings([assignment])


def test_request_gives_back_what_asks_for_the_same_again(tmp_path: Path) -> None:
    asked = checked_request("a red cube", seed=3, out=tmp_path, settings={"distill.num_steps": 500})
    again = checked_request(**asked.parameters(), out=tmp_path)
    assert again == asked
    assert asked.config.distill.num_steps == 500
    assert asked.config.distill.method == "redream"
    assert json.loads(json.dumps(asked.parameters())) == asked.parameters()


def test_checking_imports_nothing_heavy() -> None:
    code = (
        "import sys, flows.command.app; "
        "print([name for name in ('torch', 'numpy', 'prefect', 'mlflow', 'trimesh') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_local_model_is_known_by_its_name_and_content(tmp_path: Path) -> None:
    (tmp_path / "my clip").mkdir()
    (tmp_path / "manifest.json").write_text(json.dumps({"clip_model": "my clip@0123456789abcdef"}))
    settings = {"retrieval.clip_model": str(tmp_path / "my clip")}
    checked_request("a red cube", out=tmp_path, index=str(tmp_path), settings=settings)


def test_prior_of_another_kind_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    with pytest.raises(ValueError, match="is a LoRA, which changes a model and is not one"):
        checked_request("a car", out=tmp_path / "out", settings={"prior.model": str(tmp_path)})
