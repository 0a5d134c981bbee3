"""How well the windowed order shuffles, beside the full one: `python -m vaegen_ray.bench.shuffle`."""

import numpy as np

from vaegen_ray.data.order import FullOrder, Order, WindowedOrder

SHARDS, IMAGES_PER_SHARD, IMAGES_PER_BATCH = 100, 10_000, 64


def labels_per_batch(order: Order, image_labels: np.ndarray, images_per_batch: int) -> float:
    """Mean number of different labels in a batch, over one epoch."""
    num_batches = len(image_labels) // images_per_batch
    indices = order.indices(np.arange(num_batches * images_per_batch))
    labels = np.sort(image_labels[indices.astype(np.intp)].reshape(num_batches, images_per_batch), axis=1)
    return float(1 + (np.diff(labels, axis=1) != 0).sum(axis=1).mean())


def label_drift(order: Order, image_labels: np.ndarray, images_per_part: int) -> float:
    """Distance between the labels of a part of the epoch and those of all, mean over the parts: 0 alike, 1 disjoint.

    The distance is half the sum of the differences of their frequencies (total variation).
    """
    num_parts, num_labels = len(image_labels) // images_per_part, int(image_labels.max()) + 1
    labels = image_labels[order.indices(np.arange(num_parts * images_per_part)).astype(np.intp)]
    overall = np.bincount(image_labels, minlength=num_labels) / len(image_labels)
    parts = labels.reshape(num_parts, images_per_part)
    distances = [
        np.abs(np.bincount(part, minlength=num_labels) / images_per_part - overall).sum() / 2 for part in parts
    ]
    return float(np.mean(distances))


def main() -> None:
    """Print a table for a dataset that is stored sorted by its labels, one a shard, and for one in mixed order."""
    size = SHARDS * IMAGES_PER_SHARD
    in_order = np.repeat(np.arange(SHARDS), IMAGES_PER_SHARD)
    mixed = np.random.default_rng(0).permutation(in_order)
    orders: dict[str, Order] = {"full": FullOrder(0, size)}
    for window_images in (500_000, 200_000, 100_000, 50_000, 20_000):
        orders[f"windows of {window_images:,}"] = WindowedOrder(0, [IMAGES_PER_SHARD] * SHARDS, window_images)
    print(f"{'':<20} {'labels in a batch of 64':>26} {'drift of 50,000 images':>26}")  # noqa: T201
    print(f"{'order':<20} {'sorted':>13}{'mixed':>13} {'sorted':>13}{'mixed':>13}")  # noqa: T201
    for name, order in orders.items():
        in_batch = [labels_per_batch(order, labels, IMAGES_PER_BATCH) for labels in (in_order, mixed)]
        drift = [label_drift(order, labels, 50_000) for labels in (in_order, mixed)]
        print(f"{name:<20} {in_batch[0]:>13.1f}{in_batch[1]:>13.1f} {drift[0]:>13.3f}{drift[1]:>13.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
