"""From a job to its objective."""

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.objective import GanObjective, VaeObjective
from vaegen_ray.objectives.gan import Gan
from vaegen_ray.objectives.vae import Vae
from vaegen_ray.objectives.vae_gan import VaeGan


def build_objective(job: TrainJob) -> Vae | Gan | VaeGan:
    """The networks and losses of ``job``, with parameters drawn from torch's global generator."""
    settings = job.objective
    if isinstance(settings, VaeObjective):
        return Vae(settings, job.model)
    if isinstance(settings, GanObjective):
        return Gan(settings, job.model)
    return VaeGan(settings, job.model)
