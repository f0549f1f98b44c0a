"""A request to stop is heard inside a step that takes long, and a step that changed half of a state is not saved."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tasks.machinery import progress
from tasks.machinery.progress import StoppedInside, stop_requested, stopping_inside_steps


@pytest.fixture(autouse=True)
def a_request_ends_with_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(progress, "GRACE_SECONDS", 0.0)
    yield
    stop_requested.clear()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))


def test_a_forward_pass_ends_between_two_layers() -> None:
    with stopping_inside_steps("cpu"):
        network()(torch.ones(1, 2))
        stop_requested.set()
        with pytest.raises(StoppedInside):
            network()(torch.ones(1, 2))


def test_a_backward_pass_ends_between_two_layers() -> None:
    with stopping_inside_steps("cpu"):
        loss = network()(torch.ones(1, 2)).sum()
        stop_requested.set()
        with pytest.raises(StoppedInside):
            loss.backward()


def test_within_its_grace_a_step_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "GRACE_SECONDS", 3600.0)
    with stopping_inside_steps("cpu"):
        stop_requested.set()
        network()(torch.ones(1, 2)).sum().backward()


def test_nothing_listens_on_a_gpu_or_afterwards_and_gradients_are_the_same() -> None:
    def gradients(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layers = network()
        with stopping_inside_steps(device):
            layers(torch.ones(1, 2)).sum().backward()
        return [parameter.grad for parameter in layers.parameters() if parameter.grad is not None]

    assert all(map(torch.equal, gradients("cpu"), gradients("cuda:0")))
    stop_requested.set()
    network()(torch.ones(1, 2)).sum().backward()
    with stopping_inside_steps("cuda:0"):
        network()(torch.ones(1, 2))
