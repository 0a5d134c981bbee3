"""From the bytes of a file, and overrides, to a job or to one sentence."""

import json
from pathlib import Path

import pytest
import yaml

from tests.config.samples import job, tree_of
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import dump_job, load_job, load_train_job, parse_yaml, with_overrides
from vaegen_ray.errors import JobError


def refusal(path: Path | str, *overrides: str) -> str:
    with pytest.raises(JobError) as refused:
        load_job(path, overrides)
    return str(refused.value)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tree_of()))
    return file


# ---------------------------------------------------------------------------- files

BAD_FILES = {
    "empty": (b"", "must hold 'key: value' lines that begin with 'kind: train', got nothing"),
    "comment": (b"# nothing\n", "must hold 'key: value' lines that begin with 'kind: train', got nothing"),
    "list": (
        b"- kind: train\n",
        "must hold 'key: value' lines that begin with 'kind: train', got [{\"kind\": \"train\"}]",
    ),
    "text": (b"train", "must hold 'key: value' lines that begin with 'kind: train', got 'train'"),
    "binary": (b"\x89PNG\r\n\x1a\n", "must be a text file in UTF-8, is not at byte 0"),
    "zero byte": (b"kind: \0", "is not valid YAML: special characters are not allowed"),
    "bracket": (
        b"kind: train\nname: [",
        "line 2: is not valid YAML: expected the node content, but found '<stream end>'",
    ),
    "tab": (
        b"kind: train\n\tname: x\n",
        "line 2: is not valid YAML: found character '\\t' that cannot start any token",
    ),
    "two documents": (b"kind: train\n---\nkind: train\n", "line 2: is not valid YAML: but found another document"),
    "python object": (
        b"kind: !!python/object/apply:os.system [ls]",
        "line 1: is not valid YAML: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system'",
    ),
    "repeated key": (b"kind: train\nname: a\n\nname: b\n", "line 4: key 'name' stands twice; keep one"),
    "repeated inner key": (
        b"kind: train\ndata:\n  source: a\n  source: b\n",
        "line 4: key 'source' stands twice; keep one",
    ),
    "number as key": (b"kind: train\n1: x\n", "line 2: a key must be text, got 1"),
    "list as key": (b"kind: train\n? [a, b]\n: x\n", 'line 2: a key must be text, got ["a", "b"]'),
    "itself": (
        b"kind: train\ndata: &a\n  source: *a\n",
        "line 2: is not valid YAML: found unconstructable recursive node",
    ),
    "deep": (b"kind: " + b"[" * 20_000, "is not valid YAML: maximum recursion depth exceeded"),
    "tag of what does not fit": (b"seed: !!bool maybe\n", "is not valid YAML"),
    "tag of no time": (b"seed: !!timestamp abc\n", "is not valid YAML"),
    "tag of no number": (b'seed: !!float ""\n', "is not valid YAML"),
    "huge number": (b"kind: train\nseed: " + b"9" * 5000, "is not valid YAML: Exceeds the limit (4300 digits)"),
}


@pytest.mark.parametrize(("content", "sentence"), BAD_FILES.values(), ids=BAD_FILES)
def test_file_that_is_no_job_is_refused_in_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    message = refusal(file)
    assert message.startswith(f"{file}: {sentence}")
    assert "\n" not in message


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nope.yaml") == f"{tmp_path}/nope.yaml: there is no such job file"
    assert refusal(tmp_path) == f"{tmp_path}: must be a job file, is a folder; name the files in it"


def test_unreadable_file_is_refused() -> None:
    assert refusal("/proc/self/mem").startswith("/proc/self/mem: cannot read: ")
    assert refusal("gopher://x/job.yaml").startswith("gopher://x/job.yaml: no filesystem for 'gopher://'")


def test_job_of_another_kind_is_refused_with_its_verb() -> None:
    with pytest.raises(JobError) as refused:
        load_train_job("jobs/prepare/cifar10.yaml")
    assert str(refused.value) == (
        "jobs/prepare/cifar10.yaml: kind: must be 'train' for this command, got 'prepare'; use `vaegen prepare`"
    )


