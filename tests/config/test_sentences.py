"""Each way to get a value wrong, and the sentence that says so."""

import copy
import re

import pytest

from tests.config.samples import ONE_OF_EACH_KIND, job, refusals, tree_of
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import job_of, load_job, with_overrides
from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.errors import JobError

NOT_A_SECTION = "must be a section of 'key: value' lines"
KINDS_OF_BALANCE = "one of 'fixed', 'adaptive', 'gradient_share', 'equilibrium'"
PRESETS = "one of 'larsen', 'ldm', 'ldm_modern', 'monai', 'pythae', 'pytorch_vae', 'sgm', 'ta_titok', 'va_vae'"

WRONG_VALUES = {
    # Whole numbers.
    "training.images_per_step='64'": "must be a whole number, got '64'; write it without quotes",
    "training.images_per_step=true": "must be a whole number, got true",
    "training.images_per_step=64.0": "must be a whole number, got 64.0",
    "training.images_per_step=[64]": "must be a whole number, got [64]",
    "training.images_per_step=0": "must be at least 1, got 0",
    "training.images_per_step=": "must be a whole number, got nothing; give a value or remove the line",
    "training.total_images=1.5": "must be a whole number, got 1.5",
    "training.total_images=true": "must be a whole number, got true",
    "training.total_images='64'": "must be a whole number, got '64'; write it without quotes",
    "training.total_images=.nan": "must be a whole number, got .nan",
    "training.total_images=.inf": "must be a whole number, got .inf",
    "training.total_images=1e12": "must be at most 999999999999, got 1000000000000",
    "seed=-1": "must be at least 0, got -1",
    "model.image_size=8": "must be at least 16, got 8",
    "model.image_size=512": "must be at most 256, got 512",
    "model.image_size=48": "must be a power of two from 16 to 256, got 48; resize the images with `vaegen prepare`",
    "evaluation.images=1": "must be at least 2, got 1",
    # Numbers.
    "optimizer.generator.learning_rate=-1": "must be above 0, got -1",
    "optimizer.generator.learning_rate=.nan": "must be a finite number, got .nan",
    "optimizer.generator.learning_rate=-.inf": "must be a finite number, got -.inf",
    "optimizer.generator.learning_rate=fast": "must be a number, got 'fast'",
    "optimizer.generator.learning_rate='3e-4'": "must be a number, got '3e-4'; write it without quotes",
    "optimizer.generator.learning_rate=true": "must be a number, got true",
    "optimizer.generator.learning_rate={value: 1}": "must be a number, got a section with value",
    "objective.adversarial.balance.share=1": "must be below 1, got 1",
    "objective.kl.weight=-0.1": "must be at least 0, got -0.1",
    # Text, flags, choices.
    "name=7": "must be text, got 7; write it in quotes",
    "name=": "must be text, got nothing; give a value or remove the line",
    "name=a/b": "must be 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter or digit, got 'a/b'",
    "data.source=''": "must not be empty, got ''",
    "storage=''": "must not be empty, got ''",
    "data.horizontal_flip=yes": "must be true or false, got 'yes'",
    "data.horizontal_flip=1": "must be true or false, got 1",
    "training.precision=bfloat": "must be one of 'float32', 'bfloat16', got 'bfloat'; did you mean 'bfloat16'?",
    "objective.adversarial.shows=all": "must be one of 'reconstructions', 'generated', 'both', got 'all'",
    # Lists.
    "optimizer.generator.betas=0.5": "must be a list, got 0.5",
    "optimizer.generator.betas=[0.5]": "must be a list of 2 values, got [0.5]",
    "optimizer.generator.betas=[0.5, 0.9, 0.99]": "must be a list of 2 values, got [0.5, 0.9, 0.99]",
    "objective.adversarial.augment=color": "must be a list, got 'color'",
    # Sections.
    "training=3": f"{NOT_A_SECTION}, got 3",
    "training=[1, 2]": f"{NOT_A_SECTION}, got [1, 2]",
    "optimizer=": f"{NOT_A_SECTION}, got nothing; give a value or remove the line",
    "objective=vae": f"{NOT_A_SECTION}, got 'vae'",
    "objective.adversarial.balance=fixed": f"{NOT_A_SECTION}, got 'fixed'",
    # A number or a section.
    "resources.workers=0": "must be at least 1, got 0",
    "resources.workers=two": "must be a whole number, got 'two'",
    "resources.workers=true": "must be a whole number, got true",
    "resources.workers=1.5": "must be a whole number, got 1.5",
}


