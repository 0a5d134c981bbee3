"""Everything that a checkpoint holds, and nothing else."""

from typing import Any

import torch
from torch import Tensor

from vaegen_ray.config.job import TrainJob
from vaegen_ray.errors import TrainingError
from vaegen_ray.objectives.build import build_objective
from vaegen_ray.objectives.objective import PhaseName
from vaegen_ray.randomness import derived_seed
from vaegen_ray.training.collectives import gather_objects
from vaegen_ray.training.ema import Ema
from vaegen_ray.training.phases import Phase


class TrainState:
    """Networks with LeCAM's averages, their moving average, both optimizers, and the position.

    There is no random state: random numbers and the order of images are functions of (seed, position).
    """

    def __init__(self, job: TrainJob, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(job.seed, "parameters"))
            objective = build_objective(job)
        self.objective = objective.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this pair
        self.ema = Ema(self.objective.generator)
        settings = {"generator": job.optimizer.generator, "discriminator": job.optimizer.discriminator}
        names: list[PhaseName] = (
            ["generator"] if self.objective.discriminator is None else ["generator", "discriminator"]
        )
        self.phases = [Phase(name, self.objective, settings[name] or job.optimizer.generator) for name in names]
        self.position = 0
        """Images of the global sequence that have been used."""

    def under(self, job: TrainJob, device: torch.device) -> "TrainState":
        """The same state to the bit, with the settings of ``job``."""
        state = TrainState(job, device)
        state.load_tensors(self.tensors())
        state.load_optimizers(self.optimizers())
        state.position = self.position
        return state

    def tensors(self) -> dict[str, Tensor]:
        """The state of the networks, by names that do not change between versions without a new schema."""
        named = {f"objective.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        return named | {f"ema.{name}": tensor for name, tensor in self.ema.generator.state_dict().items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`tensors` gave; every name must be there."""
        for prefix, module in (("objective.", self.objective), ("ema.", self.ema.generator)):
            part = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            module.load_state_dict(part, strict=True)

    def optimizers(self) -> dict[str, Any]:
        """The optimizers' moments, by phase."""
        return {phase.name: phase.optimizer.state_dict() for phase in self.phases}

    def load_optimizers(self, states: dict[str, Any]) -> None:
        """Put back what :meth:`optimizers` gave."""
        for phase in self.phases:
            phase.optimizer.load_state_dict(states[phase.name])

    def check_replicas(self) -> None:
        """Raise TrainingError when the networks of the ranks differ, by a float64 sum of each tensor."""
        sums = torch.stack([tensor.detach().double().sum() for tensor in self.tensors().values()])
        everybody = gather_objects(sums.cpu().numpy().tobytes())
        drifted = [rank for rank, checksum in enumerate(everybody) if checksum != everybody[0]]
        if drifted:
            raise TrainingError(
                f"replicas drifted apart at image {self.position}: the networks of rank(s) {drifted} differ from "
                "those of rank 0; the newest checkpoint is good, start the run again"
            )
