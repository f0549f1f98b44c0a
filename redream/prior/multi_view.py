"""The multi-view prior (MVDream, Shi et al. 2023, arXiv 2308.16512): four views of an object are denoised together.

It is Stable Diffusion's UNet with two differences: the camera, a flattened c2w, is added to the time embedding, and
self-attention sees the tokens of all views of an object at once. Views of an object stand next to each other in a
batch. Legend: as in `stable_diffusion.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from redream.cameras import Camera
from redream.prior.multi_view_files import load_unet
from redream.prior.patch_codec import PatchCodec
from redream.prior.prompts import VIEW_NAMES, PromptEmbeds, embed_prompts
from redream.weights import weights_path

NUM_VIEWS = 4
CODECS = {"AutoencoderKL": AutoencoderKL, "PatchCodec": PatchCodec}
SAFE_FILES = ["*.json", "*.txt", "*.safetensors"]


class JointViews:
    """An attention processor that lets each token of a view see those of all views of its object."""

    def __init__(self, num_views: int = NUM_VIEWS) -> None:
        self.num_views = num_views
        self.attend = AttnProcessor2_0()

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        joined = hidden_states.unflatten(0, (-1, self.num_views)).flatten(1, 2)  # [objects, views * tokens, channels]
        found = self.attend(attn, joined, *args, **kwargs)
        return found.unflatten(1, (self.num_views, -1)).flatten(0, 1)


def join_views(unet: UNet2DConditionModel, num_views: int = NUM_VIEWS) -> None:
    """Make every self-attention of the UNet, and no cross-attention, see all views of an object."""
    found: dict[str, Any] = unet.attn_processors
    joint = {name: JointViews(num_views) if name.endswith("attn1.processor") else each for name, each in found.items()}
    unet.set_attn_processor(joint)


def camera_condition(camera: Camera) -> Float[Tensor, "batch 16"]:
    """Return each c2w with its translation scaled to length 1, flattened row by row."""
    c2w = camera.c2w.clone()
    c2w[:, :3, 3] /= c2w[:, :3, 3].norm(dim=-1, keepdim=True) + 1e-8
    return c2w.flatten(1)


class MultiViewPrior:
    """A frozen multi-view prior; images are [0, 1], latents `x_0` are scaled, batches are multiples of four views."""

    def __init__(self, model: str, negative_prompt: str = "", device: torch.device | str = "cpu") -> None:
        """Load the model.

        Args:
            model: a folder, a hub id, or `FILE+FOLDER`: the original file and a Stable Diffusion 2.1 folder for the
                parts that MVDream has in common with it.

        Raises:
            ValueError: it cannot be reached, or is not a multi-view model.
        """
        unet_place, folder = _places(model)
        self.model, self.negative_prompt, self.device = model, negative_prompt, torch.device(device)
        self.dtype = torch.float32
        self.unet = self._frozen(load_unet(unet_place))
        join_views(self.unet)
        try:
            name = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8")).get("_class_name")
            codec: Any = CODECS[name]
            self.vae = self._frozen(codec.from_pretrained(folder, subfolder="vae", use_safetensors=True))
            self.text_encoder = self._frozen(
                CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", use_safetensors=True)
            )
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
            scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"cannot load the multi-view prior {model!r} ({reason})") from error
        self.alphas_cumprod: Float[Tensor, " timesteps"] = scheduler.alphas_cumprod.to(self.device)
        self.prediction_type: str = scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "sample"):
            raise ValueError(f"the multi-view prior {model!r} predicts {self.prediction_type!r}, not epsilon or sample")
        self.image_size: int = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _frozen(self, network: Any) -> Any:
        return network.float().requires_grad_(False).eval().to(self.device)

    def rest(self) -> None:
        """Leave everything where it is."""

    def save_memory(self) -> None:
        """Keep fewer activations of the codec for the backward pass, where it can."""
        if self.vae._supports_gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels h w"]:
        """Encode images in [0, 1] at the model's own resolution; gradients flow."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        return self.vae.encode(2.0 * images - 1.0).latent_dist.mode() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, x_0: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 3 height width"]:
        """Decode latents to images in [0, 1]."""
        return (0.5 * self.vae.decode(x_0 / self.vae.config.scaling_factor).sample + 0.5).clamp(0, 1)

    @torch.no_grad()
    def prompt_embeds(self, prompt: str, negative_prompt: str = "") -> PromptEmbeds:
        """Embed a prompt, which is the same for all views; without a negative one, the prior's own is taken."""
        texts = [prompt, negative_prompt or self.negative_prompt]
        plain, uncond = embed_prompts(self.tokenizer, self.text_encoder, texts).split(1)
        return PromptEmbeds(by_view=plain.expand(len(VIEW_NAMES), -1, -1), plain=plain, uncond=uncond)

    def add_noise(
        self, x_0: Float[Tensor, "*shape"], t: Int[Tensor, " batch"], eps: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        a = self.alphas_cumprod[t][:, None, None, None]
        return a.sqrt() * x_0 + (1.0 - a).sqrt() * eps

    @torch.no_grad()
    def predict_eps_pair(
        self, x_t: Float[Tensor, "batch channels h w"], t: Int[Tensor, " batch"], embeds: PromptEmbeds, camera: Camera
    ) -> tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch channels h w"]]:
        """Predict the noise without and with the prompt, unguided; both are told the cameras."""
        shape = (len(x_t), -1, -1)
        cond = torch.cat([embeds.uncond.expand(shape), embeds.plain.expand(shape)])
        x_t, t = x_t.repeat(2, 1, 1, 1), t.repeat(2)
        output = self.unet(x_t, t, cond, class_labels=camera_condition(camera).repeat(2, 1)).sample
        if self.prediction_type == "sample":
            a = self.alphas_cumprod[t][:, None, None, None]
            output = (x_t - a.sqrt() * output) / (1.0 - a).sqrt()
        eps_uncond, eps_cond = output.chunk(2)
        return eps_uncond, eps_cond


def _places(model: str) -> tuple[Path, Path]:
    """Return where the UNet is, and the folder of the other parts."""
    if not model:
        raise ValueError(
            "the multi-view prior has no weights by default; set mvdream.model to a folder or a hub id, such as "
            "mini:multi-view or ashawkey/mvdream-sd2.1-diffusers, whose licence you accept"
        )
    file, plus, folder = model.partition("+")
    if plus:
        return Path(file), _folder(folder)
    return _folder(model), _folder(model)


def _folder(model: str) -> Path:
    place = weights_path(model)
    if Path(place).is_dir():
        return Path(place)
    name, _, revision = place.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=SAFE_FILES))
    except (OSError, HfHubHTTPError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the multi-view prior {model!r} is not a folder and not on the hub ({reason})") from error