@pytest.mark.parametrize(("override", "rule"), WRONG_VALUES.items(), ids=WRONG_VALUES)
def test_wrong_value_is_refused_by_key_rule_value_and_remedy(override: str, rule: str) -> None:
    key = override.split("=", 1)[0]
    assert refusals("vae_gan", override) == [f"{key}: {rule}"]


ELSEWHERE = {
    "optimizer.generator.betas=[0.5, 1]": "optimizer.generator.betas[1]: must be below 1, got 1",
    "objective.adversarial.augment=[color, cut]": (
        "objective.adversarial.augment[1]: must be one of 'color', 'translation', 'cutout', got 'cut'; "
        "did you mean 'cutout'?"
    ),
    "resources.workers={min: 1}": "resources.workers.max: is required; add it",
    "resources.workers={min: 2, max: 2}": "resources.workers.min: must be below max (2), got 2",
    "resources.workers={min: 1, max: 2, mox: 3}": "resources.workers.mox: no such key; did you mean 'max'?",
    "training.total_images=7": "training.total_images: must be at least images_per_step (8), got 7",
    "model.decoder={width: 9, max_width: 8}": "model.decoder.width: must be at most max_width (8), got 9",
    "tracking.wandb={}": "tracking.wandb.project: is required; add it",
    "evaluation.features={}": "evaluation.features.network: is required; add it",
    # Kinds.
    "model={image_size: 32, channels: 1}": "model.kind: is required, one of 'convolutional', 'kl_autoencoder'; add it",
    "objective={preset: null}": "objective.kind: is required, one of 'vae', 'gan', 'vae_gan'; add it",
    "objective.adversarial.balance={weight: 1}": (
        f"objective.adversarial.balance.kind: is required, {KINDS_OF_BALANCE}; add it"
    ),
    "objective.reconstruction={scale: {kind: fixed}}": (
        "objective.reconstruction.kind: is required, one of 'laplace', 'gaussian', 'discriminator_features'; add it"
    ),
    "objective.reconstruction={kind: laplace, scale: {}}": (
        "objective.reconstruction.scale.kind: is required, one of 'fixed', 'learned', 'batch_optimal'; add it"
    ),
    "objective.kl={schedule: {}}": (
        "objective.kl.schedule.kind: is required, one of 'constant', 'linear', 'cyclical'; add it"
    ),
    "objective.kl={penalty: {}}": (
        "objective.kl.penalty.kind: is required, one of 'plain', 'free_bits', 'capacity'; add it"
    ),
    "optimizer.schedule={}": "optimizer.schedule.kind: is required, one of 'constant', 'cosine', 'linear'; add it",
    "objective.kind=vaegan": (
        "objective.kind: must be one of 'vae', 'gan', 'vae_gan', got 'vaegan'; did you mean 'vae_gan'?"
    ),
    "objective.adversarial.balance.kind=adaptiv": (
        f"objective.adversarial.balance.kind: must be {KINDS_OF_BALANCE}, got 'adaptiv'; did you mean 'adaptive'?"
    ),
    # Inside a member of a union: no tag of the union in the path.
    "objective.adversarial.balance.max_weight=0": ("objective.adversarial.balance.max_weight: must be above 0, got 0"),
    "objective.reconstruction={kind: gaussian, scale: {kind: fixed, value: 0}}": (
        "objective.reconstruction.scale.value: must be above 0, got 0"
    ),
    "optimizer.schedule={kind: cosine, final_fraction: 2}": (
        "optimizer.schedule.final_fraction: must be at most 1.0, got 2"
    ),
    # Keys.
    "optimizer.generator.learning_rat=1": (
        "optimizer.generator.learning_rat: no such key; did you mean 'learning_rate'?"
    ),
    "optimizer.learning_rate=1": (
        "optimizer.learning_rate: no such key; did you mean 'optimizer.generator.learning_rate'?"
    ),
    "objective.adversarial.balance.weight=1": (
        "objective.adversarial.balance.weight: no such key; it belongs to the kind 'fixed' or 'adaptive' or "
        "'equilibrium'; remove it"
    ),
    "model.batch_norm=true": (
        "model.batch_norm: no such key; known here: channels, decoder, encoder, image_size, kind, latent_dim"
    ),
    # Presets.
    "objective.preset=vqgan": f"objective.preset: must be {PRESETS}, got 'vqgan'",
    "objective.preset=[ldm]": f'objective.preset: must be {PRESETS}, got ["ldm"]',
    "objective.preset=pythae": (
        "objective.preset: 'pythae' is a preset of the kind 'vae', got the kind 'vae_gan'; remove objective.kind or "
        "the preset"
    ),
}


