"""A machine with NVIDIA cards that are not there: the functions of torch that the real slot code asks, no others.

Memory behaves as torch's does: what a dead tensor leaves stays reserved until `empty_cache`.
"""

from __future__ import annotations

import sys
import threading
import types
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from tasks.machinery import devices, slots

BUSY = "CUDA error: CUDA-capable device(s) is/are busy or unavailable"


@dataclass
class Card:
    name: str = "NVIDIA H100 80GB HBM3"
    gib: float = 79.2
    capability: tuple[int, int] = (9, 0)
    uuid: str = ""
    trouble: str = ""  # CUDA's error at the first operation
    has_free_memory: bool = True  # whether `mem_get_info` answers


class Weights:
    """What a stage keeps on a card: a GiB, as long as somebody holds it."""


@dataclass
class Machine:
    """The cards as torch's functions show them to one process.

    `num_shown` is how many of them CUDA shows, where NVML counts more, as with MIG.
    """

    cards: Sequence[Card]
    num_shown: int | None = None
    allocated: Counter[int] = field(default_factory=Counter)  # GiB by card
    reserved: Counter[int] = field(default_factory=Counter)
    thread: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        for number, card in enumerate(self.cards):
            card.uuid = card.uuid or f"00000000-0000-0000-0000-00000000000{number}"

    def load(self, device: str) -> Weights:
        """Put a GiB on a card."""
        index, weights = int(device.removeprefix("cuda:")), Weights()
        self.allocated[index] += 1
        self.reserved[index] = max(self.reserved[index], self.allocated[index])
        weakref.finalize(weights, self.allocated.subtract, {index: 1})
        return weights

    def empty_cache(self) -> None:
        self.reserved = Counter(dict(self.allocated))

    def properties(self, index: int) -> Any:
        if index >= (len(self.cards) if self.num_shown is None else self.num_shown):
            raise AssertionError("Invalid device id")
        card = self.cards[index]
        major, minor = card.capability
        return types.SimpleNamespace(
            name=card.name, total_memory=int(card.gib * 2**30), major=major, minor=minor, uuid=card.uuid
        )

    def init(self) -> None:
        raise RuntimeError("no CUDA-capable device is detected\nDevice-side assertion tracking …")

    def current_device(self) -> int:
        return getattr(self.thread, "device", 0)

    def set_device(self, index: int) -> None:
        self.thread.device = index

    def mem_get_info(self, index: int) -> tuple[int, int]:
        if not self.cards[index].has_free_memory:
            raise RuntimeError("CUDA error: operation not supported")
        total = int(self.cards[index].gib * 2**30)
        return total - self.reserved[index] * 2**30, total

    def ones(self, size: int, device: str) -> Any:
        """Stand for a tensor of ones as far as `(ones * 2).sum().item()` goes."""
        if trouble := self.cards[int(device.removeprefix("cuda:"))].trouble:
            raise RuntimeError(trouble)
        total = types.SimpleNamespace(item=lambda: 2.0 * size)
        doubled = types.SimpleNamespace(sum=lambda: total)
        return type("Ones", (), {"__mul__": lambda _, factor: doubled})()

    def cuda_functions(self) -> dict[str, Any]:
        return {
            "is_available": lambda: bool(self.cards),
            "is_initialized": lambda: bool(self.cards),
            "device_count": lambda: len(self.cards),
            "get_device_properties": self.properties,
            "get_arch_list": lambda: ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
            "current_device": self.current_device,
            "set_device": self.set_device,
            "mem_get_info": self.mem_get_info,
            "empty_cache": self.empty_cache,
            "init": self.init,
        }


def fake_cards(
    monkeypatch: pytest.MonkeyPatch, cards: Sequence[Card], num_shown: int | None = None, **torch_facts: Any
) -> Machine:
    """Let this process see cards, as a process that holds none yet; torch is a stub of what is asked of it."""
    machine = Machine(cards, num_shown)
    torch: Any = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(**machine.cuda_functions())
    torch.version = types.SimpleNamespace(cuda="13.2", hip=None)
    torch.__version__, torch.ones = "2.15.0+cu132", machine.ones
    for name, value in torch_facts.items():
        holder, _, last = name.rpartition("__")
        setattr(getattr(torch, holder) if holder else torch, last, value)
    monkeypatch.setitem(sys.modules, "torch", torch)
    see_driver(monkeypatch)
    return machine


def see_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CUDA's driver be there, with nothing hidden or asked for by the environment."""
    monkeypatch.setattr(devices, "_has_driver_library", lambda: True)
    monkeypatch.setattr(slots, "_process", slots._Process())
    for name in ("CUDA_VISIBLE_DEVICES", devices.DEVICE, slots.NUM_SLOTS):
        monkeypatch.delenv(name, raising=False)


def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Go on as a process that holds nothing; what others hold stays held."""
    monkeypatch.setattr(slots, "_process", slots._Process())
