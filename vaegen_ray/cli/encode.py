"""`vaegen encode`: a dataset's images as latents."""

import importlib.util
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vaegen_ray.cli.console import counting_bar
from vaegen_ray.cli.evaluate import Run, device_named
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.storage import Location

if TYPE_CHECKING:
    from vaegen_ray.evaluation.latent_dataset import Progress as OnProgress


def encode(
    run: Run,
    dataset: Annotated[str, typer.Argument(help="Prepared dataset, local, s3:// or shipped:NAME.")],
    destination: Annotated[str, typer.Argument(help="Folder of the latents, local or s3://.")],
    local: Annotated[bool, typer.Option("--local", help="Without Ray: in this process.")] = False,  # noqa: FBT002
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N, for this process: as --local.")] = None,
) -> None:
    """Write the latent codes of a dataset by a trained KL autoencoder, for latent diffusion.

    On Ray where it is installed, by actors that hold the model. Killed, the same command goes on.
    """
    directory, folder = RunDirectory(Location.of(run)), Location.of(destination)
    with counting_bar() as progress:
        bar = progress.add_task("encode", total=None)

        def show(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        count = _encode(directory, dataset, folder, show, local=local, device=device)
    Console(markup=False).print(f"latents: {folder}: {count:,} images", soft_wrap=True)


def _encode(
    run: RunDirectory, dataset: str, folder: Location, show: "OnProgress", *, local: bool, device: str | None
) -> int:
    if local or device is not None or importlib.util.find_spec("ray") is None:
        from vaegen_ray.evaluation.latent_dataset import encode_dataset, encode_here

        return encode_dataset(run, dataset, folder, encode_here(run, device_named(device)), show)
    from vaegen_ray.on_ray.encode import encode_on_ray

    return encode_on_ray(run, dataset, folder, show)
