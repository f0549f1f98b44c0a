"""The methods' results, bit for bit, against digests recorded before a method became a file of its own.

Bits depend on the processor and on torch's kernels, so the digests hold only where the same few operations give the
same bits as on the machine that recorded them; elsewhere the test skips. `python -m
tests.redream.distill.test_bit_identity` prints the digests of this machine.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from redream.prior.stable_diffusion import StableDiffusionPrior
from redream.settings import PriorConfig
from tests.redream.conftest import save_tiny_prior
from tests.redream.distill.test_loop import ASSETS, CONFIG, run, weights

ARITHMETIC = "2574c675fa487d9e"
RECORDED = {"sds": "6430a310421610ac", "vsd": "2864872d86fca8bb", "redream": "0edae7af238c96a1"}


def digest(tensors: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def arithmetic() -> str:
    """Return a digest of what torch's kernels give here for operations like the networks' own."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 8, 16, 16, generator=generator), torch.randn(8, 8, 3, 3, generator=generator)
    rows = x.flatten(2).mT.contiguous()
    x.requires_grad_(True)
    convolved = F.conv2d(x, w, padding=1)
    attended = F.scaled_dot_product_attention(rows, rows, rows)
    shown = [convolved, attended, rows @ w[:, :, 0, 0], F.silu(x), x.exp(), x.softmax(1), F.group_norm(x, 4), x.sum()]
    (convolved.square().mean() + F.softplus(x).norm()).backward()
    assert x.grad is not None
    return digest([*shown, x.grad])


def result(method: str, prior_folder: Path) -> str:
    """Run a method for eight steps, through warm-up, annealing and the change of resolution."""
    prior = StableDiffusionPrior(PriorConfig(model=str(prior_folder)))
    config = replace(CONFIG, method=method, num_particles=2, lambda_sparsity=3.0)
    state, steps = run(prior, config, ASSETS if method == "redream" else [])
    losses = torch.tensor([value for step in steps for value in (*step.losses.values(), step.grad_norm, *step.t)])
    return digest([losses, *weights(state).values(), state.generator.get_state()])


@pytest.mark.parametrize("method", RECORDED)
def test_a_method_gives_the_bits_it_gave_before_it_was_a_file_of_its_own(method: str, v_prior_folder: Path) -> None:
    if arithmetic() != ARITHMETIC:
        pytest.skip("this processor's or torch's arithmetic is not that of the recorded digests")
    assert result(method, v_prior_folder) == RECORDED[method]


if __name__ == "__main__":
    print("arithmetic", arithmetic())
    with tempfile.TemporaryDirectory() as folder:
        save_tiny_prior(Path(folder) / "v", "v_prediction")
        for name in RECORDED:
            print(name, result(name, Path(folder) / "v"))
