"""A job as manifests for KubeRay: a ConfigMap that holds it and a RayJob that runs it on a cluster of its own."""

import hashlib
import math
import re
from importlib.metadata import version
from typing import Any

import yaml

from vaegen_ray.config.loading import AnyJob, dump_job
from vaegen_ray.render.nodes import Nodes, check_paths, check_urls, nodes_of

MOST_CHARACTERS = 47
"""Of a RayJob's name, because KubeRay makes longer ones of it."""
FOLDER, FILE = "/etc/vaegen", "job.json"
DRAIN_PART = 0.75
"""Of the time after which a pod that is to go is killed, `resources.stop_window_s`: so long it has to checkpoint."""
MORE_THAN_THE_WINDOW_S = 15
HEAD_CPUS, HEAD_MEMORY = "2", "8Gi"
CPU_MEMORY_GIB, GPU_MEMORY_GIB = 4, 12
"""Of main memory, for each processor and for each GPU of a worker."""
ATTEMPTS, ATTEMPTS_ON_SPOT = 3, 20
"""A cluster replaces lost workers by itself, so few attempts are needed where the driver is on the head; where it is a
worker, each reclaimed node costs one."""
CACHE = "/cache"

Tree = dict[str, Any]


class _Dumper(yaml.SafeDumper):
    """Block style; texts of several lines as they are."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (PyYAML's protocol)
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def render(job: AnyJob, image: str, queue: str | None = None) -> str:
    """The manifests for ``kubectl apply -f -``. JobError where a path means nothing in a pod, or is lost with it.

    With ``queue``, a local queue of Kueue decides when the job starts; Kueue does not admit clusters that grow, so it
    then has all its workers from the start.
    """
    check_urls(job)
    check_paths(job)
    name = kubernetes_name(job.name)
    documents = [_config_map(name, job), _ray_job(name, job, image, queue)]
    dumped = [yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=120) for tree in documents]
    return "# Made by `vaegen render kuberay`; cluster/README.md says how to use it.\n" + "---\n".join(dumped)


def kubernetes_name(name: str) -> str:
    """``name`` as a label of DNS, with a hash where it is none already, so that two names never become one."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    label = label if label[:1].isalpha() else f"run-{label}"
    if label == name and len(label) <= MOST_CHARACTERS:
        return label
    digest = hashlib.sha256(name.encode()).hexdigest()[:6]
    return f"{label[: MOST_CHARACTERS - 7].rstrip('-')}-{digest}"


def _config_map(name: str, job: AnyJob) -> Tree:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "vaegen-ray"}},
        "data": {FILE: dump_job(job)},
    }


def _ray_job(name: str, job: AnyJob, image: str, queue: str | None) -> Tree:
    nodes = nodes_of(job)
    labels = {"app.kubernetes.io/name": "vaegen-ray"} | ({"kueue.x-k8s.io/queue-name": queue} if queue else {})
    stop = {
        "RAY_JOB_STOP_SIGNAL": "SIGTERM",
        "RAY_JOB_STOP_WAIT_TIME_S": str(int(nodes.stop_window_s) + MORE_THAN_THE_WINDOW_S),
    }
    spec: Tree = {
        "entrypoint": f"vaegen {job.kind} {FOLDER}/{FILE}",
        "runtimeEnvYAML": yaml.safe_dump({"env_vars": stop}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        # Each attempt is a new cluster; the run's name in storage is what makes it a resumption.
        "backoffLimit": ATTEMPTS_ON_SPOT if nodes.driver_trains else ATTEMPTS,
    }
    if nodes.max_duration_s is not None:
        spec |= {"activeDeadlineSeconds": math.ceil(nodes.max_duration_s)}
    if nodes.driver_trains:  # Else it would train on the head.
        spec |= {"entrypointNumCpus": nodes.cpus} | ({"entrypointNumGpus": nodes.gpus} if nodes.gpus else {})
    spec["rayClusterSpec"] = cluster_spec(nodes, image, job_in=name, grows=queue is None)
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name, "labels": labels}, "spec": spec}


def cluster_spec(nodes: Nodes, image: str, *, job_in: str | None, grows: bool) -> Tree:
    """A head that trains nothing and is not on a spot node, and spot workers; in each pod the ConfigMap ``job_in``."""
    autoscaler = {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 300},
    }
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        **(autoscaler if grows else {"enableInTreeAutoscaling": False}),
        "headGroupSpec": _head(nodes, image, job_in),
        "workerGroupSpecs": [_workers(nodes, image, job_in, grows=grows)],
    }


def _head(nodes: Nodes, image: str, job_in: str | None) -> Tree:
    container = _container(nodes, "ray-head", image, {"cpu": HEAD_CPUS, "memory": HEAD_MEMORY}, job_in)
    return {
        "labels": {"market": "on-demand"},
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
        "template": {
            "metadata": {"annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}},
            "spec": {
                "nodeSelector": {"market": "on-demand"},
                "terminationGracePeriodSeconds": math.ceil(nodes.stop_window_s),
                "restartPolicy": "Never",
                "securityContext": {"runAsNonRoot": True},
                "containers": [container],
                "volumes": _volumes(job_in),
            },
        },
    }


def _workers(nodes: Nodes, image: str, job_in: str | None, *, grows: bool) -> Tree:
    memory = f"{max(CPU_MEMORY_GIB * nodes.cpus, GPU_MEMORY_GIB * nodes.gpus)}Gi"
    gpus = {"nvidia.com/gpu": str(nodes.gpus)} if nodes.gpus else {}
    container = _container(nodes, "ray-worker", image, {"cpu": str(nodes.cpus), "memory": memory} | gpus, job_in)
    return {
        "groupName": "spot",
        "replicas": nodes.fewest if grows else nodes.most,
        "minReplicas": 0 if grows else nodes.most,
        "maxReplicas": nodes.most,
        "labels": {"market": "spot"},
        "rayStartParams": {},
        "template": {
            "spec": {
                "nodeSelector": {"market": "spot"},
                "tolerations": [
                    {"key": "market", "value": "spot", "effect": "NoSchedule"},
                    {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                ],
                "terminationGracePeriodSeconds": math.ceil(nodes.stop_window_s),
                "restartPolicy": "Never",
                "securityContext": {"runAsNonRoot": True},
                "containers": [container],
                "volumes": _volumes(job_in),
            },
        },
    }


def _container(nodes: Nodes, name: str, image: str, resources: Tree, job_in: str | None) -> Tree:
    drain_s = max(1, int(DRAIN_PART * nodes.stop_window_s))
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}, {"name": "cache", "mountPath": CACHE}]
    return {
        "name": name,
        "image": image,
        "env": [
            {"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": str(drain_s)},
            {"name": "VAEGEN_CACHE", "value": CACHE},
        ],
        # The usual AWS variables; not needed where pods have an identity of their own.
        "envFrom": [{"secretRef": {"name": "vaegen-storage", "optional": True}}],
        "securityContext": {"allowPrivilegeEscalation": False},
        "resources": {"requests": resources, "limits": resources},
        "volumeMounts": mounts + ([{"name": "job", "mountPath": FOLDER, "readOnly": True}] if job_in else []),
    }


def _volumes(job_in: str | None) -> list[Tree]:
    volumes: list[Tree] = [
        # Kubernetes gives 64 MB, too little for Ray's objects.
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        {"name": "cache", "emptyDir": {}},
    ]
    return volumes + ([{"name": "job", "configMap": {"name": job_in}}] if job_in else [])
