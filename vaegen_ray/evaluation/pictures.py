"""Pictures of what a generator makes: samples, reconstructions, interpolations, as grids."""

import io
import itertools
import math
from collections.abc import Iterable

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from vaegen_ray.evaluation.inference import decoded, device_of, posterior_means, prior_latents
from vaegen_ray.evaluation.tiles import reconstruction_in_tiles
from vaegen_ray.models.generator import Generator
from vaegen_ray.storage import Location

GAP_PIXELS = 1


def image_grid(images_BCHW: Tensor, columns: int) -> Image.Image:
    """Images in [-1, 1] (clamped) row by row, with a black line between.

    One channel gives a grey picture, three a colour picture. Of any other number of channels each image shows
    its channels as grey tiles, one below the other.
    """
    pixels = ((images_BCHW.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    if pixels.shape[1] not in (1, 3):
        pixels = pixels.flatten(1, 2).unsqueeze(1)
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    row_step, column_step = height + GAP_PIXELS, width + GAP_PIXELS
    canvas = torch.zeros(rows * row_step - GAP_PIXELS, columns * column_step - GAP_PIXELS, channels, dtype=torch.uint8)
    for index, image_CHW in enumerate(pixels):
        top, left = index // columns * row_step, index % columns * column_step
        canvas[top : top + height, left : left + width] = image_CHW.permute(1, 2, 0)
    array = canvas.numpy()
    return Image.fromarray(array[:, :, 0] if channels == 1 else array)


def sample_grid(generator: Generator, count: int, seed: int, device: torch.device) -> Image.Image:
    """``count`` prior samples in a square, decoded on ``device``; ``seed`` gives the same latents on every machine."""
    latents_BZ = prior_latents(count, generator.latent_shape, seed).to(device)
    return image_grid(decoded(generator, latents_BZ), columns=math.isqrt(count - 1) + 1)


def reconstruction_grid(generator: Generator, images_BCHW: Tensor, columns: int = 8) -> Image.Image:
    """Rows of originals, each above the row of their reconstructions (decoded posterior means).

    Raises JobError for a generator without an encoder.
    """
    images_BCHW = images_BCHW.detach().cpu()
    reconstructions = decoded(generator, posterior_means(generator, images_BCHW))
    columns = min(columns, len(images_BCHW))
    missing = -len(images_BCHW) % columns
    black = torch.full((missing, *images_BCHW.shape[1:]), -1.0)
    originals, reconstructions = torch.cat([images_BCHW, black]), torch.cat([reconstructions, black])
    rows = zip(torch.split(originals, columns), torch.split(reconstructions, columns), strict=True)
    return image_grid(torch.cat([row for pair in rows for row in pair]), columns)


def full_size_reconstructions(generator: Generator, images: Iterable[Tensor]) -> Image.Image:
    """One below the other, each image (1, C, H, W) in its own size and, to the right, its reconstruction in tiles."""
    device, rows = device_of(generator), []
    for image_1CHW in images:
        reconstruction = reconstruction_in_tiles(generator, image_1CHW.to(device)).cpu()
        rows.append(image_grid(torch.cat([image_1CHW, reconstruction]), columns=2))
    tops = [0, *itertools.accumulate(row.height + GAP_PIXELS for row in rows)]
    picture = Image.new(rows[0].mode, (max(row.width for row in rows), tops[-1] - GAP_PIXELS))
    for top, row in zip(tops, rows, strict=False):
        picture.paste(row, (0, top))
    return picture


def interpolation_grid(generator: Generator, a: Tensor, b: Tensor, steps: int) -> Image.Image:
    """One row of ``steps`` images between the latents ``a`` and ``b``, ends included."""
    fractions = torch.linspace(0, 1, steps)
    a, b = a.to(device_of(generator)), b.to(device_of(generator))
    latents_BZ = torch.stack([spherical_interpolation(a, b, float(fraction)) for fraction in fractions])
    return image_grid(decoded(generator, latents_BZ), columns=steps)


def interpolations_grid(
    generator: Generator, images_BCHW: Tensor, seed: int, rows: int = 6, steps: int = 9
) -> Image.Image:
    """Rows of interpolations: between neighbours of ``images_BCHW``, or without an encoder between prior samples."""
    if generator.encoder is not None:
        ends = posterior_means(generator, images_BCHW[: 2 * rows])
    else:
        ends = prior_latents(2 * rows, generator.latent_shape, seed).to(device_of(generator))
    fractions = [float(fraction) for fraction in torch.linspace(0, 1, steps)]
    latents = [
        spherical_interpolation(a, b, part) for a, b in zip(ends[::2], ends[1::2], strict=False) for part in fractions
    ]
    return image_grid(decoded(generator, torch.stack(latents)), columns=steps)


def traversal_grid(generator: Generator, images_BCHW: Tensor, seed: int, rows: int = 10, steps: int = 9) -> Image.Image:
    """A row a latent dimension, which goes from -3 to 3 while the others stay; those that change the picture most.

    Begins at the code of the first of ``images_BCHW``, or without an encoder at a prior sample. Of a spatial code a
    dimension is a channel, everywhere in the image.
    """
    if generator.encoder is not None:
        start = posterior_means(generator, images_BCHW[:1])[0]
    else:
        start = prior_latents(1, generator.latent_shape, seed).to(device_of(generator))[0]

    def row(dimension: int) -> Tensor:
        latents = start.repeat(steps, *[1] * start.ndim)
        values = torch.linspace(-3, 3, steps, device=start.device)
        latents[:, dimension] = values.view(-1, *[1] * (start.ndim - 1))
        return decoded(generator, latents)

    # Decoded twice: all rows of a large code would take gigabytes.
    change = torch.stack([row(dimension).var(dim=0).sum() for dimension in range(generator.latent_shape[0])])
    shown = change.argsort(descending=True)[:rows]
    return image_grid(torch.cat([row(int(dimension)) for dimension in shown]), columns=steps)


def spherical_interpolation(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """The latent at ``fraction`` in [0, 1] of the way: the direction along a great circle, the length on a line.

    White 2016: the prior's mass lies near a sphere, whose inside a straight line would cross. The length
    moves apart from the direction because posterior means lie at other lengths than prior draws. Falls back
    to the straight line where an end is zero or both point along one line.
    """
    length_a, length_b = float(a.norm()), float(b.norm())
    angle = math.acos(min(max(float(functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)), -1.0), 1.0))
    if min(length_a, length_b) == 0 or math.sin(angle) < 1e-4:
        return torch.lerp(a, b, fraction)
    weight_a = math.sin((1 - fraction) * angle) / (length_a * math.sin(angle))
    weight_b = math.sin(fraction * angle) / (length_b * math.sin(angle))
    return (weight_a * a + weight_b * b) * ((1 - fraction) * length_a + fraction * length_b)


def png_bytes(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def save_picture(picture: Image.Image, destination: Location) -> None:
    """Write a PNG file, local or to an object store, in one step for readers."""
    destination.write_bytes(png_bytes(picture))
