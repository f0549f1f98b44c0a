"""Which of EGL's devices draws."""

from __future__ import annotations

import pytest
import torch

from redream.render.egl import EglKind, egl_order

SOFTWARE = EglKind(is_software=True, is_nvidia=False, cuda_index=None)
INTEL = EglKind(is_software=False, is_nvidia=False, cuda_index=None)
DEVICES = {
    "software": SOFTWARE,
    "card 1": EglKind(is_software=False, is_nvidia=True, cuda_index=1),
    "not shown": EglKind(is_software=False, is_nvidia=True, cuda_index=None),
    "card 0": EglKind(is_software=False, is_nvidia=True, cuda_index=0),
    "intel": INTEL,
}


def order() -> list[str]:
    return egl_order(list(DEVICES), list(DEVICES.values()))


@pytest.mark.parametrize("current", [0, 1])
def test_card_that_computes_draws_and_software_comes_last(current: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    assert order()[0] == f"card {current}"
    assert order()[-1] == "software"
    assert sorted(order()) == sorted(DEVICES)


def test_without_cuda_hardware_is_tried_in_egl_s_order_before_software(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert order() == ["card 1", "not shown", "card 0", "intel", "software"]


def test_cards_that_are_hidden_from_cuda_draw_only_if_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert order()[:2] == ["intel", "software"]
