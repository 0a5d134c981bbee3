"""The jobs: a train job and its sections, and the rules between sections."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from vaegen_ray.config.base import (
    Count,
    Flag,
    Fraction,
    Goal,
    Images,
    Name,
    PositiveFloat,
    PositiveImages,
    ProperFraction,
    Section,
    Seed,
    Text,
    Weight,
)
from vaegen_ray.config.completion import complete
from vaegen_ray.config.data import Data
from vaegen_ray.config.model import Model
from vaegen_ray.config.objective import LpipsNetwork, Objective
from vaegen_ray.config.rules import broken_rules
from vaegen_ray.config.sentences import sentences
from vaegen_ray.config.settings import flat, with_settings
from vaegen_ray.config.watchdog import CHANGEABLE, Watchdog

# ---------------------------------------------------------------------------- optimizer


class Adam(Section):
    """Adam, or AdamW where ``weight_decay`` is given."""

    learning_rate: PositiveFloat = 2e-4
    betas: tuple[ProperFraction, ProperFraction] = (0.9, 0.999)
    weight_decay: Weight = 0.0
    """Decoupled from the gradient (Loshchilov & Hutter 2019)."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the phase's gradient; longer ones are scaled down."""


class ConstantRate(Section):
    """The full learning rate at all times, after a warm-up."""

    kind: Literal["constant"]
    warmup_images: Images = 0


class CosineRate(Section):
    """Half a cosine from the full learning rate to ``final_fraction`` of it at the end of training."""

    kind: Literal["cosine"]
    warmup_images: Images = 0
    final_fraction: Fraction = 0.0


class LinearRate(Section):
    """A straight line from the full learning rate to ``final_fraction`` of it at the end of training."""

    kind: Literal["linear"]
    warmup_images: Images = 0
    final_fraction: Fraction = 0.0


class Optimizer(Section):
    """How the parameters move."""

    generator: Adam = Adam()
    discriminator: Adam | None = None
    """Absent for the objective `vae`; else by default Adam with betas 0.5 and 0.99."""
    schedule: Annotated[ConstantRate | CosineRate | LinearRate, Field(discriminator="kind")] = ConstantRate(
        kind="constant"
    )


# ---------------------------------------------------------------------------- training


class Ema(Section):
    """The moving average of the generator that is evaluated and kept as the result."""

    half_life_images: PositiveImages = 10_000
    """Never more than a twentieth of the images seen, so that the average follows from the start."""


