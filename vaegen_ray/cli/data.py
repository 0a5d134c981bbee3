"""`vaegen data inspect` and `vaegen data verify`: what a dataset is, and whether it is whole."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vaegen_ray.cli.console import counting_bar
from vaegen_ray.errors import DataError
from vaegen_ray.storage import Location

if TYPE_CHECKING:
    from vaegen_ray.data.dataset import Dataset
    from vaegen_ray.data.format import Metadata

app = typer.Typer(name="data", help="Look at a prepared dataset, or check it.", no_args_is_help=True)

Source = Annotated[
    str,
    typer.Argument(metavar="DATASET", help="Folder of a dataset: a local path, s3://bucket/prefix or shipped:NAME."),
]

SHEET_IMAGES = 64
SHEET_COLUMNS = 8
SHOWN_LABELS = 12
SHOWN_PROBLEMS = 50


@app.command()
def inspect(
    source: Source,
    images: Annotated[
        str | None, typer.Option("--images", metavar="PNG", help="Also write 64 training images as one picture.")
    ] = None,
) -> None:
    """Show counts, sizes, statistics, labels, licence and fingerprint of a dataset."""
    from vaegen_ray.data.dataset import Dataset

    dataset = Dataset.open(source, key="DATASET")
    console = Console(highlight=False, markup=False)
    console.print(_description(dataset))
    if images:
        console.print(f"{_write_sheet(dataset, images)}: {SHEET_COLUMNS} a row, spread over the training images")


@app.command()
def verify(source: Source) -> None:
    """Check every shard's length and checksum, and decode every image. Exits with 2 if anything is wrong."""
    from vaegen_ray.data.dataset import Dataset
    from vaegen_ray.data.verification import problems_of

    dataset = Dataset.open(source, key="DATASET")
    num_images = sum(dataset.metadata.counts.values())
    num_shards = sum(map(len, dataset.metadata.splits.values()))
    num_problems = 0
    with counting_bar() as progress:
        bar = progress.add_task("verify", total=num_images)
        for problem in problems_of(dataset, lambda count: progress.advance(bar, count)):
            num_problems += 1
            if num_problems <= SHOWN_PROBLEMS:
                # Not rich's markup: the names of images may hold brackets.
                progress.console.print(problem, markup=False, highlight=False, soft_wrap=True)
    if num_problems:
        more = f", of which the first {SHOWN_PROBLEMS} are above" if num_problems > SHOWN_PROBLEMS else ""
        raise DataError(
            f"{dataset.location}: {num_problems} problem(s){more}; restore the files that are named, or prepare again"
        )
    Console(highlight=False, markup=False).print(
        f"{dataset.location}: whole; {num_shards} shards have their checksums, {num_images:,} images decode",
        soft_wrap=True,
    )


def _description(dataset: "Dataset") -> Table:
    from vaegen_ray.data.format import SPLITS

    metadata = dataset.metadata
    table = Table(show_header=False, title=Text(f"{metadata.name}  ({dataset.location})"), title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")

    def add(topic: str, text: str) -> None:
        table.add_row(topic, Text(text))

    for split in SPLITS:
        shards = metadata.splits.get(split, ())
        num_bytes = sum(shard.bytes for shard in shards)
        groups = sum(shard.row_groups for shard in shards)
        add(
            split.replace("_", "-") + " images",
            f"{metadata.counts.get(split, 0):,} in {len(shards)} shard(s), {groups} row group(s), "
            f"{num_bytes / 1e6:,.1f} MB",
        )
    size, channels = metadata.image_size, metadata.channels
    decoded_mb = sum(metadata.counts.values()) * size * size * channels / 1e6
    add("image", f"{size} x {size} x {channels}, {metadata.encoding}; {decoded_mb:,.1f} MB decoded")
    add("source images", " to ".join(f"{width} x {height}" for width, height in _source_sizes(metadata)))
    add("mean, channels in [0, 1]", ", ".join(f"{value:.4f}" for value in metadata.mean))
    add("standard deviation", ", ".join(f"{value:.4f}" for value in metadata.std))
    add(
        "largest eigenvalue",
        f"{metadata.largest_eigenvalue:g}, of the covariance of the images with values in [0, 1]: where beta times the "
        "variance of a Gaussian decoder is larger, the posterior collapses",
    )
    add("labels", _labels(dataset))
    rejected = [f"{count:,} {kind.replace('_', ' ')}" for kind, count in metadata.rejected.items() if count]
    add("rejected", f"{', '.join(rejected)}; rejected.parquet names them" if rejected else "none")
    add("source", metadata.source)
    add("licence", metadata.licence or "not stated")
    add("fingerprint", metadata.fingerprint)
    return table


def _source_sizes(metadata: "Metadata") -> list[tuple[int, int]]:
    smallest, largest = metadata.smallest_source, metadata.largest_source
    return [smallest] if smallest == largest else [smallest, largest]


def _labels(dataset: "Dataset") -> str:
    from vaegen_ray.data.inspection import label_counts

    if dataset.metadata.label is None:
        return "none"
    counts = sorted(label_counts(dataset, "train").items(), key=lambda pair: (-pair[1], pair[0]))
    shown = ", ".join(f"{label} ({count:,})" for label, count in counts[:SHOWN_LABELS])
    more = f", and {len(counts) - SHOWN_LABELS} more" if len(counts) > SHOWN_LABELS else ""
    return f"{len(counts)} of type {dataset.metadata.label}: {shown}{more}"


def _write_sheet(dataset: "Dataset", destination: str) -> Location:
    import torch

    from vaegen_ray.data.inspection import spread_images
    from vaegen_ray.evaluation.inference import images_of_bytes
    from vaegen_ray.evaluation.pictures import image_grid, save_picture

    images_BCHW = images_of_bytes(spread_images(dataset, "train", SHEET_IMAGES), torch.device("cpu"))
    place = Location.of(destination)
    save_picture(image_grid(images_BCHW, SHEET_COLUMNS), place)
    return place
