"""A search is refused at load, in one sentence, when one of its trials could not be a valid job."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.search.samples import BALANCE, base_tree, search_job, search_tree
from vaegen_ray.config.loading import job_of, load_job
from vaegen_ray.config.search import Choice, SearchJob
from vaegen_ray.config.space import in_order, is_active, num_settings, point_settings, trial_job
from vaegen_ray.errors import JobError

KL = "objective.kl.weight"
UNIFORM = {"kind": "uniform", "low": 0.1, "high": 0.5}
WHOLE = {"kind": "integer", "low": 2, "high": 8}
FLAG = {"objective.adversarial.reaches_encoder": {"kind": "choice", "values": [True, False]}}
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
        ({"data.random_crop_pixels": {"kind": "choice", "values": [1, 1000]}}, "values[1]: 1000 makes no valid job"),
        ({KL: {"kind": "uniform", "low": 2.0, "high": 1.0}}, f"space.{KL}.low: must be below high (1.0), got 2.0"),
        ({KL: {"kind": "log_uniform", "low": 0.0, "high": 1.0}}, f"space.{KL}.low: must be above 0, got 0.0"),
        ({KL: {"kind": "loguniform", "low": 0.1, "high": 1.0}}, "did you mean 'log_uniform'?"),
        ({KL: {"kind": "choice", "values": [1.0, 1.0]}}, f"space.{KL}.values: must name each value once"),
        (
            {KL: {"kind": "choice", "values": [1, 1.0, 2.0]}},
            f"space.{KL}.values: must name each value once, got [1, 1.0, 2.0]; remove what is repeated",
        ),
        ({KL: {"kind": "choice", "values": [1, True]}}, "values[1]: true makes no valid job"),
        ({"name": {"kind": "choice", "values": ["a", "b"]}}, "space.name: cannot be searched"),
        ({"objective.preset": {"kind": "choice", "values": ["larsen", "pythae"]}}, "cannot be searched"),
        ({"training.total_images": {"kind": "choice", "values": [80, 160]}}, "cannot be searched"),
        ({"evaluation.images": {"kind": "choice", "values": [8, 16]}}, "cannot be searched"),
        ({f"{BALANCE}.kind": CONDITIONAL[f"{BALANCE}.kind"]}, "balance.weight: is required"),
        ({KL: {**UNIFORM, "when": {"optimizer": 1}}}, f"space.{KL}.when: must be '{KL}', got 'optimizer'"),
        (
            {KL: {**UNIFORM, "when": {"model.latent_dim": 9}}, "model.latent_dim": WHOLE},
            f"space.{KL}.when.model.latent_dim: must be a whole number from 2 to 8, got 9",
        ),
        (
            {KL: {**UNIFORM, "when": {"objective.adversarial.reaches_encoder": 1}}, **FLAG},
            f"space.{KL}.when.objective.adversarial.reaches_encoder: must be one of true, false, got 1",
        ),
        *(
            (
                {KL: {**UNIFORM, "when": {f"{BALANCE}.share": 0.4}}, f"{BALANCE}.share": {**UNIFORM, "kind": kind}},
                f"space.{KL}.when: must name an axis of kind 'choice' or 'integer', got '{BALANCE}.share' of kind "
                f"'{kind}'; remove it, or make that axis a choice",
            )
            for kind in ("uniform", "log_uniform")
        ),
        (
            {
                KL: {"kind": "choice", "values": [0.1, 0.2], "when": {f"{BALANCE}.share": 0.3}},
                f"{BALANCE}.share": {"kind": "choice", "values": [0.3, 0.4], "when": {KL: 0.1}},
            },
            "must not depend on itself",
        ),
        (
            {
                "model.latent_dim": WHOLE,
                **FLAG,
                "objective.adversarial.reaches_encoder": {
                    **FLAG["objective.adversarial.reaches_encoder"],
                    "when": {"model.latent_dim": 3},
                },
                KL: {**UNIFORM, "when": {"objective.adversarial.reaches_encoder": True, "model.latent_dim": 4}},
            },
            f"space.{KL}.when: must be possible to hold, needs model.latent_dim = 3 and model.latent_dim = 4 at once",
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
        (
            {"constraints": ["kl_nats >= 5", "sample_swd <= 1", "kl_nats <= 1"]},
            "constraints: must be possible to keep together, got 'kl_nats >= 5' and 'kl_nats <= 1'; remove one",
        ),
        (
            {"space": FLAG, "trials": 3, "points": []},
            "trials: must be at most 2, all that the space holds, got 3; lower it, or widen an axis",
        ),
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


CHOICE = {"kind": "choice"}
MALFORMED = {
    "null among values": (
        {"space": {KL: CHOICE | {"values": [1.0, None]}}},
        f"space.{KL}.values[1]: must be true, false, a finite number or text, got nothing",
    ),
    "nan among values": (
        {"space": {KL: CHOICE | {"values": [1.0, float("nan")]}}},
        f"space.{KL}.values[1]: must be true, false, a finite number or text, got .nan",
    ),
    "lists as values": (
        {"space": {"optimizer.generator.betas": CHOICE | {"values": [[0.5, 0.9], [0.0, 0.99]]}}},
        "space.optimizer.generator.betas.values: must be plain values, no lists or sections, got "
        "[[0.5, 0.9], [0.0, 0.99]]; remove the axis",
    ),
    "one value": (
        {"space": {KL: CHOICE | {"values": [1.0]}}},
        f"space.{KL}.values: must have at least 2 values, got [1.0]",
    ),
    "null as a condition": (
        {"space": {KL: UNIFORM | {"when": {f"{BALANCE}.kind": None}}}},
        f"space.{KL}.when.{BALANCE}.kind: must be true, false, a finite number or text, got nothing",
    ),
    "no axis": ({"space": {}}, "space: must have at least 1 key, got an empty section"),
    "null in a point": (
        {"points": [{KL: None}]},
        f"points[0].{KL}: must be from 0.01 to 10, got nothing; widen the axis, change the point, or leave it out "
        "(points: [])",
    ),
    "list as a point": (
        {"points": [[1]]},
        "points[0]: must be 'base', 'preset:NAME' or 'axis: value' lines, got [1]",
    ),
}


@pytest.mark.parametrize(("sections", "sentence"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_section_is_refused_in_one_sentence(sections: dict[str, Any], sentence: str) -> None:
    assert refusal(**sections) == f"search.yaml: {sentence}"


def test_constraints_that_meet_in_one_number_are_accepted() -> None:
    assert len(search_job("runs", constraints=["kl_nats >= 5", "kl_nats <= 5"]).constraints) == 2


def test_axis_of_a_flag_and_a_number_names_different_values() -> None:
    assert Choice(kind="choice", values=(True, 1, "1")).values == (True, 1, "1")


def test_search_extended_beyond_its_space_is_refused_in_one_sentence() -> None:
    job = search_job("runs", space=FLAG, trials=2, points=[])
    with pytest.raises(JobError) as refused:
        job_of({**job.model_dump(mode="json"), "trials": 5}, "runs/search")
    sentence = "trials: must be at most 2, all that the space holds, got 5; lower it, or widen an axis"
    assert str(refused.value) == f"runs/search: {sentence}"


def test_settings_of_a_finite_space_are_counted_where_their_axes_are_drawn() -> None:
    loss = {"kind": "choice", "values": ["hinge", "least_squares"], "when": {"model.latent_dim": 3}}
    wide = {"kind": "integer", "low": 1, "high": 10**30}
    space = {"objective.adversarial.loss": loss, "model.latent_dim": WHOLE}
    assert _num_settings(space) == 6 + 2
    assert _num_settings({**space, **FLAG}) == 2 * (6 + 2)
    assert _num_settings({**space, "objective.adversarial.ramp_images": wide}) == 10**30 * (6 + 2)
    assert _num_settings({**FLAG, "model.latent_dim": WHOLE | {"high": 10**30}}) == 2 * (10**30 - 1)
    assert _num_settings({**space, KL: UNIFORM}) is None


def _num_settings(space: dict[str, Any]) -> int | None:
    job = SearchJob.model_validate(search_tree("runs", space=space))
    return num_settings(job.space)


def test_point_has_the_values_of_its_axes_whatever_their_type_in_the_base() -> None:
    """Or the draw of 1 would be another trial than the base's 1.0."""
    space = {KL: {"kind": "choice", "values": [1, 2]}, f"{BALANCE}.share": UNIFORM, "model.latent_dim": WHOLE}
    (settings,) = point_settings(search_job("runs", space=space))
    assert json.dumps(settings[KL]) == "1"
    assert json.dumps(settings["model.latent_dim"]) == "4"


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


