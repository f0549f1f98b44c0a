"""The methods by name, and which settings only some of them read; their steps are in `redream/distill/methods/`.

Nothing heavy is imported, so that the command can refuse what a method does not use before anything starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodFacts:
    what: str  # in a line
    source: str  # the paper
    settings: tuple[str, ...]  # that it reads and some other method does not; `section.` stands for all of a section
    uses_assets: bool = False


OF_RETRIEVAL = (
    "distill.warm_up_steps",
    "distill.use_initialisation",
    "distill.lambda_ret_rgb",
    "distill.lambda_ret_opacity",
)
OF_REDREAM = (
    "distill.variational_sees_assets",
    "distill.use_adapter",
    "distill.delta_every",
    "distill.delta_weight",
    "adaptation.",
)
OF_2D = (
    "perp_neg.",
    "prior.",
    "camera.camera_distance",
    "camera.fovy_deg",
    "camera.elevation_deg",
    "distill.min_t",
    "distill.max_t",
    "distill.annealed_max_t",
    "distill.anneal_from_step",
)
OF_WEIGHTED = ("distill.weighting",)
OF_VSD = ("distill.guidance_scale", "distill.lr_variational", "distill.variational_rank", "distill.camera_dropout")

METHODS: dict[str, MethodFacts] = {
    "redream": MethodFacts(
        what="VSD from retrieved assets: warm-up towards them, adapted prior, delta regulariser",
        source="Seo et al. 2024, arXiv 2402.02972",
        settings=(*OF_RETRIEVAL, *OF_REDREAM, *OF_VSD, *OF_WEIGHTED, *OF_2D),
        uses_assets=True,
    ),
    "vsd": MethodFacts(
        what="variational score distillation: a second network follows the renders",
        source="Wang et al. 2023, arXiv 2305.16213",
        settings=(*OF_VSD, *OF_WEIGHTED, *OF_2D),
    ),
    "sds": MethodFacts(
        what="score distillation sampling",
        source="Poole et al. 2022, arXiv 2209.14988",
        settings=("distill.sds_guidance_scale", *OF_WEIGHTED, *OF_2D),
    ),
    "sjc": MethodFacts(
        what="score Jacobian chaining: move towards the denoised render, and clear fog by the emptiness loss",
        source="Wang et al. 2022, arXiv 2212.00774",
        settings=("sjc.", *OF_2D),
    ),
    "mvdream": MethodFacts(
        what="four views at a time, denoised together by a multi-view prior",
        source="Shi et al. 2023, arXiv 2308.16512",
        settings=("mvdream.",),
    ),
}


def unused_settings(method: str, names: Iterable[str]) -> list[str]:
    """Return those of the settings that only other methods read."""
    return [name for name in names if not _covers(METHODS[method].settings, name) and users_of(name)]


def users_of(name: str) -> list[str]:
    """Return the methods that a setting belongs to; none where it belongs to all."""
    return [method for method, facts in METHODS.items() if _covers(facts.settings, name)]


def _covers(settings: tuple[str, ...], name: str) -> bool:
    return name in settings or f"{name.partition('.')[0]}." in settings
