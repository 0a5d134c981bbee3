"""LeCAM: regularises the discriminator towards its own past (Tseng et al. 2021)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from vaegen_ray.config.objective import Lecam as LecamSettings


class Lecam(nn.Module):
    """Moving averages of the mean logits; buffers, so that they are saved and resumed."""

    averages: Tensor
    """Of the logits of real and of fake images, uncorrected for the zero start."""
    num_updates: Tensor

    def __init__(self, settings: LecamSettings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("averages", torch.zeros(2))
        self.register_buffer("num_updates", torch.zeros(()))

    def penalty(self, real_B: Tensor, fake_F: Tensor) -> Tensor:
        """E relu(D(x) - average fake)^2 + E relu(average real - D(x'))^2 (eq. 4 with the hinge of their code).

        Zero before the first update. The averages are those before this step.
        """
        started = (self.num_updates > 0).float()
        real_average, fake_average = self.averages / (1 - self.settings.decay**self.num_updates).clamp(min=1e-12)
        apart = relu(real_B - fake_average).square().mean() + relu(real_average - fake_F).square().mean()
        return started * apart

    @torch.no_grad()
    def update(self, real_mean: Tensor, fake_mean: Tensor) -> None:
        """Follow the mean logits of the global batch; values that are not finite are ignored."""
        news = torch.stack([real_mean, fake_mean])
        finite = news.isfinite().all()
        decay = self.settings.decay
        self.averages.copy_(torch.where(finite, decay * self.averages + (1 - decay) * news, self.averages))
        self.num_updates.add_(finite.float())
