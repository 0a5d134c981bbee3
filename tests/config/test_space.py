"""A search is refused at load, in one sentence, when one of its trials could not be a valid job."""

from pathlib import Path
from typing import Any

import pytest

from tests.search.samples import BALANCE, SPACE, base_tree, search_job, search_tree
from vaegen_ray.config.loading import job_of, load_job
from vaegen_ray.config.search import SearchJob
from vaegen_ray.config.space import in_order, is_active, point_settings, trial_job
from vaegen_ray.errors import JobError

KL = "objective.kl.weight"
UNIFORM = {"kind": "uniform", "low": 0.1, "high": 0.5}
CONDITIONAL = {
    f"{BALANCE}.share": {**UNIFORM, "when": {f"{BALANCE}.kind": "gradient_share"}},
    f"{BALANCE}.weight": {"kind": "log_uniform", "low": 0.01, "high": 1.0, "when": {f"{BALANCE}.kind": "fixed"}},
    f"{BALANCE}.kind": {"kind": "choice", "values": ["fixed", "gradient_share"]},
}


def refusal(**sections: Any) -> str:
    with pytest.raises(JobError) as error:
        search_job("runs", **sections)
    return str(error.value)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (
            {"objective.kl.wieght": UNIFORM},
            "space.objective.kl.wieght: must be a setting of the base job, which has no",
        ),
        ({"objective.kl.wieght": UNIFORM}, "did you mean 'objective.kl.weight'?"),
        ({"nothing.at_all": UNIFORM}, "space.nothing.at_all: must be a setting of the base job"),
        ({"objective.kl.weight.deeper": UNIFORM}, "did you mean 'objective.kl.weight'?"),
        ({"objective.kl": UNIFORM}, "space.objective.kl.low: 0.1 makes no valid job (objective.kl: must be a section"),
        ({f"{BALANCE}.share": {**UNIFORM, "high": 1.5}}, f"space.{BALANCE}.share.high: 1.5 makes no valid job"),
        ({"model.latent_dim": {"kind": "uniform", "low": 2.0, "high": 8.0}}, "must be a whole number"),
        ({"model.latent_dim": {"kind": "integer", "low": 0, "high": 8}}, "low: 0 makes no valid job"),
        ({"model.image_size": {"kind": "choice", "values": [16, 17]}}, "values[1]: 17 makes no valid job"),
        ({KL: {"kind": "uniform", "low": 2.0, "high": 1.0}}, f"space.{KL}.low: must be below high (1.0), got 2.0"),
        ({KL: {"kind": "log_uniform", "low": 0.0, "high": 1.0}}, f"space.{KL}.low: must be above 0, got 0.0"),
        ({KL: {"kind": "loguniform", "low": 0.1, "high": 1.0}}, "did you mean 'log_uniform'?"),
        ({KL: {"kind": "choice", "values": [1.0, 1.0]}}, f"space.{KL}.values: must name each value once"),
        ({"name": {"kind": "choice", "values": ["a", "b"]}}, "space.name: cannot be searched"),
        ({"training.total_images": {"kind": "choice", "values": [80, 160]}}, "cannot be searched"),
        ({"evaluation.images": {"kind": "choice", "values": [8, 16]}}, "cannot be searched"),
        ({f"{BALANCE}.kind": CONDITIONAL[f"{BALANCE}.kind"]}, "balance.weight: is required"),
        ({KL: {**UNIFORM, "when": {"optimizer": 1}}}, f"space.{KL}.when: must be '{KL}', got 'optimizer'"),
        (
            {**SPACE, KL: {**UNIFORM, "when": {f"{BALANCE}.share": 2.0}}},
            f"space.{KL}.when.{BALANCE}.share: must be from 0.1 to 0.9, got 2.0",
        ),
        (
            {
                KL: {"kind": "choice", "values": [0.1, 0.2], "when": {f"{BALANCE}.share": 0.3}},
                f"{BALANCE}.share": {"kind": "choice", "values": [0.3, 0.4], "when": {KL: 0.1}},
            },
            "must not depend on itself",
        ),
    ],
)
def test_space_that_makes_no_valid_job_is_refused(space: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(space=space, points=[])


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"objectives": []}, "objectives: must name at least one metric"),
        ({"objectives": [{"metric": "sample_swdd", "goal": "minimize"}]}, "did you mean 'sample_swd'?"),
        ({"objectives": [{"metric": "sample_fid", "goal": "minimize"}]}, "FID and KID need evaluation.features"),
        ({"objectives": [{"metric": "sample_swd", "goal": "minimise"}]}, "did you mean 'minimize'?"),
        ({"objectives": [{"metric": "sample_swd", "goal": "minimize"}] * 2}, "must name each metric once"),
        ({"constraints": ["kl_nats > 5"]}, "constraints[0]: must be METRIC >= NUMBER or METRIC <= NUMBER"),
        ({"constraints": ["kl >= 5"]}, "constraints[0]: must be one of"),
        ({"scheduler": {"kind": "asha"}}, "scheduler.kind: 'asha' compares one metric, got 2 objectives"),
        ({"scheduler": {"kind": "pbt"}}, "scheduler.kind: 'pbt' compares one metric"),
        ({"base": base_tree(evaluation={"every_images": None})}, "base.evaluation.every_images: must be below"),
        ({"base": base_tree(resources={"workers": {"min": 1, "max": 2}})}, "base.resources.workers: must be a number"),
        ({"base": base_tree(training={"total_imags": 3})}, "base.training.total_imags: no such key"),
        ({"points": ["bass"]}, "points[0]: must be one of 'base', 'preset:larsen'"),
        ({"points": [{KL: 100.0}]}, f"points[0].{KL}: must be from 0.01 to 10, got 100.0"),
        ({"points": [{"model.latent_dim": 4}]}, "points[0].model.latent_dim: must be one of"),
        ({"points": ["preset:ldm"]}, f"points[0].{KL}: must be from 0.01 to 10, got 1e-06, which 'preset:ldm' gives"),
        ({"trials": 1, "points": ["base", {KL: 0.5}]}, "trials: must be at least the 2 points, got 1"),
        ({"trials": 0}, "trials: must be at least 1, got 0"),
        ({"samplr": {}}, "samplr: no such key; did you mean 'sampler'?"),
    ],
)
def test_search_that_could_not_run_is_refused(sections: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(**sections)


def test_metric_that_no_job_reports_is_refused_in_one_sentence() -> None:
    assert "\n" not in refusal(constraints=["kl_natz >= 5"])


def test_gan_has_no_reconstruction_to_search_for() -> None:
    base = base_tree(objective={"kind": "gan", "discriminator": {"width": 4, "max_width": 8, "depth": 1}})
    del base["model"]["encoder"]
    space = {"optimizer.generator.learning_rate": {"kind": "log_uniform", "low": 1e-5, "high": 1e-2}}
    sentence = "must be one of 'sample_swd', 'sample_diversity', got 'reconstruction_psnr'"
    assert sentence in refusal(base=base, space=space)


def test_axis_with_a_condition_is_drawn_only_where_it_holds() -> None:
    job = search_job("runs", space=CONDITIONAL, points=[])
    order = [name for name, _ in in_order(job.space)]
    assert order[0] == f"{BALANCE}.kind"
    assert is_active(job.space[f"{BALANCE}.weight"], {f"{BALANCE}.kind": "fixed"})
    assert not is_active(job.space[f"{BALANCE}.share"], {f"{BALANCE}.kind": "fixed"})


def test_trial_is_the_base_job_with_its_settings() -> None:
    job = search_job("runs", space=CONDITIONAL, points=[])
    settings = {f"{BALANCE}.kind": "fixed", f"{BALANCE}.weight": 0.25}
    trial = trial_job(job, settings, name="trial-00001", storage="runs/search/trials")
    assert trial.objective.kind == "vae_gan"
    assert trial.objective.adversarial.balance.model_dump() == {"kind": "fixed", "weight": 0.25}
    assert (trial.name, trial.storage) == ("trial-00001", "runs/search/trials")
    assert trial.training == job.base.training


def test_points_are_the_base_its_changes_and_presets() -> None:
    scale = {"kind": "log_uniform", "low": 1e-7, "high": 10.0}
    job = search_job("runs", space={KL: scale, f"{BALANCE}.share": UNIFORM}, points=["base", {KL: 0.5}, "preset:ldm"])
    assert point_settings(job) == [
        {KL: 1.0, f"{BALANCE}.share": 0.4},
        {KL: 0.5, f"{BALANCE}.share": 0.4},
        {KL: 1e-6, f"{BALANCE}.share": 0.4},
    ]


def test_base_is_found_beside_the_search_and_changed_by_set(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "base.yaml").write_text(yaml.safe_dump(base_tree()))
    tree = search_tree(tmp_path, base={}) | {"base": "train/base.yaml", "set": {"training.total_images": 160}}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(tree))
    job = load_job(tmp_path / "search.yaml", ["trials=7"])
    assert isinstance(job, SearchJob)
    assert (job.base.training.total_images, job.trials) == (160, 7)
    again = job_of(job.model_dump(mode="json"), "search.json")
    assert again == job


def test_missing_base_is_refused_with_its_place(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search_tree(tmp_path, base={}) | {"base": "nowhere.yaml"}))
    with pytest.raises(JobError, match=r"nowhere.yaml: there is no such job file"):
        load_job(tmp_path / "search.yaml")
