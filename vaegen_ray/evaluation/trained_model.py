"""The result of a run: the generator's averaged weights and what is needed to load them.

``final/generator.safetensors`` holds the weights, ``final/model.json`` describes them. The description is
written last, so a model that has one is whole. Nothing here unpickles.
"""

import hashlib
import json
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from vaegen_ray import __version__
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.model import Model
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError
from vaegen_ray.evaluation.latent_statistics import LatentStatistics
from vaegen_ray.models.arithmetic import use_exact_arithmetic
from vaegen_ray.models.generator import Generator
from vaegen_ray.storage import Location

WEIGHTS = "generator.safetensors"
DESCRIPTION = "model.json"


def save_trained_model(
    generator: Generator,
    job: TrainJob,
    destination: Location,
    position: int | None = None,
    statistics: LatentStatistics | None = None,
) -> None:
    """Write the weights of ``generator`` (float32) and their description into the folder ``destination``.

    ``position`` is where it stands, by default at the end of ``job``; ``statistics`` are of its latent codes, where the
    model has spatial ones.
    """
    weights = bytes_of({name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()})
    description = {
        "name": job.name,
        "objective": job.objective.kind,
        "seed": job.seed,
        "position": job.training.final_position if position is None else position,
        "model": job.model.model_dump(mode="json"),
        "vaegen_ray": __version__,
        "latents": statistics.to_json() if statistics is not None else None,
        "weights": {"file": WEIGHTS, "bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
    }
    # A description of an earlier model must not vouch for weights that are being replaced.
    (destination / DESCRIPTION).remove()
    (destination / WEIGHTS).write_bytes(weights)
    (destination / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def load_trained_model(run: RunDirectory, device: torch.device | str) -> tuple[Generator, TrainJob]:
    """The trained generator of ``run``, in evaluation mode on ``device``, and the run's job.

    Raises JobError where there is no run, and CheckpointError where it is not finished or a file is damaged.
    """
    job = run.load_job()
    _check_is_finished(run, job)
    return load_generator(run.final, device), job


def trained_position(run: RunDirectory) -> int:
    """The images that the trained generator of ``run`` has used."""
    return int(_read_description(run.final / DESCRIPTION)["position"])


def fingerprint_of(run: RunDirectory) -> str:
    """SHA-256 of the weights of the trained generator of ``run``: what latents depend on."""
    _check_is_finished(run, run.load_job())
    return str(_read_description(run.final / DESCRIPTION)["weights"]["sha256"])


def load_latent_statistics(run: RunDirectory) -> LatentStatistics | None:
    """What :func:`save_trained_model` was given; None for a model without."""
    _check_is_finished(run, run.load_job())
    description = _read_description(run.final / DESCRIPTION)
    latents = description.get("latents")
    try:
        return LatentStatistics.from_json(latents) if latents is not None else None
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{run.final / DESCRIPTION}: latents: is damaged ({error!r}); restore it") from error


def _check_is_finished(run: RunDirectory, job: TrainJob) -> None:
    if not (run.final / DESCRIPTION).exists():
        newest = max(run.checkpoint_positions(), default=0)
        raise CheckpointError(
            f"{run.root}: must be a finished run, stands at {newest} of {job.training.total_images} images and has no "
            "final model yet; start the same `vaegen train` again to finish it"
        )


def load_generator(folder: Location, device: torch.device | str) -> Generator:
    """What :func:`save_trained_model` wrote into ``folder``, in evaluation mode on ``device``."""
    use_exact_arithmetic()  # Scores are the same in a run, beside it and after it.
    description = _read_description(folder / DESCRIPTION)
    weights = _read_weights(folder / WEIGHTS, description)
    generator = Generator(_model_section(folder / DESCRIPTION, description))
    try:
        generator.load_state_dict(tensors_of(weights))
    except (SafetensorError, RuntimeError) as error:
        problem = f"must hold the weights of the model in {DESCRIPTION}"
        raise CheckpointError(f"{folder / WEIGHTS}: {problem}, does not ({error}); restore both") from error
    return generator.to(device).eval()


def _read_description(file: Location) -> dict[str, Any]:
    try:
        description = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: is damaged ({error}); restore it, or remove final/ and train again") from error
    if not isinstance(description, dict) or not isinstance(description.get("weights"), dict):
        raise CheckpointError(f"{file}: must describe a trained model, lacks 'weights'; restore it")
    return description


def _read_weights(file: Location, description: dict[str, Any]) -> bytes:
    if not file.exists():
        raise CheckpointError(f"{file}: must lie beside {DESCRIPTION}, is missing; restore it")
    content = file.read_bytes()
    expected, found = description["weights"].get("sha256"), hashlib.sha256(content).hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{file}: must have the sha256 {expected} of {DESCRIPTION}, has {found}; the file is damaged, restore it"
        )
    return content


def _model_section(file: Location, description: dict[str, Any]) -> Model:
    try:
        return TypeAdapter[Model](Model).validate_python(description.get("model"))
    except ValidationError as error:
        raise CheckpointError(f"{file}: model: is not a model of this version: {error}; restore the file") from error
