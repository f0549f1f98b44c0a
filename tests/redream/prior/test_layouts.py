"""Every form in which people have Stable Diffusion's weights opens, and other models are refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from benchmarks.full_size import TINY, build_prior
from redream.prior.layouts import find_layout, refuse_other_models
from redream.prior.stable_diffusion import StableDiffusionPrior
from redream.settings import PriorConfig


def load(model: Path | str, dtype: str = "auto") -> StableDiffusionPrior:
    return StableDiffusionPrior(PriorConfig(model=str(model), dtype=dtype))


def predicted(prior: StableDiffusionPrior) -> torch.Tensor:
    x_t = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    cond = prior.embed(["a red car"])
    return prior.predict_eps(x_t, torch.tensor([500]), cond, cond, 1.0)


@pytest.fixture
def copied(v_prior_folder, tmp_path) -> Path:
    return Path(shutil.copytree(v_prior_folder, tmp_path / "copied"))


def test_files_of_the_half_precision_variant_are_taken_where_there_are_no_others(v_prior_folder, tmp_path) -> None:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(
        v_prior_folder, dtype=torch.float16, safety_checker=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert set(find_layout(str(tmp_path)).variants.values()) == {"fp16"}
    assert torch.allclose(predicted(load(tmp_path)), predicted(load(v_prior_folder)), atol=2e-2)
    assert load(tmp_path).unet.dtype == torch.float32


def test_plain_files_are_preferred_to_variants(copied) -> None:
    shutil.copy(
        copied / "unet/diffusion_pytorch_model.safetensors", copied / "unet/diffusion_pytorch_model.fp16.safetensors"
    )
    assert find_layout(str(copied)).variants["unet"] == ""


def test_a_sharded_network_opens(copied, v_prior_folder) -> None:
    unet: Any = UNet2DConditionModel.from_pretrained(copied, subfolder="unet")
    shutil.rmtree(copied / "unet")
    unet.save_pretrained(copied / "unet", max_shard_size="30KB")
    assert len(list((copied / "unet").glob("*.safetensors"))) > 1
    assert torch.allclose(predicted(load(copied)), predicted(load(v_prior_folder)), atol=1e-5)


@pytest.mark.parametrize("name", list(TINY))
def test_the_models_of_the_benchmark_open_without_safety_checker_and_feature_extractor(name, tmp_path) -> None:
    build_prior(tmp_path / "model", TINY[name])
    prior = load(tmp_path / "model")
    assert prior.prediction_type == TINY[name].prediction
    assert prior.image_size == 64
    assert prior.tokenizer("a photo of a dog").input_ids == [49406, 320, 1125, 539, 320, 1929, 49407]
    assert predicted(prior).shape == (1, 4, 2, 2)


@pytest.fixture
def hub_cache(v_prior_folder, epsilon_prior_folder, tmp_path, monkeypatch) -> Path:
    """A cache as the hub's client fills it, with two commits of one model, and no way to the hub."""
    repository = tmp_path / "models--someone--some-model"
    for commit, folder in (("a" * 40, v_prior_folder), ("b" * 40, epsilon_prior_folder)):
        shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return repository


def test_a_filled_cache_serves_a_machine_that_is_offline_at_the_pinned_revision(hub_cache) -> None:
    assert load("someone/some-model").prediction_type == "v_prediction"
    assert load(f"someone/some-model@{'b' * 40}").prediction_type == "epsilon"
    with pytest.raises(ValueError, match="cannot load the prior 'someone/other-model'") as refused:
        load("someone/other-model")
    assert "\n" not in str(refused.value)


def test_a_cached_model_of_another_kind_is_refused_before_anything_is_fetched(hub_cache) -> None:
    rename(hub_cache / "snapshots" / ("a" * 40), "FluxPipeline")
    with pytest.raises(ValueError, match="is FLUX"):
        refuse_other_models("someone/some-model")
    refuse_other_models("someone/never-seen")