@pytest.mark.parametrize("kind", ["search", "compare"])
def test_base_that_is_no_train_job_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    import yaml

    (tmp_path / "base.yaml").write_text(yaml.safe_dump(search_tree(tmp_path) | {"kind": "search"}))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"kind": kind, "name": "job", "base": "base.yaml"}))
    with pytest.raises(JobError) as refused:
        load_job(tmp_path / "job.yaml")
    assert str(refused.value) == f"{tmp_path / 'job.yaml'}: base.kind: must be 'train', got 'search'; name a train job"


def test_set_without_a_base_is_no_second_mistake(tmp_path: Path) -> None:
    import yaml

    tree = search_tree(tmp_path) | {"set": {"training.total_images": 160}}
    del tree["base"]
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(JobError) as refused:
        load_job(tmp_path / "search.yaml")
    assert str(refused.value) == f"{tmp_path / 'search.yaml'}: base: is required; add it"


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"sampler": {"kind": "random", "startup_trials": 50}}, "startup_trials: has no effect with 'random'"),
        ({"sampler": {"kind": "qmc", "random_fraction": 0.5}}, "random_fraction: has no effect with 'qmc'"),
        ({"scheduler": {"kind": "pareto", "grace_images": 10**9}}, "scheduler.grace_images: must be below"),
        (
            {
                "scheduler": {"kind": "pbt"},
                "trials": 3,
                "objectives": [{"metric": "reconstruction_psnr", "goal": "maximize"}],
            },
            "trials: must be at least 4 with scheduler.replaced_fraction 0.25",
        ),
        (
            {"space": {"data.source": {"kind": "choice", "values": ["a", "b"]}}, "points": []},
            "space.data.source: cannot be searched, trials must agree in it",
        ),
    ],
)
def test_setting_of_a_search_without_an_effect_is_refused(sections: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(**sections)


@pytest.mark.parametrize("start", [0, 500])
def test_every_evaluation_is_a_rung_wherever_the_adversary_begins(start: int) -> None:
    """Where it began half an interval from them, every other one was taken for the one before."""
    job = search_job("runs", base_tree(evaluation={"every_images": 1000}, training={"total_images": 10_000}))
    rungs = [job.rung_at(at - start) for at in range(1000, 10_000, 1000)]
    assert rungs == sorted(set(rungs))
