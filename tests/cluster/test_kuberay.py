"""Manifests for KubeRay: known to its schema, allowed by its rules, and what a preempted run needs."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from vaegen_ray.cli.main import app
from vaegen_ray.config.loading import job_of, load_job
from vaegen_ray.errors import JobError
from vaegen_ray.render.kuberay import FOLDER, MOST_CHARACTERS, kubernetes_name, render
from vaegen_ray.render.nodes import nodes_of

FACES = "jobs/train/vae_gan_faces_64.yaml"
ON_S3 = ("storage=s3://my-bucket/runs", "data.source=s3://my-bucket/datasets/faces_64")
SEARCH_ON_S3 = (
    "storage=s3://b/searches",
    "base.data.source=s3://b/faces",
    "base.evaluation.features.weights=s3://b/inception",
)
IMAGE = "registry.example/vaegen_ray:1"
Tree = dict[str, Any]


def documents(text: str) -> tuple[Tree, Tree]:
    config_map, ray_job = yaml.safe_load_all(text)
    return config_map, ray_job


def rendered(*settings: str, queue: str | None = None, file: str = FACES) -> tuple[Tree, Tree]:
    return documents(render(load_job(file, settings or ON_S3), IMAGE, queue))


# ---------------------------------------------------------------------------- KubeRay's schema and rules


def strict(schema: Any) -> Any:
    """The schema as the API server reads it, and with unknown fields refused, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(part) for key, part in schema.items()}
    if "properties" in made and isinstance(made["properties"], dict):
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
        defaulted = {name for name, part in made["properties"].items() if isinstance(part, dict) and "default" in part}
        if "required" in made:
            made["required"] = [name for name in made["required"] if name not in defaulted]
    if schema.get("x-kubernetes-int-or-string"):
        made = {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    return made


@pytest.fixture(scope="module")
def ray_job_schema() -> jsonschema.Draft202012Validator:
    packed = Path(__file__).parent / "kuberay" / "rayjobs.v1.json.gz"
    return jsonschema.Draft202012Validator(strict(json.loads(gzip.decompress(packed.read_bytes()))))


def problems(validator: jsonschema.Draft202012Validator, tree: Tree) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(tree)]


def broken_rules(ray_job: Tree) -> Iterator[str]:
    """What KubeRay's operator refuses, and the schema does not say (ValidateRayJobSpec, ValidateRayClusterSpec)."""
    spec = ray_job["spec"]
    name = ray_job["metadata"]["name"]
    if len(name) > 47 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "metadata.name must be a DNS-1035 label of at most 47 characters"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "a RayJob that keeps its cluster cannot be suspended"
    if "jobId" in spec and spec.get("backoffLimit"):
        yield "a fixed jobId cannot be tried again"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML must be a mapping"
    yield from broken_rules_of_cluster(spec["rayClusterSpec"])


def broken_rules_of_cluster(spec: Tree) -> Iterator[str]:
    grows, options = spec.get("enableInTreeAutoscaling", False), spec.get("autoscalerOptions", {})
    groups = {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    for name, group in groups.items():
        parameters = group["rayStartParams"]
        if "labels" in parameters:
            yield f"{name}: labels do not belong into rayStartParams"
        if {"num-cpus", "num-gpus", "memory", "resources"} & parameters.keys() and group.get("resources"):
            yield f"{name}: resources stand twice"
        if grows and options.get("version") == "v2" and group["template"]["spec"].get("restartPolicy") != "Never":
            yield f"{name}: autoscaler v2 needs restartPolicy: Never"
        if not group["template"]["spec"]["containers"]:
            yield f"{name}: no container"
    for group in spec["workerGroupSpecs"]:
        if not grows and not {"minReplicas", "maxReplicas"} <= group.keys():
            yield "without an autoscaler minReplicas and maxReplicas must be set"
        if not 0 <= group.get("minReplicas", 0) <= group.get("maxReplicas", 2**31 - 1):
            yield "minReplicas must be from 0 to maxReplicas"
    if spec.get("authOptions", {}).get("mode") == "token":
        version = tuple(int(part) for part in spec.get("rayVersion", "0.0.0").split("."))
        if version < (2, 52, 0):
            yield "authOptions needs rayVersion of at least 2.52.0"
    if not grows and options:
        yield "autoscalerOptions without an autoscaler"


@pytest.mark.parametrize(
    ("file", "settings", "queue"),
    [
        (FACES, ON_S3, None),
        (FACES, (*ON_S3, "resources.workers=4", "resources.max_duration_s=60", "resources.stop_window_s=0.5"), None),
        (FACES, (*ON_S3, "resources.workers={min: 2, max: 8}"), "team-a"),
        ("jobs/search/kl_and_adversarial_faces_64.yaml", SEARCH_ON_S3, None),
        ("jobs/prepare/faces_64.yaml", ("destination=s3://b/faces", "source.path=s3://b/raw"), "team-a"),
    ],
    ids=["one worker", "four workers", "elastic in a queue", "search", "prepare in a queue"],
)
def test_manifest_of_each_kind_is_known_to_kuberay_and_allowed(
    ray_job_schema: jsonschema.Draft202012Validator, file: str, settings: tuple[str, ...], queue: str | None
) -> None:
    config_map, ray_job = rendered(*settings, queue=queue, file=file)
    assert problems(ray_job_schema, ray_job) == []
    assert list(broken_rules(ray_job)) == []
    assert config_map["metadata"]["name"] == ray_job["metadata"]["name"]


@pytest.mark.parametrize(
    ("path", "misspelt"),
    [
        (["spec"], "entryPoint"),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0], "maxReplica"),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0], "resource"),
        (["spec", "rayClusterSpec", "autoscalerOptions"], "idleTimeout"),
    ],
)
def test_misspelt_field_is_found_by_the_check(
    ray_job_schema: jsonschema.Draft202012Validator, path: list[Any], misspelt: str
) -> None:
    _, ray_job = rendered()
    place: Any = ray_job
    for part in path:
        place = place[part]
    place[misspelt] = "1"
    assert any(misspelt in problem for problem in problems(ray_job_schema, ray_job))


