"""ReDream (Seo et al. 2024, arXiv 2402.02972): VSD that starts from retrieved assets. One step for a particle theta:

    draw psi, one of the asset's cameras where its render is needed;  t, eps;  x_0 = E(g(theta, psi))
    v_2d of Eq. 2, with the adapted prior once there is one (Eq. 5)
    every third step, v_2d of the asset's own render is taken off (App. B)
    while step < K, v_ret is added (Eq. 3), and the variational LoRA also learns the asset's render (Eq. 4)

Adaptation (Eq. 5) runs beside the warm-up, in `redream/prior/adaptation.py`; the prior here is the adapted one after.
"""

from __future__ import annotations

import torch

from redream.distill.delta import delta_gradient, is_delta_step
from redream.distill.methods import vsd
from redream.distill.methods.method import Method, Scored
from redream.distill.step import Inputs, Turn, draw_noise, field_losses, is_warm_up, look, score_loss


def score(inputs: Inputs, turn: Turn) -> Scored:
    """Take one step of the algorithm above."""
    config, prior = inputs.config, inputs.prior
    is_warm = is_warm_up(inputs, turn)
    is_delta = turn.asset is not None and is_delta_step(turn.step, config.delta_every)
    view = look(inputs, turn, has_asset=is_warm or is_delta)
    x_0 = prior.encode(view.images())
    t, eps = draw_noise(inputs, turn, x_0)
    gradient = vsd.latent_gradient(inputs, view, x_0, t, eps)
    shown = x_0
    if view.asset is not None:
        with torch.no_grad():
            asset_x_0 = prior.encode(view.asset_images())
        if is_delta:
            asset_gradient = vsd.latent_gradient(inputs, view, asset_x_0, t, eps)
            gradient = delta_gradient(gradient, asset_gradient, config.delta_weight)
        if is_warm and config.variational_sees_assets:
            shown = torch.cat([x_0, asset_x_0])
    losses = {"score": score_loss(inputs, turn, x_0, gradient), **field_losses(inputs, turn, view)}
    return Scored(losses, t, view.camera, shown)


METHOD = Method(score=score, add_network=vsd.add_network, network_loss=vsd.network_loss)