@pytest.mark.parametrize(("override", "sentence"), ELSEWHERE.items(), ids=ELSEWHERE)
def test_mistake_is_refused_at_the_key_that_the_user_wrote(override: str, sentence: str) -> None:
    assert refusals("vae_gan", override) == [sentence]


WRONG_LENGTHS = {
    "seeds=[]": "seeds: must have at least 1 value, got []",
    "seeds=[null]": "seeds[0]: must be a whole number, got nothing; give a value or remove the line",
    "seeds=[1, 1]": "seeds: must name each seed once, got [1, 1]; remove what is repeated",
    "variants={}": "variants: must have at least 2 keys, got an empty section",
    "variants={a b: {}, c: {}}": (
        "variants: must have names of 1 to 60 letters, digits, '.', '_' or '-', beginning with a letter or digit, "
        "which 'a b' is not, got a section with a b, c"
    ),
}


@pytest.mark.parametrize(("override", "sentence"), WRONG_LENGTHS.items(), ids=WRONG_LENGTHS)
def test_list_or_section_of_any_length_is_refused_by_the_bound_that_it_misses(override: str, sentence: str) -> None:
    with pytest.raises(JobError) as refused:
        load_job("jobs/compare/families_quickstart.yaml", [override])
    assert str(refused.value) == f"jobs/compare/families_quickstart.yaml: {sentence}"


@pytest.mark.parametrize("preset", [None, "ldm"])
@pytest.mark.parametrize(
    ("kl", "sentence"),
    [
        ({"weight": 0.5}, "objective.kl.weight: has no effect with model.freeze_encoder, got 0.5; remove it"),
        (
            {"schedule": {"kind": "linear", "warmup_images": 10}},
            "objective.kl.schedule: has no effect with model.freeze_encoder, got 'linear'; remove it",
        ),
        (
            {"penalty": {"kind": "free_bits", "nats_per_dimension": 0.1}},
            "objective.kl.penalty: has no effect with model.freeze_encoder, got 'free_bits'; remove it",
        ),
    ],
)
def test_kl_of_a_frozen_encoder_is_refused_by_the_key_that_was_written(
    preset: str | None, kl: dict[str, object], sentence: str
) -> None:
    model = {"kind": "kl_autoencoder", "image_size": 64, "channels": 1, "widths": [8, 8], "norm_groups": 2}
    objective = {"preset": preset} if preset else {"kind": "vae"}
    tree = tree_of() | {"model": {**model, "start_from": "there", "freeze_encoder": True}}
    tree["objective"] = {**objective, "kl": kl}
    with pytest.raises(JobError) as refused:
        job_of(tree, "job.yaml")
    assert sentence in str(refused.value)
    assert "1e-06" not in str(refused.value)


def test_list_with_too_many_values_is_refused_by_the_bound_that_it_misses() -> None:
    tree = tree_of() | {"model": {"kind": "kl_autoencoder", "image_size": 64, "channels": 1, "widths": [1] * 7}}
    with pytest.raises(JobError) as refused:
        job_of(tree, "job.yaml")
    assert "job.yaml: model.widths: must have at most 6 values, got [1, 1, 1, 1, 1, 1, 1]" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"at_images": 401, "set": {"objective.kl.weight": 0.5}},
            "changes[0].at_images: must be a multiple of training.images_per_step (8) above 0 and below "
            "training.total_images, got 401",
        ),
        (
            {"at_images": 400, "set": {"objective.kl.wieght": 0.5}},
            "changes[0].set: must make a valid job, makes none (objective.kl.wieght: no such key; did you mean "
            "'weight'?)",
        ),
        (
            {"at_images": 400, "set": {"objective.kl.weight": -0.5}},
            "changes[0].set: must make a valid job, makes none (objective.kl.weight: must be at least 0, got -0.5)",
        ),
    ],
)
def test_rule_of_a_change_is_one_sentence_about_its_key(change: dict[str, object], sentence: str) -> None:
    """It had an empty place before it, and the whole job behind it."""
    with pytest.raises(JobError) as refused:
        job_of(tree_of() | {"changes": [change]}, "job.yaml")
    assert str(refused.value) == f"job.yaml: {sentence}"


def test_groups_of_one_value_are_refused() -> None:
    """At a latent code of 1 x 1 such a run trained to its end, and crashed in its first evaluation of one image."""
    model = {"kind": "kl_autoencoder", "image_size": 16, "channels": 1, "widths": [8] * 5, "norm_groups": 8}
    with pytest.raises(JobError, match=r"model\.norm_groups: must leave each group several values, .* lower model"):
        job_of(tree_of() | {"model": model}, "job.yaml")
    for fitting in ({"norm_groups": 4}, {"image_size": 32}):
        KlAutoencoderModel.model_validate(model | fitting)


