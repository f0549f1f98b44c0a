"""The 2D prior: a latent diffusion model in diffusers' Stable Diffusion form.

The only file that knows the codec's scaling, the prediction type and which low-rank network is active; it hands out
epsilon, whatever the model was trained to predict. Two LoRAs can sit in the one UNet: `adapter`, which fits the prior
to the retrieved assets (ReDream, Eq. 5), and `variational`, which follows the current renders (VSD) and is told the
camera through the time embedding.

Legend: alpha_t = sqrt(alphas_cumprod[t]), sigma_t = sqrt(1 - alphas_cumprod[t]), x_t = alpha_t x_0 + sigma_t eps.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, Int
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from redream.cameras import Camera
from redream.devices import send
from redream.prior import patch_codec
from redream.prior.guidance import classifier_free_guidance
from redream.prior.prompts import VIEW_NAMES, PromptEmbeds, ViewPrefixes, embed_prompts
from redream.settings import PriorConfig
from redream.weights import weights_path

ADAPTER, VARIATIONAL = "adapter", "variational"
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # every attention projection, as usual for few-shot LoRA
CAMERA_DIM = 16  # a flattened c2w
PIXELS_PER_PASS = 2**18  # through the codec at once where memory counts: one image of 512x512


class StableDiffusionPrior:
    """A frozen diffusion prior with room for the two LoRAs; images are [0, 1], latents `x_0` are scaled."""

    def __init__(self, config: PriorConfig, device: torch.device | str = "cpu") -> None:
        """Load the model.

        Raises:
            ValueError: neither a folder nor a hub id that can be reached.
        """
        assert patch_codec  # diffusers loads the miniature's codec only from a module that is already imported
        diffusers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity_error()  # it warns that our codec is no AutoencoderKL
        transformers.utils.logging.disable_progress_bar()
        path, _, revision = weights_path(config.model).partition("@")
        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                path,
                revision=revision or None,
                dtype=getattr(torch, config.dtype),
                use_safetensors=True,
                safety_checker=None,
                requires_safety_checker=False,
            )
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"cannot load the prior {config.model!r} ({reason}); set prior.model to a folder in "
                "diffusers' form or to a hub id that this machine can reach"
            ) from error
        self.model = config.model
        self.device = torch.device(device)
        self.pipeline = pipeline.to(self.device)
        for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            network.requires_grad_(False)
            network.eval()
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.tokenizer, self.text_encoder = pipeline.tokenizer, pipeline.text_encoder
        # The miniature's codec encodes and decodes with the same weights and has no such parts.
        self._decoder = [part for name, part in self.vae.named_children() if name in ("decoder", "post_quant_conv")]
        self.alphas_cumprod: Float[Tensor, " timesteps"] = pipeline.scheduler.alphas_cumprod.to(self.device)
        self.prediction_type: str = pipeline.scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(
                f"the prior {config.model!r} predicts {self.prediction_type!r}; epsilon, v_prediction and "
                "sample are supported"
            )
        self.image_size: int = self.unet.config.sample_size * pipeline.vae_scale_factor  # pixels
        self.prefixes: ViewPrefixes | None = None
        self._active: str | None = None
        self._is_resting = False

    # ---- images and latents ------------------------------------------------------------------------------------------

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels h w"]:
        """Encode images in [0, 1] at the model's own resolution; gradients flow."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        signed = (2.0 * images - 1.0).to(self.vae.dtype)
        return self.vae.encode(signed).latent_dist.mode() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, x_0: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 3 height width"]:
        """Decode latents to images in [0, 1]."""
        self._wake()
        latents = (x_0 / self.vae.config.scaling_factor).to(self.vae.dtype)
        images = torch.cat([self.vae.decode(batch).sample for batch in latents.split(self.images_per_pass)])
        return (0.5 * images.float() + 0.5).clamp(0, 1)

    @property
    def images_per_pass(self) -> int:
        """How many images the codec takes at once where nothing else bounds them."""
        return max(1, PIXELS_PER_PASS // self.image_size**2)

    def rest(self) -> None:
        """Move to the CPU what distillation no longer uses, until it is used again: text encoder and decoder."""
        if not self._is_resting and self.device.type != "cpu":
            for part in (self.text_encoder, *self._decoder):
                part.to("cpu")
            self._is_resting = True

    def _wake(self) -> None:
        if self._is_resting:
            for part in (self.text_encoder, *self._decoder):
                part.to(self.device)
            self._is_resting = False

    # ---- prompts -----------------------------------------------------------------------------------------------------

    def embed(self, prompts: list[str], view_names: list[str] | None = None) -> Float[Tensor, "batch length dim"]:
        """Encode prompts behind their views' prefixes; gradients reach `prefixes` where there are learned ones."""
        self._wake()
        return embed_prompts(self.tokenizer, self.text_encoder, prompts, view_names, self.prefixes)

    @torch.no_grad()
    def prompt_embeds(self, prompt: str, negative_prompt: str = "") -> PromptEmbeds:
        by_view = self.embed([prompt] * len(VIEW_NAMES), list(VIEW_NAMES))
        return PromptEmbeds(by_view=by_view, plain=self.embed([prompt]), uncond=self.embed([negative_prompt]))

    # ---- noise -------------------------------------------------------------------------------------------------------

    def add_noise(
        self, x_0: Float[Tensor, "*shape"], t: Int[Tensor, " batch"], eps: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        alpha_t, sigma_t = self._noise_levels(t)
        return alpha_t * x_0 + sigma_t * eps

    @torch.no_grad()
    def predict_eps(
        self,
        x_t: Float[Tensor, "batch channels h w"],
        t: Int[Tensor, " batch"],
        cond: Float[Tensor, "batch length dim"],
        uncond: Float[Tensor, "1 length dim"],
        guidance_scale: float,
    ) -> Float[Tensor, "batch channels h w"]:
        """Predict the noise with guidance, through the adapter where one is there; no gradient."""
        self._activate(ADAPTER if self.has_adapter else None)
        if guidance_scale == 1.0:
            return self._to_eps(self._run_unet(x_t, t, cond), x_t, t)
        embeds = torch.cat([uncond.expand_as(cond), cond])
        output = self._run_unet(torch.cat([x_t, x_t]), torch.cat([t, t]), embeds)
        eps_uncond, eps_cond = self._to_eps(output, torch.cat([x_t, x_t]), torch.cat([t, t])).chunk(2)
        return classifier_free_guidance(eps_uncond, eps_cond, guidance_scale)

    def predict_eps_variational(
        self,
        x_t: Float[Tensor, "batch channels h w"],
        t: Int[Tensor, " batch"],
        cond: Float[Tensor, "batch length dim"],
        camera: Camera | None,
    ) -> Float[Tensor, "batch channels h w"]:
        """Predict the noise with the variational LoRA, unguided; `camera` None leaves the camera out.

        Gradients reach the LoRA and the camera's projection.
        """
        self._activate(VARIATIONAL)
        c2w = None if camera is None else camera.c2w.reshape(-1, CAMERA_DIM).to(x_t)
        return self._to_eps(self._run_unet(x_t, t, cond, c2w), x_t, t)

    def training_target(
        self, x_0: Float[Tensor, "*shape"], t: Int[Tensor, " batch"], eps: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"]:
        """Return what the network itself should output: eps, x_0 ("sample"), or v = alpha_t eps - sigma_t x_0."""
        if self.prediction_type == "epsilon":
            return eps
        if self.prediction_type == "sample":
            return x_0
        alpha_t, sigma_t = self._noise_levels(t)
        return alpha_t * eps - sigma_t * x_0

    def predict_target(
        self, x_t: Float[Tensor, "batch channels h w"], t: Int[Tensor, " batch"], cond: Tensor
    ) -> Float[Tensor, "batch channels h w"]:
        """Return the network's own output through the adapter, with gradients, for `training_target` to be its aim."""
        self._activate(ADAPTER if self.has_adapter else None)
        return self._run_unet(x_t, t, cond)

    def _run_unet(self, x_t: Tensor, t: Tensor, cond: Tensor, c2w: Tensor | None = None) -> Tensor:
        dtype = self.unet.dtype
        condition = None if c2w is None else c2w.to(dtype)
        return self.unet(x_t.to(dtype), t, cond.to(dtype), timestep_cond=condition).sample.float()

    def _to_eps(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return output
        alpha_t, sigma_t = self._noise_levels(t)
        if self.prediction_type == "sample":
            return (x_t - alpha_t * output) / sigma_t
        return alpha_t * output + sigma_t * x_t

    def _noise_levels(self, t: Int[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        alphas_cumprod = self.alphas_cumprod[t][:, None, None, None]
        return alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt()

    # ---- the two LoRAs -----------------------------------------------------------------------------------------------

    @property
    def has_adapter(self) -> bool:
        return ADAPTER in getattr(self.unet, "peft_config", {})

    def add_lora(self, name: str, rank: int, seed: int) -> list[nn.Parameter]:
        """Add a LoRA that starts as no change, and return its parameters.

        The variational one also gets a projection of the camera into the time embedding, which starts at zero.
        """
        lora = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=True, target_modules=LORA_TARGETS)
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            torch.manual_seed(seed)
            self.unet.add_adapter(lora, adapter_name=name)
        parameters = [p for key, p in self.unet.named_parameters() if f".{name}." in key]
        if name == VARIATIONAL:
            time_embedding = self.unet.time_embedding
            projection = nn.Linear(CAMERA_DIM, time_embedding.linear_1.in_features, bias=False)
            nn.init.zeros_(projection.weight)
            time_embedding.cond_proj = projection.to(self.device, self.unet.dtype)
            parameters.append(time_embedding.cond_proj.weight)
        self._active = name
        return parameters

    def save_adapter(self, folder: Path | str) -> None:
        """Write the adapter as diffusers loads it elsewhere.

        `load_lora_weights(folder)` takes the LoRA; `load_textual_inversion(folder / "front.safetensors")` gives the
        tokenizer a token `<front-view>` that stands for the learned prefix.
        """
        folder = Path(folder)
        layers: dict[str, nn.Module | Tensor] = dict(get_peft_model_state_dict(self.unet, adapter_name=ADAPTER))
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)
        if self.prefixes is not None:
            for view, embeds in zip(VIEW_NAMES, self.prefixes.embeds.detach().cpu(), strict=True):
                save_file({f"<{view}-view>": embeds.contiguous()}, folder / f"{view}.safetensors")

    def load_adapter(self, folder: Path | str) -> None:
        """Load what `save_adapter` wrote and use it from now on."""
        folder = Path(folder)
        self.unet.load_lora_adapter(folder / "pytorch_lora_weights.safetensors", prefix="unet", adapter_name=ADAPTER)
        embeds = [load_file(folder / f"{view}.safetensors")[f"<{view}-view>"] for view in VIEW_NAMES]
        self.prefixes = ViewPrefixes(torch.stack(embeds).to(self.device)).requires_grad_(False)
        self._active = ADAPTER

    def _activate(self, name: str | None) -> None:
        """Make one LoRA the active one, or none; what is active already costs nothing."""
        if name == self._active or not getattr(self.unet, "peft_config", {}):
            return
        if name is None:
            self.unet.disable_adapters()
        else:
            self.unet.enable_adapters()
            self.unet.set_adapter(name)
        self._active = name


@torch.no_grad()
def sample_images(
    prior: StableDiffusionPrior,
    cond: Float[Tensor, "batch length dim"],
    uncond: Float[Tensor, "1 length dim"],
    guidance_scale: float,
    num_steps: int,
    generator: torch.Generator,
) -> Float[Tensor, "batch 3 height width"]:
    """Draw images with deterministic DDIM (Song et al. 2021, Eq. 12 with eta = 0)."""
    size, channels = prior.unet.config.sample_size, prior.unet.config.in_channels
    x_t = send(torch.randn(len(cond), channels, size, size, generator=generator), prior.device)
    times = torch.linspace(len(prior.alphas_cumprod) - 1, 0, num_steps + 1).round().long()
    for now, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        eps_pred = prior.predict_eps(x_t, x_t.new_full((len(cond),), now).long(), cond, uncond, guidance_scale)
        a, b = prior.alphas_cumprod[now], prior.alphas_cumprod[after]
        x_0 = (x_t - (1.0 - a).sqrt() * eps_pred) / a.sqrt()
        x_t = b.sqrt() * x_0 + (1.0 - b).sqrt() * eps_pred
    return prior.decode(x_t)
