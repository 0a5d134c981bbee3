"""From a comparison to the train jobs of its runs, and the rules that need them."""

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from vaegen_ray.config.compare import CompareJob, run_name, without_intervals
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.sentences import sentences
from vaegen_ray.config.settings import flat, with_settings
from vaegen_ray.errors import JobError

MEASURED_BY = (
    "data.source", "model.image_size", "model.channels", "evaluation.images", "evaluation.features",
    "evaluation.features.network", "evaluation.lpips", "evaluation.lpips.network",
)  # fmt: skip
"""What decides on which images, and by which network, the scores of a run are measured."""


def variant_job(compare: CompareJob, variant: str, seed: int, *, storage: str, images: int | None = None) -> TrainJob:
    """The train job of a run, in ``storage``; ``images``, where given, is what the budget leaves it.

    Raises JobError, each line of which begins with the variant's name, where its settings make no valid job.
    """
    settings = dict(compare.variants[variant])
    if images is None and compare.budget is not None:
        images = compare.budget.images
    try:
        tree: dict[str, Any] = compare.base.model_dump(mode="json")
        if images is not None:
            tree = with_settings(without_intervals(tree), {"training.total_images": images})
        tree = with_settings(tree, settings)
        named = {"seed": seed, "name": run_name(variant, seed), "storage": storage}
        return TrainJob.model_validate({**tree, **named})
    except JobError as error:
        raise JobError(f"variants.{variant}.{error}") from error
    except ValidationError as error:
        lines = sentences(error, TrainJob, num_tags=0)
        raise JobError("\n".join(f"variants.{variant}: {line}" for line in lines)) from error


def broken_compare_rules(compare: CompareJob) -> Iterator[str]:
    """All rules between the sections of ``compare``, each of which is valid, that it breaks."""
    base = flat(compare.base.model_dump(mode="json"))
    for variant, settings in compare.variants.items():
        given = flat(settings)
        taken = {"seed": "seeds", "name": "variants", "storage": "storage"}
        if compare.budget is not None:
            taken["training.total_images"] = "budget"
        for path, key in taken.items():
            if path in given:
                yield f"variants.{variant}.{path}: follows from `{key}`, remove it there"
        try:
            job = variant_job(compare, variant, compare.seeds[0], storage=compare.storage)
        except JobError as error:
            yield str(error)
            continue
        own = flat(job.model_dump(mode="json"))
        for path in MEASURED_BY:
            if own.get(path) != base.get(path):
                yield f"variants.{variant}.{path}: must be the same in all variants, or their scores cannot be compared"
        if job.resources.fewest_workers < job.resources.most_workers:
            yield (
                f"variants.{variant}: resources.workers: must be a number in a comparison, whose runs share a "
                "cluster, got a range"
            )