@pytest.mark.parametrize("section", ["kind", "name", "data", "model", "objective", "training"])
def test_missing_section_is_refused_by_name(section: str) -> None:
    tree = tree_of()
    del tree[section]
    kinds = ", one of 'train', 'prepare', 'search', 'compare'" if section == "kind" else ""
    with pytest.raises(JobError) as refused:
        job_of(tree, "job.yaml")
    assert str(refused.value) == f"job.yaml: {section}: is required{kinds}; add it"


def test_kind_of_job_must_be_known() -> None:
    for kind, shown in (("tran", "'tran'"), (["train"], '["train"]'), (3, "3")):
        with pytest.raises(JobError) as refused:
            job_of({"kind": kind}, "job.yaml")
        kinds = "'train', 'prepare', 'search', 'compare'"
        assert str(refused.value) == f"job.yaml: kind: must be one of {kinds}, got {shown}"


def test_several_mistakes_are_all_listed() -> None:
    sentences = refusals(
        "vae_gan", "model.channels=0", "training.images_per_step=true", "sed=1", "objective.adversarial.loss=wgan"
    )
    assert sentences == [
        "model.channels: must be at least 1, got 0",
        "objective.adversarial.loss: must be one of 'hinge', 'non_saturating', 'least_squares', 'relativistic', "
        "got 'wgan'",
        "training.images_per_step: must be a whole number, got true",
        "sed: no such key; did you mean 'seed'?",
    ]


def test_long_value_is_shortened() -> None:
    (sentence,) = refusals("vae", f"training.images_per_step={'x' * 5000}")
    assert len(sentence) < 140
    assert sentence.endswith("xxx...")


@pytest.mark.parametrize("objective", ONE_OF_EACH_KIND.values(), ids=ONE_OF_EACH_KIND)
def test_unknown_key_is_refused_by_its_path_in_every_section_of_every_kind(objective: dict[str, object]) -> None:
    tree = job(objective).model_dump(mode="json")

    def sections(part: dict[str, object], path: str) -> list[str]:
        below = [
            found
            for key, value in part.items()
            if isinstance(value, dict) and key != "multiply"  # Names settings of the job, not keys of its own.
            for found in sections(value, f"{path}{key}.")
        ]
        return [path, *below]

    for path in sections(tree, ""):
        with pytest.raises(JobError) as refused:
            job_of(with_overrides(tree, [f"{path}zzz=1"]), "job.yaml")
        assert str(refused.value).startswith(f"job.yaml: {path}zzz: no such key; known here: ")
        assert "\n" not in str(refused.value)


def test_image_counts_may_be_written_with_an_exponent() -> None:
    assert job("vae", "training.total_images=50e6").training.total_images == 50_000_000
    assert isinstance(job("vae", "training.total_images=50e6").training.total_images, int)
    assert job("vae", "training.total_images=50e6") == job("vae", "training.total_images=50_000_000")
    assert job("vae", "optimizer.schedule={kind: constant, warmup_images: 1e2}").optimizer.schedule.warmup_images == 100


def test_job_built_in_python_follows_the_same_rules() -> None:
    with pytest.raises(ValueError, match="valid integer"):
        TrainJob.model_validate(tree_of() | {"training": {"total_images": True, "images_per_step": 1}})


WEIRD = [None, True, -1, 0, 1.5, 10**30, 1e300, float("nan"), float("-inf"), "", "x", "\0", [], [[]], [None] * 9, {}]
WEIRD += [{"kind": None}, {"kind": []}, {"kind": {}}, {"kind": "vae"}, {"": 1}]


@pytest.mark.parametrize("objective", ONE_OF_EACH_KIND.values(), ids=ONE_OF_EACH_KIND)
def test_no_value_anywhere_breaks_the_loader(objective: dict[str, object]) -> None:
    tree = job(objective).model_dump(mode="json")

    def paths(part: dict[str, object], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        sections = {key: value for key, value in part.items() if isinstance(value, dict)}
        below = [path for key, value in sections.items() for path in paths(value, (*above, key))]
        return [*((*above, key) for key in part), *below]

    for path in paths(tree):
        for value in WEIRD:
            damaged = copy.deepcopy(tree)
            part = damaged
            for key in path[:-1]:
                part = part[key]
            part[path[-1]] = value
            try:
                job_of(damaged, "job.yaml")
            except JobError as error:
                for line in str(error).split("\n"):
                    assert line.startswith("job.yaml: "), line
                    assert not re.search(r"typing|function-|constrained|<class|_type|Input should|None\b", line), line
