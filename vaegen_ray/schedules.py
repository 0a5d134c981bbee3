"""Weights and rates as functions of the position, in images. Pure; no state to save."""

import math

from vaegen_ray.config.job import ConstantRate, CosineRate, LinearRate
from vaegen_ray.config.objective import ConstantKl, CyclicalKl, LinearKl


def ramp(position: float, start: float, length: float) -> float:
    """0 before ``start``, 1 from ``start + length`` on, a straight line between; a step when ``length`` is 0."""
    if length == 0:
        return float(position >= start)
    return min(max((position - start) / length, 0.0), 1.0)


def kl_factor(schedule: ConstantKl | LinearKl | CyclicalKl, position: int) -> float:
    """The multiplier of the KL weight at ``position``, in [0, 1].

    Cyclical: Fu et al. 2019, eq. 6 and 7, with the linear ramp.
    """
    if isinstance(schedule, LinearKl):
        return ramp(position, schedule.start_images, schedule.warmup_images)
    if isinstance(schedule, CyclicalKl):
        phase = (position % schedule.cycle_images) / schedule.cycle_images
        return min(phase / schedule.ramp_fraction, 1.0)
    return 1.0


def learning_rate_factor(schedule: ConstantRate | CosineRate | LinearRate, position: int, total_images: int) -> float:
    """The multiplier of the learning rate of the step that begins at ``position``, in [0, 1].

    The warm-up counts the step's first image, so that no step has a rate of 0.
    """
    warmup = ramp(position + 1, 0, schedule.warmup_images) if schedule.warmup_images else 1.0
    progress = ramp(position, schedule.warmup_images, max(total_images - schedule.warmup_images, 1))
    if isinstance(schedule, ConstantRate):
        return warmup
    falling = 0.5 * (1 + math.cos(math.pi * progress)) if isinstance(schedule, CosineRate) else 1 - progress
    return warmup * (schedule.final_fraction + (1 - schedule.final_fraction) * falling)


def ema_decay(half_life_images: float, position: int, images_per_step: int) -> float:
    """Decay of one step of the moving average of weights, with ``position`` images seen.

    Half-life as in Karras et al. 2020 (StyleGAN2), never above a twentieth of the images seen, so that the
    average leaves the initial weights behind.
    """
    half_life = min(half_life_images, 0.05 * max(position, images_per_step))
    return float(0.5 ** (images_per_step / half_life))
