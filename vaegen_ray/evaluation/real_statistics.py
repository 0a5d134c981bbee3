"""The features of real images, kept in storage, so that they are computed once for all runs on a dataset.

A file is named by all that it depends on: the dataset's fingerprint, the split and how many of its images, the size
and channels at which the model sees them, the feature network with its weights, and the rule by which it resizes.
"""

import hashlib
import logging
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vaegen_ray.config.job import Features, TrainJob
from vaegen_ray.errors import StorageError
from vaegen_ray.evaluation.features import weights_of
from vaegen_ray.evaluation.frechet import Gaussian
from vaegen_ray.evaluation.resizes import RESIZES
from vaegen_ray.evaluation.shares import Share
from vaegen_ray.storage import Location

logger = logging.getLogger(__name__)

FOLDER = "statistics"


@dataclass(frozen=True)
class FeatureStatistics:
    """What FID, KID and the like need of a set of features."""

    gaussian: Gaussian
    """Of all images."""
    rows: Tensor
    """Of the first 10,000 images at most; shape (images, D)."""


@dataclass(frozen=True)
class RealStatistics:
    """The kept features of one set of real images, whether they are there already or not."""

    file: Location
    device: torch.device

    @classmethod
    def of(
        cls, job: TrainJob, fingerprint: str, split: str, num_images: int, device: torch.device
    ) -> "RealStatistics | None":
        """Beside the runs of ``job``; None where it names no feature network."""
        features = job.evaluation.features
        if features is None:
            return None
        shape = f"{job.model.image_size}px-{job.model.channels}ch"
        name = f"{split}-{num_images}-{shape}-{_network(features)}-{RESIZES[features.network].slug}.safetensors"
        return cls(Location.of(job.storage) / FOLDER / fingerprint[:32] / name, device)

    def load(self, share: Share) -> FeatureStatistics | None:
        """The same on all ranks: those of the file where rank 0 could read it, else None."""
        found = self._read() if share.rank == 0 else None
        is_there = share.gather(torch.tensor([found is not None], device=self.device, dtype=torch.float32))[0]
        if not is_there:
            return None
        tensors = found if found is not None else self._read()
        if tensors is None:
            raise StorageError(f"{self.file}: was read by rank 0, and cannot be read by rank {share.rank}")
        moved = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        return FeatureStatistics(Gaussian(moved["mean"], moved["covariance"]), moved["rows"])

    def save(self, statistics: FeatureStatistics, share: Share) -> None:
        """Keep them, on rank 0. A storage that cannot be written costs the next evaluation some time, no more."""
        if share.rank > 0:
            return
        gaussian = statistics.gaussian
        tensors = {"mean": gaussian.mean, "covariance": gaussian.covariance, "rows": statistics.rows}
        try:
            self.file.write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))
        except StorageError as error:
            logger.warning("the statistics of the real images are not kept: %s", error)

    def _read(self) -> dict[str, Tensor] | None:
        try:
            return load(self.file.read_bytes()) if self.file.exists() else None
        except SafetensorError as error:
            logger.warning("%s: is damaged (%s); it is made again", self.file, error)
        except StorageError as error:
            logger.warning("%s; the statistics of the real images are computed again", error)
        return None


def _network(features: Features) -> str:
    weights = weights_of(features)
    if weights is None:
        return features.network
    return f"{features.network}-{hashlib.sha256(weights.read_bytes()).hexdigest()[:12]}"
