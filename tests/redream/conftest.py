"""Tiny CLIPs and Stable Diffusion pipelines with random weights, saved in the forms of open_clip and diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel

from redream.clip import Clip
from redream.mini.tokenization import prior_tokenizer
from redream.records import Asset
from redream.retrieval.index_files import (
    IndexManifest,
    asset_table,
    content_hash,
    drop_other_generations,
    new_generation,
    refused_table,
    seal_files,
    write_manifest,
    write_table,
)
from redream.retrieval.lexical_recall import write_lexical
from redream.retrieval.text_recall import train_recall

CONTEXT_LENGTH = 16
NUM_ASSETS = 40  # of a tiny index


def save_tiny_clip(folder: Path, seed: int, image_size: int = 16) -> Path:
    """Save a random CLIP of 8 dimensions; its tokenizer knows bytes only, lower-cased."""
    folder.mkdir(parents=True)
    tokenizer = _byte_tokenizer()
    model_config = {
        "embed_dim": 8,
        "quick_gelu": False,
        "vision_cfg": {"image_size": image_size, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": tokenizer.get_vocab_size(),
            "width": 16,
            "heads": 2,
            "layers": 1,
            "pool_type": "eos",
            "eos_id": 2,
            "pad_id": 0,
            "hf_tokenizer_name": "tokenizer",
        },
    }
    preprocess = {"size": image_size, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}
    config = {"model_cfg": model_config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "pad_token": "<pad>",
                "bos_token": "<start>",
                "eos_token": "<end>",
                "model_max_length": CONTEXT_LENGTH,
            }
        )
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # open_clip draws its weights from the global generator
        model: Any = open_clip.CLIP(**model_config)
        # Random towers give nearly the same embedding for every text; larger token vectors tell them apart.
        torch.nn.init.normal_(model.token_embedding.weight)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


def _byte_tokenizer() -> Tokenizer:
    vocabulary = {"<pad>": 0, "<start>": 1, "<end>": 2}
    vocabulary |= {letter: 3 + i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(["<pad>", "<start>", "<end>"])
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny", seed=0)


@pytest.fixture(scope="session")
def other_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "other", seed=1)


def save_tiny_prior(folder: Path, prediction_type: str) -> Path:
    """Save a Stable Diffusion pipeline of the real classes: 16-pixel images, 8x down-sampling, random weights."""
    # The libraries annotate these as their first example was, one block or one kind of token.
    tokenizer: Any = prior_tokenizer()
    autoencoder: Any = AutoencoderKL
    ddim: Any = DDIMScheduler
    pipeline: Any = StableDiffusionPipeline
    with torch.random.fork_rng():
        torch.manual_seed(0)  # diffusers and transformers draw their weights from the global generator
        unet = UNet2DConditionModel(
            sample_size=2,
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16,
            use_linear_projection=True,
        )
        vae = autoencoder(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            norm_num_groups=2,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            sample_size=16,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    scheduler = ddim(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
        clip_sample=False,
    )
    pipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def epsilon_prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_prior(tmp_path_factory.mktemp("prior") / "epsilon", "epsilon")


@pytest.fixture(scope="session")
def v_prior_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_prior(tmp_path_factory.mktemp("prior") / "v", "v_prediction")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def unit_rows(seed: int, num: int = NUM_ASSETS, dim: int = 8) -> Float[np.ndarray, "num dim"]:
    """Return random unit vectors as an index keeps them, to half precision."""
    rows = np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def some_assets(num: int = NUM_ASSETS, root: str = "/meshes") -> list[Asset]:
    return [
        Asset(
            asset_id=f"id{i}",
            mesh_path=f"{root}/{i}.glb",
            caption=f"thing {i}",
            source="test",
            license=("cc0", "by", "by-nc")[i % 3],
        )
        for i in range(num)
    ]


def write_index(
    index_dir: Path,
    text: np.ndarray,
    image: np.ndarray,
    clip: Clip,
    assets: list[Asset],
    root: Path = Path("/meshes"),
    has_words: bool = True,
) -> Path:
    """Write an index by hand, or a newer generation of one; `image` is [assets, dim] or [assets, views, dim]."""
    image = image if image.ndim == 3 else image[:, None]
    generation = new_generation(index_dir)
    table = asset_table(assets, [asset.asset_id for asset in assets], root)
    write_table(generation / "assets.arrow", table if has_words else table.drop_columns(["front_axis"]))
    write_table(generation / "refused.arrow", refused_table([]))
    np.save(generation / "text.npy", text.astype(np.float16))
    np.save(generation / "image.npy", image.astype(np.float16))
    if has_words:
        write_lexical([asset.caption for asset in assets], generation / "lexical")
    recall = train_recall(text, generation / "scann")
    files = seal_files(generation)
    manifest = IndexManifest(
        index_dir=str(index_dir),
        generation=generation.name,
        catalog="test",
        clip_model=clip.identity,
        embedding_dim=text.shape[1],
        num_assets=len(text),
        num_refused=0,
        dropped={},
        num_views=image.shape[1],
        recall=recall,
        content_hash=content_hash(files),
        asset_root=str(root),
        created="2026-01-01T00:00:00+00:00",
        files=files,
    )
    write_manifest(manifest)
    if not has_words:  # as indexes of format 3 are
        path = index_dir / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 3}))
    drop_other_generations(manifest)
    return index_dir


def write_tiny_index(folder: Path, clip: Clip) -> Path:
    root = folder / "catalog"
    root.mkdir(parents=True, exist_ok=True)
    return write_index(folder / "index", unit_rows(1), unit_rows(2), clip, some_assets(root=str(root)), root)
