"""The settings that belong to one method, or to an estimator that several methods can switch on.

Sources are in docs/methods.md. Their sections are part of `RunConfig`; a stage's key holds those that its method reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as setting
from typing import Literal

from redream.limits import NotNegative, Positive, Share, require_limits


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
    perp_neg: PerpNegConfig = setting(default_factory=PerpNegConfig)
    debias: DebiasConfig = setting(default_factory=DebiasConfig)
