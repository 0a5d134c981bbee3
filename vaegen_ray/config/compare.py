"""The job of `vaegen compare`: variants of one train job, each with several seeds, within one budget."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from vaegen_ray.config.base import Count, Name, PositiveFloat, PositiveImages, Section, Seed, Text
from vaegen_ray.config.completion import CHECKPOINTS_PER_RUN, REPORTS_PER_RUN
from vaegen_ray.config.job import TrainJob

Overrides = dict[str, Any]
"""Dotted path in the train job to its value."""

VARIANT_PATTERN = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,59}")


class Budget(Section):
    """What every run may use."""

    images: PositiveImages | None = None
    """Takes the place of training.total_images."""
    seconds: PositiveFloat | None = None
    """Of training alone: each variant's images a second are measured first, and its images follow from them."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.images is None) == (self.seconds is None):
            raise ValueError("must be given as `images` or as `seconds`, one of them")
        return self


class CompareJob(Section):
    """Compare variants of a train job."""

    kind: Literal["compare"]
    name: Name
    """Of the comparison: its directory in ``storage``."""
    base: TrainJob
    """The train job that every variant begins from: in the file a path, seen from the file's folder, or a job."""
    variants: Annotated[dict[str, Overrides], Field(min_length=2)]
    """Name to the settings that make it of the base job."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    """Every variant is trained once with each; significance needs two or more."""
    budget: Budget | None = None
    """By default what the base job says."""
    max_concurrent: Count | None = None
    """By default as many runs as the cluster has room for."""
    max_failures: Annotated[int, Field(ge=0, strict=True)] = 2
    """How often a run that was lost begins again from its checkpoint."""
    storage: Text = "runs"
    """Folder or bucket of all runs, searches and comparisons."""

    @field_validator("variants")
    @classmethod
    def _are_folder_names(cls, variants: dict[str, Overrides]) -> dict[str, Overrides]:
        for name in variants:
            if not VARIANT_PATTERN.fullmatch(name):
                raise ValueError(
                    f"must have names of 1 to 60 letters, digits, '.', '_' or '-', beginning with a letter or digit, "
                    f"which '{name}' is not"
                )
        return variants

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("must name each seed once; remove what is repeated")
        return seeds


def run_name(variant: str, seed: int) -> str:
    """The name of the run of a variant with a seed."""
    return f"{variant}-{seed}"


def without_intervals(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree of a resolved train job less the intervals that follow from its length, which is to be another."""
    training, total = tree["training"], tree["training"]["total_images"]
    follow = {
        "report_every_images": max(1, total // REPORTS_PER_RUN),
        "checkpoint_every_images": max(1, total // CHECKPOINTS_PER_RUN),
    }
    kept = {key: value for key, value in training.items() if follow.get(key) != value}
    return {**tree, "training": kept}
