"""The settings that belong to one method, or to an estimator that several methods can switch on.

Sources are in docs/methods.md. Their sections are part of `RunConfig`; a stage's key holds those that its method reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as setting
from typing import Literal

from redream.limits import NotNegative, Positive, Share, require, require_limits


@dataclass(frozen=True, kw_only=True, slots=True)
class SjcConfig:
    """Score Jacobian Chaining (Wang et al. 2022)."""

    guidance_scale: NotNegative = 100.0  # 1 is no guidance; paper
    # how far the denoised latents are from the clean ones, or, with more variance, from the noised ones
    form: Literal["reduced", "plain"] = "reduced"
    lambda_emptiness: NotNegative = 10_000.0  # weight of the mean log(1 + scale w) over ray weights w; paper
    emptiness_scale: Positive = 10.0  # of the weights in that loss; paper
    emptiness_growth: NotNegative = 20.0  # factor of lambda_emptiness in the later steps; paper
    emptiness_grows_from: Share = 0.5  # share of the steps after which it grows; paper

    def __post_init__(self) -> None:
        require_limits("sjc", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class MVDreamConfig:
    """MVDream (Shi et al. 2023): four views at a time, by the multi-view prior."""

    model: str = ""  # weights: a folder, a hub id, or FILE+FOLDER (docs/methods.md); none by default
    guidance_scale: NotNegative = 50.0  # 1 is no guidance; paper
    rescale: Share = 0.5  # r: how far the target's spread is scaled back to that without guidance; paper
    negative_prompt: str = (  # where distill.negative_prompt is empty; the reference's, word by word
        "ugly, bad anatomy, blurry, pixelated obscure, unnatural colors, poor lighting, dull, and unclear, cropped, "
        "lowres, low quality, artifacts, duplicate, morbid, mutilated, poorly drawn face, deformed, dehydrated, "
        "bad proportions"
    )
    elevation_deg: tuple[float, float] = (0.0, 30.0)  # range, shared by the four views, degrees; paper
    fovy_deg: tuple[float, float] = (15.0, 60.0)  # range, shared by the four views, vertical, degrees; paper
    # range of what an image shows at the origin, from the middle to the top, world units; sets the distance; paper
    half_height: tuple[float, float] = (0.8, 1.0)
    first_t: Share = 0.98  # timestep at first, as a share of the training timesteps; paper
    last_min_t: Share = 0.02  # least timestep later, as a share; paper
    last_max_t: Share = 0.5  # largest timestep later, as a share; paper
    anneal_share: Share = 0.8  # share of the steps over which both ends move there; paper

    def __post_init__(self) -> None:
        require_limits("mvdream", self)
        for name in ("elevation_deg", "fovy_deg", "half_height"):
            low, high = getattr(self, name)
            require(low <= high, f"mvdream.{name}", (low, high), "an increasing pair")
        require(-90 <= self.elevation_deg[0] <= self.elevation_deg[1] <= 90, "mvdream.elevation_deg",
                self.elevation_deg, "within [-90, 90]")  # fmt: skip
        require(self.fovy_deg[0] > 0 and self.fovy_deg[1] < 180, "mvdream.fovy_deg", self.fovy_deg, "within (0, 180)")
        require(self.half_height[0] > 0, "mvdream.half_height", self.half_height, "positive")
        require(self.last_min_t <= self.last_max_t, "mvdream.last_min_t", self.last_min_t, "at most last_max_t")


@dataclass(frozen=True, kw_only=True, slots=True)
class PerpNegConfig:
    """Perp-Neg (Armandpour et al. 2023): the prompts of the other views as negatives; twice the cost of guidance."""

    enabled: bool = False  # for sds, vsd, redream and sjc
    rule: Literal["threestudio", "paper"] = "threestudio"  # how strong the negatives are by azimuth

    def __post_init__(self) -> None:
        require_limits("perp_neg", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class DebiasConfig:
    """Debiased-SDS (Hong et al. 2023)."""

    score: bool = False  # clamp the latent gradient, elementwise
    first_clamp: Positive = 2.0  # of that clamp, in the first step; paper, for Stable Diffusion
    last_clamp: Positive = 8.0  # in the last step; paper

    def __post_init__(self) -> None:
        require_limits("debias", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodSettings:
    """All of the sections above, as the steps of a method get them."""

    sjc: SjcConfig = setting(default_factory=SjcConfig)
    mvdream: MVDreamConfig = setting(default_factory=MVDreamConfig)
    perp_neg: PerpNegConfig = setting(default_factory=PerpNegConfig)
    debias: DebiasConfig = setting(default_factory=DebiasConfig)
