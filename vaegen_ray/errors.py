"""One exception tree. Every member survives pickling, because errors cross Ray processes."""

import os


class VaegenError(Exception):
    """A failure that we foresaw; its message is a sentence for the user."""


class TransientError(VaegenError):
    """The job is not to blame, and the same command may succeed later."""


class JobError(VaegenError, ValueError):
    """The job file, an override or an argument breaks a rule. Nothing was launched."""


class DataError(VaegenError, ValueError):
    """A dataset or an image is missing, damaged, or not what the job says."""


class StorageError(VaegenError, OSError):
    """A location cannot be read or written."""


class CacheFullError(StorageError):
    """The cache of a node has no room for an entry, even without all that nobody uses."""


class StoreUnavailableError(StorageError, TransientError):
    """An object store did not answer, or failed, for longer than our patience; later it may."""


class CheckpointError(VaegenError, RuntimeError):
    """A checkpoint is missing, damaged, or of another job or schema."""


class TrainingError(VaegenError, RuntimeError):
    """Training cannot go on: it diverged, replicas drifted, a process group broke."""


class DivergedError(TrainingError):
    """A loss, a gradient, an image or a score is not finite."""


class CollapsedError(TrainingError):
    """The watchdog has stopped the run."""


class WorkersLostError(TrainingError, TransientError):
    """Workers were lost more often than the job allows."""


class LeaseLostError(TrainingError):
    """Another process has taken over the run that this one was writing."""


class ClusterError(VaegenError, RuntimeError):
    """The Ray cluster cannot do what the job asks of it."""


class NoRoomError(ClusterError, TransientError):
    """The cluster had no room for the workers for longer than our patience."""


class ClusterUnavailableError(ClusterError, TransientError):
    """The cluster does not answer, or lost a job."""


def exit_code(error: VaegenError) -> int:
    """What a process that ``error`` ends exits with."""
    if isinstance(error, TransientError):
        return os.EX_TEMPFAIL
    return 2 if isinstance(error, JobError | DataError) else 1