class Training(Section):
    """How long, in what portions, with what precision."""

    total_images: PositiveImages
    images_per_step: Count
    """The global batch: all workers together."""
    accumulation_steps: Count = 1
    """Each worker handles its share of a step in so many portions, to save memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks; losses and parameters are float32 always."""
    compile: Flag = False
    """torch.compile the networks; a discriminator with a gradient penalty stays eager."""
    ema: Ema = Ema()
    report_every_images: PositiveImages | None = None
    """How often a line of metrics is written; by default about two hundred times."""
    checkpoint_every_images: PositiveImages | None = None
    """By default ten times."""
    keep_checkpoints: Count = 2
    """The newest so many; older ones are deleted."""

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        if self.total_images < self.images_per_step:
            raise ValueError(
                f"total_images: must be at least images_per_step ({self.images_per_step}), got {self.total_images}"
            )
        return self

    @property
    def final_position(self) -> int:
        """Images used by all steps: ``total_images``, rounded up to whole steps."""
        return self.total_steps * self.images_per_step

    @property
    def total_steps(self) -> int:
        """Steps until at least ``total_images`` images were used."""
        return -(-self.total_images // self.images_per_step)


# ---------------------------------------------------------------------------- evaluation


class Features(Section):
    """The network whose features FID and KID compare."""

    network: Literal["fashion_mnist_cnn", "inception_v3_fid", "inception_v3_torchvision"]
    """`fashion_mnist_cnn` comes with the project; `inception_v3_fid` is the network of the published FID figures."""
    weights: Text | None = None
    """File of `inception_v3_fid` (npz or safetensors; local or s3://), by default ``$VAEGEN_FID_WEIGHTS``."""


class Best(Goal):
    """By what an evaluation is the best of the run: its model is kept in the run's folder `best`."""

    patience_evaluations: Count | None = None
    """The run ends after so many evaluations in a row that were no better; by default it goes on to its end."""


class Evaluation(Section):
    """Numbers and pictures about the model, against held-out images."""

    every_images: PositiveImages | None = None
    """Also during training; only at the end when absent."""
    images: Annotated[int, Field(ge=2, strict=True)] = 2_000
    """Held-out images compared, and images generated, at most."""
    features: Features | None = None
    """FID and KID are left out when absent."""
    lpips: LpipsNetwork | None = None
    """The perceptual distance of reconstructions is left out when absent."""
    grid_images: Count = 64
    """Images in a sample grid."""
    best: Best | None = None
    """Keep the best evaluation's model too; needs `every_images`."""


# ---------------------------------------------------------------------------- where


class ElasticWorkers(Section):
    """As many workers as the cluster has room for, within bounds; the global batch stays the same."""

    min: Count
    """Fewest workers; also those that a run needs to start."""
    max: Count
    """Most workers."""
    grow_every_s: PositiveFloat = 60.0
    """How often a run with fewer workers than it might have looks whether there is room for more."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min >= self.max:
            raise ValueError(f"min: must be below max ({self.max}), got {self.min}")
        return self


def _form_of_workers(value: Any) -> str:
    return "range" if isinstance(value, dict | ElasticWorkers) else "number"


class EvaluatorResources(Section):
    """What evaluation beside training asks for, where a run has several workers."""

    cpus: PositiveFloat = 1.0
    gpus: Weight | None = None
    """By default as many as a worker."""


class Resources(Section):
    """What the run asks of a machine or a cluster."""

    workers: Annotated[
        Annotated[Count, Tag("number")] | Annotated[ElasticWorkers, Tag("range")], Discriminator(_form_of_workers)
    ] = 1
    """Processes that share each step; more than one run on Ray Train."""
    gpus_per_worker: Weight | None = None
    """By default one where the cluster has GPUs, else none."""
    cpus_per_worker: PositiveFloat = 1.0
    evaluator: EvaluatorResources | None = EvaluatorResources()
    """On Ray, evaluations in the middle of a run are made beside it, where the cluster has room for this besides the
    workers; else, and with `null`, in line."""
    max_failures: Annotated[int, Field(ge=0, strict=True)] = 3
    """How often lost workers are replaced before the run fails; nodes that are taken away in time do not count."""
    stop_window_s: PositiveFloat = 120.0
    """After a request to stop, a submitted run has so long to save and leave before it is killed."""
    max_duration_s: PositiveFloat | None = None
    """A submitted run is asked to stop after so long."""

    @property
    def most_workers(self) -> int:
        """With which the run is as fast as it can be."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def fewest_workers(self) -> int:
        """Without which the run cannot start."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def needs_ray(self) -> bool:
        """Whether the run may have more than one worker."""
        return self.most_workers > 1


class Mlflow(Section):
    """Copy the metrics to an MLflow server (needs the extra `mlflow`)."""

    experiment: Text
    tracking_uri: Text | None = None
    """By default ``$MLFLOW_TRACKING_URI``."""


class WandB(Section):
    """Copy the metrics to Weights & Biases (needs the extra `wandb`)."""

    project: Text
    entity: Text | None = None


class Tracking(Section):
    """Where metrics go besides ``metrics.jsonl`` and TensorBoard, which are always written."""

    mlflow: Mlflow | None = None
    wandb: WandB | None = None


class Change(Section):
    """Other weights or learning rates from a point on, as population-based training finds them."""

    at_images: PositiveImages
    """A multiple of training.images_per_step."""
    set: Annotated[dict[str, Annotated[float, Field(strict=True)]], Field(min_length=1)]
    """Dotted path to its new number."""


class TrainJob(Section):
    """Train one model."""

    kind: Literal["train"]
    name: Name
    """Of the run: its directory in ``storage``."""
    seed: Seed = 0
    data: Data
    model: Model
    objective: Objective
    optimizer: Optimizer = Optimizer()
    training: Training
    evaluation: Evaluation = Evaluation()
    resources: Resources = Resources()
    storage: Text = "runs"
    """Folder or bucket of all runs: a local path or ``s3://bucket/prefix``."""
    tracking: Tracking = Tracking()
    watchdog: Watchdog = Watchdog()
    changes: tuple[Change, ...] = ()
    """In the order of their points."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, tree: Any) -> Any:
        return complete(tree) if isinstance(tree, dict) else tree

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        broken = list(broken_rules(self))
        if broken:
            raise ValueError("\n".join(broken))
        self._check_changes()
        self._check_rollbacks()
        return self

    def lpips_networks(self) -> list[LpipsNetwork]:
        """All networks with published weights that the run needs, but for the features of FID."""
        objective = self.objective
        networks: list[LpipsNetwork | None] = [self.evaluation.lpips]
        if objective.kind != "gan":
            networks.append(objective.perceptual)
        if objective.kind != "vae" and objective.discriminator.kind == "frozen_features":
            networks.append(objective.discriminator)
        return [network for network in networks if network is not None]

    def leg(self, position: int, factors: Mapping[str, float] | None = None) -> tuple["TrainJob", int]:
        """The job with the changes that hold at ``position``, and where the next change or the end is.

        ``factors`` are what the watchdog multiplies: dotted path of a number to its factor.
        """
        settings: dict[str, float] = {}
        end = self.training.total_images
        for change in self.changes:
            if change.at_images > position:
                end = change.at_images
                break
            settings |= change.set
        if not settings and not factors:
            return self.model_copy(update={"changes": ()}), end
        tree = with_settings({**self.model_dump(), "changes": ()}, settings)
        numbers = flat(tree)
        tree = with_settings(tree, {path: numbers[path] * factor for path, factor in (factors or {}).items()})
        return TrainJob.model_validate(tree), end

    @property
    def worker_counts(self) -> list[int]:
        """The numbers of workers that the run may have, the most first: those that divide the global batch."""
        resources, portions = self.resources, self.training.accumulation_steps
        counts = range(resources.most_workers, resources.fewest_workers - 1, -1)
        return [count for count in counts if self.training.images_per_step % (count * portions) == 0]

    def portions(self, num_ranks: int) -> int:
        """In how many portions each of ``num_ranks`` ranks handles its share of a step.

        ``training.accumulation_steps`` with all workers; with fewer, as many as keep a portion no larger than then,
        so that a run which has lost workers does not run out of memory.
        """
        training = self.training
        largest = training.images_per_step // (self.resources.most_workers * training.accumulation_steps)
        share = training.images_per_step // num_ranks
        if num_ranks >= self.resources.most_workers or largest == 0:
            return training.accumulation_steps
        return next(count for count in range(-(-share // largest), share + 1) if share % count == 0)

    def _check_changes(self) -> None:
        before = 0
        for index, change in enumerate(self.changes):
            key, step = f"changes[{index}]", self.training.images_per_step
            if not before < change.at_images < self.training.total_images or change.at_images % step:
                raise ValueError(
                    f"{key}.at_images: must be a multiple of training.images_per_step ({step}) above {before} and "
                    f"below training.total_images, got {change.at_images}"
                )
            before = change.at_images
            for path in change.set:
                if not path.startswith(CHANGEABLE):
                    raise ValueError(f"{key}.set: must name keys under {', '.join(CHANGEABLE)}, got '{path}'")
            try:
                self.leg(change.at_images)
            except ValidationError as error:
                problem = sentences(error, TrainJob, num_tags=0)[0]
                raise ValueError(f"{key}.set: must make a valid job, makes none ({problem})") from error

    def _check_rollbacks(self) -> None:
        for name, rule in self.watchdog.rules().items():
            for path, factor in rule.multiply.items():
                value = flat(self.model_dump()).get(path)
                key = f"watchdog.{name}.multiply"
                if not isinstance(value, float) or factor == 1 or value == 0:
                    raise ValueError(f"{key}: must name a number above 0 of this job, and change it, got '{path}'")
