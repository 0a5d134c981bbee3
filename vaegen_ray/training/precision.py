"""The arithmetic of the networks: its precision, and whether it is compiled."""

import logging

import torch
from torch import nn

from vaegen_ray.config.job import TrainJob
from vaegen_ray.objectives.gan import Gan
from vaegen_ray.objectives.vae import Vae
from vaegen_ray.objectives.vae_gan import VaeGan

logger = logging.getLogger(__name__)

COMPILER: dict[str, str | bool | int] = {
    "force_layout_optimization": True,
    "realize_reads_threshold": 16,
    "realize_opcount_threshold": 100,
}
"""Settings of the compiler on a GPU. By its own count a step of kl-f8 at 256 pixels moves a quarter less by them.

With them the compiler keeps channels last also in networks with a convolution to few channels, and computes what is
normalised again where the next convolution reads it, in place of storing it. No GPU has timed them yet; on a CPU a step
takes 5 % longer.
"""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def compile_networks(objective: Vae | Gan | VaeGan, job: TrainJob, device: torch.device) -> None:
    """Compile encoder, decoder and discriminator in place, where the job asks for it and it works.

    A discriminator with a gradient penalty stays eager, since compiled code cannot be differentiated twice.
    Where a network does not compile on this machine all stay eager, with a warning.
    """
    if not job.training.compile:
        return
    generator = objective.generator
    networks: list[nn.Module] = [generator.decoder.body]
    if generator.encoder is not None:
        networks.append(generator.encoder)
    if objective.discriminator is not None:
        if job.objective.kind != "vae" and job.objective.adversarial.gradient_penalty is not None:
            logger.warning("training.compile: the discriminator stays eager, its gradient penalty differentiates twice")
        else:
            networks.append(objective.discriminator)
    problem = _compilation_problem(device)
    if problem is not None:
        logger.warning("training.compile: off, torch.compile fails on this machine: %s", problem)
        return
    from torch._functorch import config as functorch_config  # Of the compiler, which costs seconds to import.

    # The gradients at the images are taken before the rest of the backward pass, which needs the same buffers. Compiled
    # code gives them away as it sees fit, and then refuses, where its first use did not tell it that they are kept.
    functorch_config.donated_buffer = False
    for network in networks:
        # A batch has one of a few sizes: code for each is faster than code for any.
        network.compile(dynamic=False, options=_settings(device))


def _settings(device: torch.device) -> dict[str, str | bool | int] | None:
    return COMPILER if device.type == "cuda" else None


def _compilation_problem(device: torch.device) -> str | None:
    """Why torch.compile does not work here, tried on a small network; None where it works."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.SiLU()).to(device)
    network.compile(options=_settings(device))
    try:
        network(torch.zeros(1, 1, 8, 8, device=device)).sum().backward()
    except Exception as error:  # noqa: BLE001 (the compiler, its C++ toolchain and Triton each raise their own)
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None