# ---------------------------------------------------------------------------- YAML 1.2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("50_000", 50_000),
        ("010", 10),
        ("-7", -7),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("", None),
        ("~", None),
        (".inf", float("inf")),
        ("'3e-4'", "3e-4"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("0x10", "0x10"),
        ("<<", "<<"),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_yaml(f"key: {text}")["key"]
    assert parsed == value
    assert type(parsed) is type(value)


# ---------------------------------------------------------------------------- overrides

BAD_OVERRIDES = {
    "training.total_images": "must be KEY=VALUE, such as training.total_images=50000",
    "=3": "must be KEY=VALUE, such as training.total_images=50000",
    "training..total_images=3": "must be KEY=VALUE, such as training.total_images=50000",
    ".name=3": "must be KEY=VALUE, such as training.total_images=50000",
    "name=[": "is not valid YAML: expected the node content, but found '<stream end>'",
    "data={source: a, source: b}": "key 'source' stands twice; keep one",
}


@pytest.mark.parametrize(("override", "sentence"), BAD_OVERRIDES.items(), ids=BAD_OVERRIDES)
def test_malformed_override_is_refused(override: str, sentence: str, job_file: Path) -> None:
    assert refusal(job_file, override) == f"--set {override}: {sentence}"


def test_override_into_a_plain_value_is_refused(job_file: Path) -> None:
    assert refusal(job_file, "model.image_size.pixels=3") == (
        "--set model.image_size.pixels: 'model.image_size' is a plain value, 32; set that as a whole"
    )
    betas = "optimizer.generator.betas"
    assert refusal(job_file, f"{betas}=[0.5, 0.9]", f"{betas}.0=0.1") == (
        f"--set {betas}.0: '{betas}' is a plain value, [0.5, 0.9]; set that as a whole"
    )


def test_override_with_an_unknown_key_is_refused_with_the_file(job_file: Path) -> None:
    assert refusal(job_file, "training.total_image=9") == (
        f"{job_file}: training.total_image: no such key; did you mean 'total_images'?"
    )


def test_overrides_rebuild_and_revalidate(job_file: Path) -> None:
    changed = load_train_job(job_file, ["training.total_images=2000", "optimizer.generator.learning_rate=3e-4"])
    assert changed.training.total_images == 2000
    assert changed.training.report_every_images == 10
    assert changed.optimizer.generator.learning_rate == 3e-4
    assert load_train_job(job_file).training.total_images == 1000


def test_override_may_hold_equals_signs_and_open_absent_sections(job_file: Path) -> None:
    assert load_train_job(job_file, ["storage=s3://b/a=b"]).storage == "s3://b/a=b"
    tracked = load_train_job(job_file, ["tracking.mlflow.experiment=x"]).tracking.mlflow
    assert tracked is not None
    assert tracked.experiment == "x"


@pytest.mark.parametrize("reverse", [False, True])
def test_another_kind_drops_the_keys_of_the_old_kind_whatever_the_order(reverse: bool, job_file: Path) -> None:
    overrides = [
        "objective.kind=gan",
        "objective.adversarial.balance.kind=equilibrium",
        "objective.adversarial.balance.weight=0.3",
    ]
    changed = load_train_job(job_file, overrides[::-1] if reverse else overrides)
    assert changed.objective.kind == "gan"
    assert changed.objective.adversarial.balance.model_dump() == {
        "kind": "equilibrium",
        "weight": 0.3,
        "equilibrium": 0.68,
        "margin": 0.35,
    }


def test_overrides_leave_the_tree_of_the_file_alone() -> None:
    tree = tree_of()
    with_overrides(tree, ["training.total_images=5", "objective.kind=vae"])
    assert tree == tree_of()


def test_override_of_an_axis_reaches_it_although_its_name_has_dots() -> None:
    tree = {"space": {"objective.kl.weight": {"kind": "uniform", "low": 0.1, "high": 1.0}}}
    changed = with_overrides(tree, ["space.objective.kl.weight.high=2.0", "space.model.latent_dim={kind: integer}"])
    assert changed["space"] == {
        "objective.kl.weight": {"kind": "uniform", "low": 0.1, "high": 2.0},
        "model.latent_dim": {"kind": "integer"},
    }


# ---------------------------------------------------------------------------- round trip


def test_resolved_job_is_json_and_reloads_to_the_same_job(tmp_path: Path) -> None:
    for objective in ("vae", "gan", "vae_gan"):
        file = tmp_path / "job.json"
        file.write_text(dump_job(job(objective)))
        assert json.loads(file.read_text())["kind"] == "train"
        assert load_job(file) == job(objective)
        assert isinstance(load_job(file), TrainJob)
