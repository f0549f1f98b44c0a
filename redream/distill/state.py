"""The state of a distillation: all that a step reads and writes, and how it is saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from redream.distill.particle import CHECKPOINT, Particle
from redream.files import put_in_place


@dataclass(eq=False)
class DistillState:
    """All that a step reads and writes: particles, the variational LoRA, optimisers, the generator, the step count."""

    particles: list[Particle]
    optimizers: list[torch.optim.Optimizer]
    variational: list[nn.Parameter]  # empty for methods that train nothing besides the particles
    variational_optimizer: torch.optim.Optimizer | None
    generator: torch.Generator
    step: int = 0

    def save(self, folder: Path | str) -> None:
        """Write the checkpoint; the old one stays until the new one is whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{CHECKPOINT}.part"
        torch.save(
            {
                "step": self.step,
                "particles": [particle.state_dict() for particle in self.particles],
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "variational": [parameter.detach() for parameter in self.variational],
                "variational_optimizer": self.variational_optimizer and self.variational_optimizer.state_dict(),
                "generator": self.generator.get_state(),
            },
            temporary,
        )
        put_in_place(temporary, folder / CHECKPOINT)

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
        self.generator.set_state(saved["generator"])
        self.step = saved["step"]
