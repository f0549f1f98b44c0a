"""The state of a distillation: all that a step reads and writes, and how it is saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redream.distill.particle import CHECKPOINT, Particle
from redream.files import put_in_place
from redream.prior.precision import LossScale


@dataclass(eq=False)
class DistillState:
    """All that a step reads and writes: particles, the variational LoRA, optimisers, the generator, the step count."""

    particles: list[Particle]
    optimizers: list[torch.optim.Optimizer]
    variational: list[nn.Parameter]  # empty for methods that train nothing besides the particles
    variational_optimizer: torch.optim.Optimizer | None
    generator: torch.Generator
    field_scale: LossScale
    variational_scale: LossScale
    step: int = 0
    samples_per_chunk: int = 0  # that fitted into the GPU's memory; 0 as the settings say

    def snapshot(self) -> dict[str, Any]:
        """Copy all of it to the CPU, which takes a moment; the run may go on while `write_checkpoint` takes longer."""
        return _copied_to_cpu(
            {
                "step": self.step,
                "particles": [particle.state_dict() for particle in self.particles],
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "variational": [parameter.detach() for parameter in self.variational],
                "variational_optimizer": self.variational_optimizer and self.variational_optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "loss_scales": [self.field_scale.state_dict(), self.variational_scale.state_dict()],
            }
        )

    def save(self, folder: Path | str) -> None:
        write_checkpoint(self.snapshot(), folder)

    def load(self, folder: Path | str) -> None:
        """Continue from a checkpoint of the same settings."""
        # On the CPU first: the generator's state is refused elsewhere, and the optimisers move theirs themselves.
        saved = torch.load(Path(folder) / CHECKPOINT, map_location="cpu", weights_only=True)
        for particle, state in zip(self.particles, saved["particles"], strict=True):
            particle.load_state_dict(state)
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        with torch.no_grad():
            for parameter, value in zip(self.variational, saved["variational"], strict=True):
                parameter.copy_(value)
        if self.variational_optimizer is not None:
            self.variational_optimizer.load_state_dict(saved["variational_optimizer"])
        for scale, state in zip((self.field_scale, self.variational_scale), saved.get("loss_scales", ())):
            scale.load_state_dict(state)
        self.generator.set_state(saved["generator"])
        self.step = saved["step"]


def write_checkpoint(snapshot: dict[str, Any], folder: Path | str) -> None:
    """Write a state's snapshot; the old checkpoint stays until the new one is whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{CHECKPOINT}.part"
    torch.save(snapshot, temporary)
    put_in_place(temporary, folder / CHECKPOINT)


def _copied_to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied_to_cpu(item) for key, item in value.items()}
    return [_copied_to_cpu(item) for item in value] if isinstance(value, list) else value
