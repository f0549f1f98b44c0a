"""The text tower in NumPy gives what open_clip gives, and leaves to it what it does not know."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from redream.clip import Clip
from redream.retrieval.text_tower import HUB, TextTower, _clip_tokenizer, open_text_tower
from redream.weights import weights_path

PROMPTS = Path(__file__).parents[4] / "shared/data/prompts"
TEXTS = [
    "a turquoise robot", "A  DSLR photo of\ta corgi, wearing a beret!!", "it's 1234 o'clock — you’ll see", "", "?",
    "naïve café Ünïcode 漢字 🙂 &amp;lt;b&gt;", "mojibake: schÃ¶n", "x" * 500, "word " * 200, "<end_of_text> behind",
    "a !<end_of_text> owl", "an owl (<end_of_text>) on a chair", "<<start_of_text>", "\u0345 'ſ 'S <END_OF_TEXT>",
    "tab\x00null \x7f", "ﬁne ½ ² Ⅷ", "'s 're", "a\u2028b\u00a0c",
]  # fmt: skip
END = 49407  # what comes behind it is not looked at
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def tower(model_id: str) -> TextTower:
    found = open_text_tower(model_id)
    assert found is not None
    return found


def saved(folder: Path, config: dict, dtype: torch.dtype = torch.float32) -> Path:
    """Save a random model in open_clip's form."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    settings = {name: value for name, value in config.items() if name != "custom_text"}
    model = (open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP)(**settings)
    state = {name: (tensor * 8).to(dtype) for name, tensor in model.state_dict().items()}  # far from linear
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["clip-retrieval", "clip-eval-a", "clip-eval-b"])
def test_vectors_of_the_miniature_are_those_of_open_clip(name: str):
    clip, ours = Clip(f"mini:{name}"), tower(f"mini:{name}")
    assert (ours.identity, ours.embedding_dim) == (clip.identity, clip.embedding_dim)
    assert ours.embed_prompt("an owl").dtype == np.float32
    for text in TEXTS:
        np.testing.assert_allclose(ours.embed_prompt(text), clip.embed_prompt(text), atol=1e-5)


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_vectors_of_a_model_with_clips_own_tokenizer_are_those_of_open_clip(
    tmp_path: Path, quick_gelu: bool, dtype: torch.dtype
):
    folder = str(saved(tmp_path / "model", {**TINY, "quick_gelu": quick_gelu}, dtype))
    clip, ours = Clip(folder), tower(folder)
    assert ours.identity == clip.identity
    for text in TEXTS:
        np.testing.assert_allclose(ours.embed_prompt(text), clip.embed_prompt(text), atol=2e-5)


def test_weights_in_a_file_of_a_known_architecture_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = saved(tmp_path / "model", TINY)
    configs = tmp_path / "open_clip/model_configs"
    configs.mkdir(parents=True)
    (configs / "Tiny.json").write_text(json.dumps(TINY))
    shutil.copy(Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz"), configs.parent)
    monkeypatch.setattr("redream.retrieval.text_tower._open_clip_folder", lambda: configs.parent)
    ours = tower(f"Tiny/{folder / 'open_clip_model.safetensors'}")
    np.testing.assert_array_equal(ours.embed_prompt("an owl"), tower(str(folder)).embed_prompt("an owl"))
    assert ours.identity.startswith("Tiny@")


def test_clips_tokenizer_is_open_clips():
    ours, theirs = _clip_tokenizer(77), open_clip.get_tokenizer("ViT-L-14")
    texts = list(TEXTS)
    if PROMPTS.is_dir():
        texts += (PROMPTS / "dreamfusion.txt").read_text().splitlines()
    for text in texts:
        found, expected = ours(text), theirs([text])[0].tolist()
        assert found[: found.index(END)] == expected[: expected.index(END)], text


def test_repository_of_a_named_model_is_that_of_open_clip():
    for model_id, repository in HUB.items():
        config = open_clip.get_pretrained_cfg(*model_id.split("/"))
        assert config["hf_hub"].strip("/") == repository


@pytest.mark.parametrize(
    "text_cfg",
    [
        {"pool_type": "last"}, {"hf_model_name": "roberta-base"}, {"no_causal_mask": True}, {"hf_tokenizer_name": "x"},
        {"layers": 3}, {"layers": 1}, {"layers": "2"}, {"heads": 3}, {"heads": 0}, {"context_length": 60},
        {"width": 8}, {"vocab_size": 100}, {"eos_id": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_model_of_another_form_is_left_to_open_clip(tmp_path: Path, text_cfg: dict):
    folder = saved(tmp_path / "model", TINY)
    config = {"model_cfg": {**TINY, "text_cfg": {**TINY["text_cfg"], **text_cfg}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert open_text_tower(str(folder)) is None


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"model_cfg": null}', '{"model_cfg": []}', '{"model_cfg": {"text_cfg": {}}}', "{", "[" * 10**5],
)
def test_a_configuration_that_makes_no_sense_is_left_to_open_clip(tmp_path: Path, text: str):
    folder = saved(tmp_path / "model", TINY)
    (folder / "open_clip_config.json").write_text(text)
    assert open_text_tower(str(folder)) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"tokenizer_class": "CLIPTokenizerFast"}'),
        ("tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}'),
        ("tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": true}'),
    ],
)
def test_another_tokenizer_is_left_to_open_clip(tmp_path: Path, name: str, text: str):
    folder = shutil.copytree(weights_path("mini:clip-retrieval"), tmp_path / "model")
    assert open_text_tower(str(folder)) is not None
    (folder / name).write_text(text)
    assert open_text_tower(str(folder)) is None


def test_weights_under_other_names_or_damaged_are_left_to_open_clip(tmp_path: Path):
    custom = saved(tmp_path / "custom", {**TINY, "custom_text": True})
    half = saved(tmp_path / "half", TINY)
    os.truncate(half / "open_clip_model.safetensors", 1000)
    bfloat = saved(tmp_path / "bfloat", TINY, torch.bfloat16)
    empty = tmp_path / "empty"
    empty.mkdir()
    for folder in (custom, half, bfloat, empty, Path("ViT-L-14/openai"), Path("No-Such/tag")):
        assert open_text_tower(str(folder)) is None


def test_a_search_imports_neither_torch_nor_open_clip():
    code = (
        "import sys; import redream.retrieval.index, tasks.machinery.searching, flows.command.app;"
        "from redream.retrieval.text_tower import open_text_tower;"
        "open_text_tower('mini:clip-retrieval').embed_prompt('an owl');"
        "assert not {'torch', 'open_clip', 'transformers', 'prefect', 'mlflow'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_texts_embedded_together_are_embedded_as_one_by_one(tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch):
    tower = open_text_tower(str(tiny_clip_folder))
    assert tower is not None
    texts = ["a", "a red car of some length", "", "a dog", "a red car of some length", "x" * 500]
    alone = np.stack([tower.embed_prompt(text) for text in texts])
    monkeypatch.setattr("redream.retrieval.text_tower.TOKENS_PER_BATCH", 40)
    np.testing.assert_allclose(tower.keep_weights().embed_texts(texts), alone, atol=2e-6)