def rename(folder: Path, kind: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def as_pickles(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


OTHER_FOLDERS = {
    "is Stable Diffusion XL": lambda folder: rename(folder, "StableDiffusionXLPipeline"),
    "is Stable Diffusion 3": lambda folder: rename(folder, "StableDiffusion3Pipeline"),
    "is FLUX": lambda folder: rename(folder, "FluxPipeline"),
    "is an inpainting model \\(its UNet takes 9": lambda folder: change(folder / "unet/config.json", in_channels=9),
    "is an editing model \\(its UNet takes 8": lambda folder: change(folder / "unet/config.json", in_channels=8),
    "has its unet only as a pickle": as_pickles,
    "vae has no .safetensors file": lambda folder: shutil.rmtree(folder / "vae"),
    "no model_index.json": lambda folder: (folder / "model_index.json").unlink(),
    "cannot be read": lambda folder: (folder / "model_index.json").write_text("{"),
}


@pytest.mark.parametrize("reason", OTHER_FOLDERS)
def test_a_folder_of_another_model_is_refused_in_one_line_before_any_work(reason, copied) -> None:
    OTHER_FOLDERS[reason](copied)
    with pytest.raises(ValueError, match=reason) as refused:
        refuse_other_models(str(copied))
    assert "\n" not in str(refused.value)


def test_a_lora_in_a_folder_or_a_file_is_no_prior(tmp_path) -> None:
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({"unet.down_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2, 2)}, file)
    for model in (tmp_path, file):
        with pytest.raises(ValueError, match="is a LoRA, which changes a model and is not one; set prior.model"):
            refuse_other_models(str(model))


FIRST = "model.diffusion_model.input_blocks.0.0.weight"
OTHER_FILES = {
    "is Stable Diffusion XL": {"conditioner.embedders.1.model.ln_final.weight": (2,), FIRST: (8, 4, 3, 3)},
    "is Stable Diffusion 3": {"model.diffusion_model.joint_blocks.0.x": (2,)},
    "is FLUX": {"double_blocks.0.img_attn.qkv.weight": (2, 2)},
    "is an inpainting model": {FIRST: (8, 9, 3, 3)},
    "is not Stable Diffusion in the original layout": {"decoder.weight": (2,)},
    "has weights only; set prior.config": {FIRST: (8, 4, 3, 3)},
}


@pytest.mark.parametrize("reason", OTHER_FILES)
def test_a_file_of_another_model_is_refused_by_its_header(reason, tmp_path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in OTHER_FILES[reason].items()}, file)
    with pytest.raises(ValueError, match=reason):
        refuse_other_models(str(file))


def test_pickles_and_damaged_files_are_not_opened(tmp_path) -> None:
    for name, content, reason in (
        ("model.ckpt", b"PK", "could run any code"),
        ("model.bin", b"PK", "could run any code"),
        ("short.safetensors", b"\x01", "cannot be read as safetensors"),
        ("long.safetensors", b"\xff" * 64, "its header is longer than the file"),
        ("list.safetensors", (2).to_bytes(8, "little") + b"[]", "its header is not an object"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=reason):
            refuse_other_models(str(tmp_path / name))
    with pytest.raises(ValueError, match="is not there"):
        refuse_other_models(str(tmp_path / "absent.safetensors"))


def original_layout(folder: Path) -> dict[str, torch.Tensor]:
    """Return a model's weights under the names of CompVis's code, as single files have them (SD 1.x)."""
    unet_parts = (
        ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
        ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
        ("mid_block.resnets.0", "middle_block.0"), ("mid_block.attentions.0", "middle_block.1"),
        ("mid_block.resnets.1", "middle_block.2"),
    )  # fmt: skip
    for block in range(4):
        for layer in range(2):
            number = 3 * block + layer + 1
            unet_parts += (
                (f"down_blocks.{block}.resnets.{layer}", f"input_blocks.{number}.0"),
                (f"down_blocks.{block}.attentions.{layer}", f"input_blocks.{number}.1"),
            )
        unet_parts += ((f"down_blocks.{block}.downsamplers.0.conv", f"input_blocks.{3 * block + 3}.0.op"),)
        for layer in range(3):
            number = 3 * block + layer
            unet_parts += (
                (f"up_blocks.{block}.resnets.{layer}", f"output_blocks.{number}.0"),
                (f"up_blocks.{block}.attentions.{layer}", f"output_blocks.{number}.1"),
            )
        place = 1 if block == 0 else 2
        unet_parts += ((f"up_blocks.{block}.upsamplers.0.conv", f"output_blocks.{3 * block + 2}.{place}.conv"),)
    of_resnets = (
        ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
        ("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection"),
    )  # fmt: skip
    codec_parts: tuple[tuple[str, str], ...] = (("conv_norm_out", "norm_out"),)
    for block in range(4):
        for layer in range(3):
            codec_parts += (
                (f"down_blocks.{block}.resnets.{layer}", f"down.{block}.block.{layer}"),
                (f"up_blocks.{block}.resnets.{layer}", f"up.{3 - block}.block.{layer}"),
            )
        codec_parts += (
            (f"down_blocks.{block}.downsamplers.0.", f"down.{block}.downsample."),
            (f"up_blocks.{block}.upsamplers.0.", f"up.{3 - block}.upsample."),
        )
    codec_parts += (
        ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"), ("conv_shortcut", "nin_shortcut"), ("group_norm", "norm"),
        ("to_q.", "q."), ("to_k.", "k."), ("to_v.", "v."), ("to_out.0.", "proj_out."),
    )  # fmt: skip
    found = {}
    for name, value in load_file(folder / "unet/diffusion_pytorch_model.safetensors").items():
        for ours, theirs in unet_parts:
            if name.startswith(f"{ours}."):
                name = theirs + name.removeprefix(ours)
                break
        if "resnets" in ours:
            for part, theirs in of_resnets:
                name = name.replace(part, theirs)
        found[f"model.diffusion_model.{name}"] = value
    for name, value in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        for ours, theirs in codec_parts:
            name = name.replace(ours, theirs)
        is_matrix = ".attn_1." in name and value.ndim == 2
        found[f"first_stage_model.{name}"] = value[:, :, None, None].contiguous() if is_matrix else value
    for name, value in load_file(folder / "text_encoder/model.safetensors").items():
        prefix = "" if name.startswith("text_model.") else "text_model."
        found[f"cond_stage_model.transformer.{prefix}{name}"] = value
    return found


def test_a_single_file_in_the_original_layout_opens_with_a_folder_of_configs(tmp_path) -> None:
    build_prior(tmp_path / "model", TINY["sd15"])
    expected = load(tmp_path / "model")
    save_file(original_layout(tmp_path / "model"), tmp_path / "v1-5.safetensors")
    for weights in (tmp_path / "model").rglob("*.safetensors"):
        weights.unlink()
    config = PriorConfig(model=str(tmp_path / "v1-5.safetensors"), config=str(tmp_path / "model"))
    refuse_other_models(config.model, config.config)
    prior = StableDiffusionPrior(config)
    assert torch.allclose(predicted(prior), predicted(expected), atol=1e-5)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(prior.encode(images), expected.encode(images), atol=1e-5)
