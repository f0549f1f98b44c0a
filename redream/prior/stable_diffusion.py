"""The 2D prior: a latent diffusion model in diffusers' Stable Diffusion form.

The only file that knows the codec's scaling, the prediction type and which low-rank network is active; it hands out
epsilon, whatever the model was trained to predict. Two LoRAs can sit in the one UNet: `adapter`, which fits the prior
to the retrieved assets (ReDream, Eq. 5), and `variational`, which follows the current renders (VSD) and is told the
camera through the time embedding.

Legend: alpha_t = sqrt(alphas_cumprod[t]), sigma_t = sqrt(1 - alphas_cumprod[t]), x_t = alpha_t x_0 + sigma_t eps.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float, Int
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from redream.cameras import Camera
from redream.devices import send
from redream.prior.frozen import FrozenModel, decoder_of, sharing_tensors
from redream.prior.guidance import classifier_free_guidance
from redream.prior.precision import computing_in
from redream.prior.prompts import VIEW_NAMES, PromptEmbeds, ViewPrefixes, embed_prompts
from redream.settings import PriorConfig

ADAPTER, VARIATIONAL = "adapter", "variational"
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # every attention projection, as usual for few-shot LoRA
CAMERA_DIM = 16  # a flattened c2w
PIXELS_PER_PASS = 2**18  # through the codec at once where memory counts: one image of 512x512


class StableDiffusionPrior:
    """A frozen diffusion prior with room for the two LoRAs; images are [0, 1], latents `x_0` are scaled."""

    def __init__(
        self, config: PriorConfig, device: torch.device | str = "cpu", frozen: FrozenModel | None = None
    ) -> None:
        """Build on a frozen model, which is loaded if none is given.

        Raises:
            ValueError: the model is not there or of another kind.
        """
        self._frozen = frozen or FrozenModel(config, device)
        self.model = config.model
        self.device, self.dtype = self._frozen.device, self._frozen.dtype
        self.unet, self.vae = sharing_tensors(self._frozen.unet), sharing_tensors(self._frozen.vae)
        self.tokenizer, self.text_encoder = self._frozen.tokenizer, sharing_tensors(self._frozen.text_encoder)
        self.scheduler = self._frozen.scheduler
        if config.save_memory:
            self.save_memory()
        self.alphas_cumprod: Float[Tensor, " timesteps"] = self.scheduler.alphas_cumprod.to(self.device)
        self.prediction_type = self._frozen.prediction_type
        # The name of AutoencoderKL's setting tells how far any codec scales down.
        self.image_size: int = self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.prefixes: ViewPrefixes | None = None
        self._active: str | None = None

    # ---- images and latents ------------------------------------------------------------------------------------------

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channels h w"]:
        """Encode images in [0, 1] at the model's own resolution; gradients flow."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        signed = (2.0 * images - 1.0).to(self.vae.dtype)
        with computing_in(self.dtype, self.device):
            return self.vae.encode(signed).latent_dist.mode().float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, x_0: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 3 height width"]:
        """Decode latents to images in [0, 1]."""
        for name, part in decoder_of(self.vae).items():
            setattr(self.vae, name, self._brought(part))
        latents = (x_0 / self.vae.config.scaling_factor).to(self.vae.dtype)
        with computing_in(self.dtype, self.device):
            images = torch.cat([self.vae.decode(batch).sample for batch in latents.split(self.images_per_pass)])
        return (0.5 * images.float() + 0.5).clamp(0, 1)

    @property
    def images_per_pass(self) -> int:
        """How many images the codec takes at once where nothing else bounds them."""
        return max(1, PIXELS_PER_PASS // self.image_size**2)

    def rest(self) -> None:
        """Take off a GPU what distillation does not use, until it is used again: text encoder and decoder."""
        if self.device.type != "cpu":
            self.text_encoder = sharing_tensors(self._frozen.text_encoder)
            for name, part in decoder_of(self._frozen.vae).items():
                setattr(self.vae, name, sharing_tensors(part))

    def _brought(self, network: nn.Module) -> nn.Module:
        """Return a network on this prior's device: a copy of its own there, if it is on the CPU."""
        if next(network.parameters()).device.type == self.device.type:
            return network
        return copy.deepcopy(network).to(self.device)

    # ---- prompts -----------------------------------------------------------------------------------------------------

    def embed(self, prompts: list[str], view_names: list[str] | None = None) -> Float[Tensor, "batch length dim"]:
        """Encode prompts behind their views' prefixes; gradients reach `prefixes` where there are learned ones."""
        self.text_encoder = self._brought(self.text_encoder)
        with computing_in(self.dtype, self.device):
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
        with computing_in(self.dtype, self.device):
            return self.unet(x_t.to(self.dtype), t, cond.to(self.dtype), timestep_cond=c2w).sample.float()

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
        """Add a LoRA that starts as no change, and return its parameters, float32 whatever the frozen weights are.

        The variational one also gets a projection of the camera into the time embedding, which starts at zero.
        """
        lora = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=True, target_modules=LORA_TARGETS)
        # peft draws from the global generator, and warns that there are two LoRAs, as there should be.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore", category=UserWarning):
            torch.manual_seed(seed)
            self.unet.add_adapter(lora, adapter_name=name)
        parameters = self._in_float32(name)
        if name == VARIATIONAL:
            time_embedding = self.unet.time_embedding
            projection = nn.Linear(CAMERA_DIM, time_embedding.linear_1.in_features, bias=False)
            nn.init.zeros_(projection.weight)
            time_embedding.cond_proj = projection.to(self.device)
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
        self._in_float32(ADAPTER)
        embeds = [load_file(folder / f"{view}.safetensors")[f"<{view}-view>"] for view in VIEW_NAMES]
        self.prefixes = ViewPrefixes(torch.stack(embeds).float().to(self.device)).requires_grad_(False)
        self._active = ADAPTER

    def _in_float32(self, name: str) -> list[nn.Parameter]:
        """Return a LoRA's parameters as float32; peft gives them the dtype of the weights that they change."""
        parameters = [p for key, p in self.unet.named_parameters() if f".{name}." in key]
        for parameter in parameters:
            parameter.data = parameter.data.float()
        return parameters

    def save_memory(self) -> None:
        """Keep fewer activations for the backward pass and compute them again there: slower, and the same numbers."""
        for network in (self.unet, self.vae):
            if network._supports_gradient_checkpointing:
                network.enable_gradient_checkpointing()

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
