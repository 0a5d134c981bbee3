"""The pictures of an evaluation."""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.data.batches import to_float
from vaegen_ray.evaluation.pictures import (
    interpolations_grid,
    reconstruction_grid,
    sample_grid,
    save_picture,
    traversal_grid,
)
from vaegen_ray.models.generator import Generator


def save_grids(
    generator: Generator,
    held_out: NDArray[np.uint8],
    job: TrainJob,
    run: RunDirectory,
    position: int,
    device: torch.device,
    *,
    is_last: bool,
) -> dict[str, Image]:
    """Save the grids of this position; the same latents and the same held-out images every time.

    At the end of the run also interpolations and traversals.
    """
    count = job.evaluation.grid_images
    grids = {"samples": sample_grid(generator, count, job.seed, device)}
    originals = to_float(torch.from_numpy(held_out[:count].copy()).permute(0, 3, 1, 2)).to(device)
    if generator.encoder is not None:
        grids["reconstructions"] = reconstruction_grid(generator, originals)
    if is_last:
        if count >= 2:
            grids["interpolations"] = interpolations_grid(generator, originals, job.seed)
        grids["traversals"] = traversal_grid(generator, originals, job.seed)
    for name, grid in grids.items():
        save_picture(grid, run.picture(name, position))
    return grids