# ---------------------------------------------------------------------------- what is in it


def test_job_in_the_manifest_is_the_job_that_was_given() -> None:
    config_map, ray_job = rendered()
    assert job_of(json.loads(config_map["data"]["job.json"]), "job") == load_job(FACES, ON_S3)
    assert ray_job["spec"]["entrypoint"] == f"vaegen train {FOLDER}/job.json"
    for group in [ray_job["spec"]["rayClusterSpec"]["headGroupSpec"], *workers(ray_job)]:
        pod = group["template"]["spec"]
        mounted = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounted[FOLDER]]["configMap"]["name"] == config_map["metadata"]["name"]
        assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


def workers(ray_job: Tree) -> list[Tree]:
    groups: list[Tree] = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return groups


def test_head_trains_nothing_and_stays_while_spot_workers_come_and_go() -> None:
    _, ray_job = rendered(*ON_S3, "resources.workers={min: 2, max: 8}")
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["headGroupSpec"]["template"]["spec"]["nodeSelector"] == {"market": "on-demand"}
    (group,) = workers(ray_job)
    assert group["template"]["spec"]["nodeSelector"] == {"market": "spot"}
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 0, 8)
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert "entrypointNumGpus" not in ray_job["spec"]


def test_preempted_pod_has_time_to_save_and_a_failed_cluster_is_replaced() -> None:
    _, ray_job = rendered(*ON_S3, "resources.workers=2", "resources.stop_window_s=300")
    for group in [ray_job["spec"]["rayClusterSpec"]["headGroupSpec"], *workers(ray_job)]:
        pod = group["template"]["spec"]
        environment = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
        assert pod["terminationGracePeriodSeconds"] == 300
        assert 200 < int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) < 300
    assert ray_job["spec"]["backoffLimit"] > 0
    assert "jobId" not in ray_job["spec"], "each attempt needs an id of its own"
    stop = yaml.safe_load(ray_job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert stop["RAY_JOB_STOP_SIGNAL"] == "SIGTERM"
    assert int(stop["RAY_JOB_STOP_WAIT_TIME_S"]) > 300


def test_job_that_may_take_so_long_is_ended_then() -> None:
    _, ray_job = rendered(*ON_S3, "resources.max_duration_s=3600.5")
    assert ray_job["spec"]["activeDeadlineSeconds"] == 3601
    _, without = rendered()
    assert "activeDeadlineSeconds" not in without["spec"]


def test_only_worker_is_not_on_the_head() -> None:
    """`vaegen train` trains a job of one worker in its own process, which Ray would start on the head."""
    _, ray_job = rendered(*ON_S3, "resources.workers=1")
    assert ray_job["spec"]["entrypointNumGpus"] == 1
    _, without = rendered(*ON_S3, "resources.workers=1", "resources.gpus_per_worker=0", "resources.cpus_per_worker=3")
    assert without["spec"]["entrypointNumCpus"] == 3
    assert "entrypointNumGpus" not in without["spec"]
    assert "nvidia.com/gpu" not in workers(without)[0]["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_queue_of_kueue_has_the_whole_cluster_from_the_start() -> None:
    _, ray_job = rendered(*ON_S3, "resources.workers={min: 2, max: 8}", queue="team-a")
    assert ray_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert not ray_job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"], "Kueue does not admit clusters that grow"
    assert {workers(ray_job)[0][key] for key in ("replicas", "minReplicas", "maxReplicas")} == {8}
    _, without = rendered()
    assert not any("kueue" in label for label in without["metadata"]["labels"])


def test_search_has_room_for_its_trials() -> None:
    job = load_job("jobs/search/kl_and_adversarial_faces_64.yaml", (*SEARCH_ON_S3, "max_concurrent=5"))
    assert nodes_of(job).most == 5
    assert not nodes_of(job).driver_trains


def test_token_is_asked_for_and_nothing_is_open_to_the_outside() -> None:
    _, ray_job = rendered()
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert not cluster["headGroupSpec"].get("enableIngress")
    assert cluster["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"
    for group in [cluster["headGroupSpec"], *workers(ray_job)]:
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"]
        assert not group["template"]["spec"].get("hostNetwork")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (("data.source=s3://b/d", "storage=runs"), "storage"),
        (("storage=s3://b/r", "data.source=datasets/faces_64"), "data.source"),
        ((*ON_S3, "data.cache=cache"), "data.cache"),
    ],
)
def test_path_that_begins_where_it_is_rendered_is_refused_with_the_remedy(settings: tuple[str, ...], key: str) -> None:
    with pytest.raises(JobError, match=rf"^{re.escape(key)}: must be a URL.*use --set {re.escape(key)}=s3://"):
        render(load_job(FACES, settings), IMAGE)


SEARCH, PREPARE = "jobs/search/kl_and_adversarial_faces_64.yaml", "jobs/prepare/faces_64.yaml"


@pytest.mark.parametrize(
    ("file", "settings", "key"),
    [
        (FACES, (*ON_S3, "storage=/shared/runs"), "storage"),
        (FACES, (*ON_S3, "storage=file:///shared/runs"), "storage"),
        (FACES, (*ON_S3, "data.source=/shared/faces"), "data.source"),
        (SEARCH, (*SEARCH_ON_S3, "storage=/shared/runs"), "storage"),
        (SEARCH, (*SEARCH_ON_S3, "base.data.source=~/faces"), "base.data.source"),
        (SEARCH, (*SEARCH_ON_S3, "warm_start=[s3://b/one, /shared/two]"), "warm_start[1]"),
        (PREPARE, ("source.path=s3://b/raw", "destination=/shared/faces"), "destination"),
        (PREPARE, ("source.path=/shared/raw", "destination=s3://b/faces"), "source.path"),
    ],
)
def test_folder_that_would_go_with_the_pods_is_refused(file: str, settings: tuple[str, ...], key: str) -> None:
    with pytest.raises(JobError, match=rf"^{re.escape(key)}: must be a URL .* pods have no disk but their own"):
        render(load_job(file, settings), IMAGE)


def test_shipped_data_and_a_cache_in_the_pod_are_allowed() -> None:
    config_map, _ = rendered("storage=s3://b/runs", "data.cache=/cache", file="jobs/train/vae_gan_quickstart.yaml")
    assert "shipped:" in config_map["data"]["job.json"]


@pytest.mark.parametrize("name", ["Faces_64", "7days", "a" * 100, "x.y", "-"])
def test_name_of_any_run_becomes_one_that_kubernetes_takes(name: str) -> None:
    made = kubernetes_name(name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", made)
    assert len(made) <= MOST_CHARACTERS
    assert kubernetes_name(f"{name}_") != made
    assert kubernetes_name("vae-gan") == "vae-gan"


# ---------------------------------------------------------------------------- what is committed


def test_committed_ray_job_is_what_the_command_prints() -> None:
    settings = [argument for setting in ON_S3 for argument in ("--set", setting)]
    printed = CliRunner().invoke(app, ["render", "kuberay", FACES, *settings])
    assert printed.exit_code == 0, printed.output
    assert printed.stdout == Path("cluster/kuberay/rayjob.yaml").read_text()


def test_committed_ray_cluster_is_the_cluster_of_a_job(ray_job_schema: jsonschema.Draft202012Validator) -> None:
    committed = yaml.safe_load(Path("cluster/kuberay/raycluster.yaml").read_text())
    _, ray_job = documents(Path("cluster/kuberay/rayjob.yaml").read_text())
    of_job = ray_job["spec"]["rayClusterSpec"]
    for group in [of_job["headGroupSpec"], *of_job["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "job"]
        container = pod["containers"][0]
        container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "job"]
    (ours,) = of_job["workerGroupSpecs"]
    ours |= {"replicas": 0, "maxReplicas": 8}
    assert committed["spec"] == of_job
    assert committed["kind"] == "RayCluster"
    assert problems(ray_job_schema, {**ray_job, "spec": {**ray_job["spec"], "rayClusterSpec": committed["spec"]}}) == []
