"""Every stage that computes on a GPU says so and gets its process's card inside the slot; its record names the card."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from redream.presets import smoke
from tasks import adaptation, distillation, evaluation, exporting, indexing, orientation, rendering
from tasks.machinery.slots import _process
from tasks.machinery.store import stage_key
from tasks.runs.run import Run
from tasks.runs.stage import Work, run_stage
from tests.tasks.machinery.faked_cards import Card, fake_cards

CONFIG = smoke()
OUTPUT: Any = SimpleNamespace(digest="0" * 64)
RUN: Any = SimpleNamespace(prompt="a red cube", seed=0)
STAGES: dict[str, tuple[ModuleType, Callable[[], Any], str]] = {
    "index": (indexing, lambda: indexing.index_miniature.fn(RUN, CONFIG.retrieval), "device"),
    "align": (
        orientation,
        lambda: orientation.align.fn(RUN, OUTPUT, CONFIG.retrieval.clip_model, CONFIG.orientation, CONFIG.mesh),
        "device",
    ),
    "render": (
        rendering,
        lambda: rendering.render.fn(RUN, OUTPUT, OUTPUT, CONFIG.render, CONFIG.camera, CONFIG.mesh),
        "cores",
    ),
    "warm_up": (distillation, lambda: distillation.warm_up.fn(RUN, OUTPUT, CONFIG, 2), "training"),
    "adapt": (adaptation, lambda: adaptation.adapt.fn(RUN, OUTPUT, CONFIG, 2), "training"),
    "distill": (distillation, lambda: distillation.distill.fn(RUN, OUTPUT, OUTPUT, OUTPUT, CONFIG), "training"),
    "evaluate": (evaluation, lambda: evaluation.evaluate.fn(RUN, OUTPUT, CONFIG), "device"),
    "export": (exporting, lambda: exporting.export.fn(RUN, OUTPUT, OUTPUT, OUTPUT, CONFIG), "device"),
}


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_asks_for_what_it_computes_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, call, expected = STAGES[name]
    monkeypatch.setattr(module, "run_stage", lambda *_, needs="cores": needs)
    assert call() == expected


def test_stage_computes_on_its_card_and_the_record_names_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = fake_cards(monkeypatch, [Card("Tesla K80", 11.2, (3, 7)), Card()])
    devices = []

    def produce(work: Work) -> dict[str, int]:
        devices.append((work.device, machine.current_device()))
        work.facts["renderer"] = "llvmpipe"
        return {}

    for name, needs in (("align", "device"), ("render", "cores"), ("distill", "training")):
        run_stage(run, stage_key(name, 1, {}, {}), {}, produce, needs=needs)  # pyright: ignore[reportArgumentType]
    assert devices == [
        ("cuda:1", 1),
        ("cpu", 1),
        ("cuda:1", 1),
    ]  # also what draws without a slot
    stages = json.loads((run.folder / "run.json").read_text())["stages"]
    assert stages["align"]["device"] == f"GPU 1, NVIDIA H100 80GB HBM3 ({machine.cards[1].uuid})"
    assert (stages["render"]["device"], stages["render"]["renderer"]) == ("CPU", "llvmpipe")
    assert _process.users == 0
