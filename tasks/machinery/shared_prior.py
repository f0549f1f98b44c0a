"""The prior's frozen weights, loaded once per process and device, whichever stages use them.

Between two trainings on a GPU they wait on the CPU, since the memory of a slot is given back with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redream.settings import PriorConfig
from redream.weights import weights_digest
from tasks.machinery.progress import waiting
from tasks.machinery.slots import before_leaving

if TYPE_CHECKING:
    from redream.prior.frozen import FrozenModel
    from redream.prior.stable_diffusion import StableDiffusionPrior

_kept: dict[tuple[str, ...], FrozenModel] = {}  # one at most: the last that was used


def shared_prior(config: PriorConfig, device: str) -> StableDiffusionPrior:
    """Return a prior of one's own on shared weights; only for who holds the lock of loading."""
    from redream.prior.frozen import FrozenModel
    from redream.prior.stable_diffusion import StableDiffusionPrior

    key = (config.model, weights_digest(config.model, config.config), config.config, config.dtype, device)
    if key not in _kept:
        _kept.clear()
        with waiting("loading the prior"):
            _kept[key] = FrozenModel(config, device)
    _kept[key].bring()
    return StableDiffusionPrior(config, device, _kept[key])


def forget_prior() -> None:
    """Let go of the weights, after the last stage that uses them."""
    _kept.clear()


def _rest() -> None:
    for frozen in _kept.values():
        frozen.rest()


before_leaving.append(_rest)
