"""A particle: density and colour at every position in a cube, and the background behind it.

The field of ProlificDreamer (Wang et al. 2023) in threestudio's form: a hash grid (`hash_grid.py`), a small perceptron
without biases, and a density that starts as a blob, softplus(gain * raw + blob_scale * (1 - |x| / blob_radius)), so
that the first render shows something to improve. Colour does not depend on the viewing direction, which would let a
field look right from each side and be no one object; directions stay in the signature because the renderer passes them.
The background is a small network of the ray's direction alone. Positions are in world units, `sigmas` in 1 / world
unit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from redream.field.hash_grid import HashGrid
from redream.settings import FieldConfig

BACKGROUND_HIDDEN_DIM = 16  # threestudio's neural environment map: two hidden layers of 16


class RadianceField(nn.Module):
    """Hash grid and perceptron over the cube [-radius, radius]^3.

    Its parameters are `encoding`, `network` and `background_network`, which learn at different rates; its `state_dict`
    is all there is to save. The generator draws every initial weight.
    """

    def __init__(self, config: FieldConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.encoding = HashGrid(
            config.num_levels,
            config.features_per_level,
            config.log2_hashmap_size,
            config.base_resolution,
            config.per_level_scale,
            generator,
            config.implementation,
        )
        hidden = [config.hidden_dim] * config.num_hidden_layers
        self.network = _perceptron([self.encoding.output_dim, *hidden, 4], generator)
        hidden = [BACKGROUND_HIDDEN_DIM] * 2
        self.background_network = _perceptron([9, *hidden, 3], generator)

    def density_and_color(
        self, positions: Float[Tensor, "num 3"], directions: Float[Tensor, "num 3"] | None = None
    ) -> tuple[Float[Tensor, " num"], Float[Tensor, "num 3"]]:
        """Return `sigmas` and `rgb` in [0, 1]; directions make no difference."""
        raw = self.network(self.encoding((positions / self.config.radius + 1.0) * 0.5))
        return self._sigmas(raw[:, 0], positions), torch.sigmoid(raw[:, 1:])

    def density(self, positions: Float[Tensor, "num 3"]) -> Float[Tensor, " num"]:
        raw = self.network(self.encoding((positions / self.config.radius + 1.0) * 0.5))
        return self._sigmas(raw[:, 0], positions)

    def background(self, directions: Float[Tensor, "*rays 3"]) -> Float[Tensor, "*rays 3"]:
        """Return the colour that a ray sees where the object lets it through."""
        return torch.sigmoid(self.background_network(spherical_harmonics(directions)))

    def _sigmas(self, raw: Float[Tensor, " num"], positions: Float[Tensor, "num 3"]) -> Float[Tensor, " num"]:
        blob = 1.0 - positions.norm(dim=-1) / self.config.density_blob_radius
        return softplus(self.config.density_gain * raw + self.config.density_blob_scale * blob)


def spherical_harmonics(directions: Float[Tensor, "*rays 3"]) -> Float[Tensor, "*rays 9"]:
    """Return the real spherical harmonics of degrees 0 to 2 of unit directions."""
    x, y, z = directions.unbind(-1)
    bands = [
        torch.full_like(x, 0.28209479177387814),
        -0.48860251190291987 * y,
        0.48860251190291987 * z,
        -0.48860251190291987 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.94617469575756008 * z * z - 0.31539156525251999,
        -1.0925484305920792 * x * z,
        0.54627421529603959 * (x * x - y * y),
    ]
    return torch.stack(bands, dim=-1)


def _perceptron(dims: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(dims):
        # nn.Linear would draw from the global generator; the distribution is its own.
        linear = nn.Linear(fan_in, fan_out, bias=False, device="meta").to_empty(device=generator.device)
        nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5), generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
