"""The frozen networks of a prior: loaded once, and shared by all priors of a process that are built on them.

Each prior works on modules of its own whose tensors are these, so that what one adds (a LoRA, prefixes, a projection of
the camera) is out of the others' sight. Text encoder and decoder stay on the CPU; a prior that needs them on a GPU
brings a copy there.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from redream.prior.layouts import find_layout
from redream.prior.patch_codec import PatchCodec
from redream.prior.precision import resolve_dtype
from redream.settings import PriorConfig

Network = TypeVar("Network", bound=nn.Module)
DECODER = ("decoder", "post_quant_conv")  # of AutoencoderKL; the miniature's codec has no such parts
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class FrozenModel:
    """UNet, codec, text encoder, tokenizer and noise schedule of a Stable Diffusion model, none of them trained."""

    def __init__(self, config: PriorConfig, device: torch.device | str = "cpu") -> None:
        """Load the model, each network straight to its dtype.

        Raises:
            ValueError: neither a folder nor a hub id that can be reached.
        """
        self.device = torch.device(device)
        self.dtype = resolve_dtype(config.dtype, self.device)
        parts = _load(config, self.dtype)
        self.prediction_type: str = parts.scheduler.config.prediction_type
        if self.prediction_type not in PREDICTIONS:
            raise ValueError(
                f"the prior {config.model!r} predicts {self.prediction_type!r}; epsilon, v_prediction and "
                "sample are supported"
            )
        self.unet: Any = parts.unet
        self.vae: Any = parts.vae
        self.text_encoder: Any = parts.text_encoder
        self.tokenizer: Any = parts.tokenizer
        self.scheduler: Any = parts.scheduler
        for network in (self.unet, self.vae, self.text_encoder):
            network.requires_grad_(False).eval()
        self.bring()

    def bring(self) -> None:
        """Put on the device what every prior uses there."""
        self._move(self.device)

    def rest(self) -> None:
        """Wait on the CPU; no prior that shares the weights may be at work."""
        self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        self.unet.to(device)
        decoder = decoder_of(self.vae)
        for name in decoder:
            setattr(self.vae, name, nn.Identity())
        self.vae.to(device)
        for name, part in decoder.items():
            setattr(self.vae, name, part)


def decoder_of(vae: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in vae.named_children() if name in DECODER}


def sharing_tensors(network: Network) -> Network:
    """Return modules of one's own around the very tensors of `network`."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


@dataclass(frozen=True, eq=False)
class _Parts:
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any


def _load(config: PriorConfig, dtype: torch.dtype) -> _Parts:
    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()  # it lists what a scheduler's config has of other schedulers
    transformers.utils.logging.disable_progress_bar()
    layout = find_layout(config.model, config.config)
    folder, wanted = str(layout.folder), {"dtype": dtype, "use_safetensors": True}
    try:
        scheduler: Any = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        if layout.file is not None:
            pipeline: Any = StableDiffusionPipeline.from_single_file(
                str(layout.file), config=folder, local_files_only=True, dtype=dtype, safety_checker=None
            )
            return _Parts(pipeline.unet, pipeline.vae, pipeline.text_encoder, tokenizer, scheduler)
        variants = {name: variant or None for name, variant in layout.variants.items()}
        vae_config = json.loads((layout.folder / "vae" / "config.json").read_text())
        codec: Any = PatchCodec if vae_config.get("_class_name") == "PatchCodec" else AutoencoderKL
        return _Parts(
            UNet2DConditionModel.from_pretrained(folder, subfolder="unet", variant=variants["unet"], **wanted),
            codec.from_pretrained(folder, subfolder="vae", variant=variants["vae"], **wanted),
            CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", variant=variants["text_encoder"], **wanted),
            tokenizer,
            scheduler,
        )
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot load the prior {config.model!r} ({reason}); fetch it again") from error
