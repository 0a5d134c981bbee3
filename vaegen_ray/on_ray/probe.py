"""What only the cluster can tell of itself before a job is submitted: run there, as a short job of its own.

Prints one line of JSON after a mark; `submit.py` reads it on the user's machine.
"""

import json
import platform
import sys
from dataclasses import asdict
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import vaegen_ray.on_ray  # noqa: F401  (settings that ray reads when it is imported)
from vaegen_ray.config.compare import CompareJob
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import AnyJob, load_job
from vaegen_ray.config.places import READ, places
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.config.search import SearchJob
from vaegen_ray.errors import ClusterError, VaegenError
from vaegen_ray.on_ray.cluster import cluster
from vaegen_ray.on_ray.preflight import check_placement, node_resources, worker_needs
from vaegen_ray.on_ray.probe_findings import MARK, Findings
from vaegen_ray.runs.attempts import read_attempts, root_of
from vaegen_ray.storage import Location

ANSWER_S = 120.0
"""A node that starts the first process of a job unpacks its code."""


def look(job: AnyJob) -> Findings:
    """Look from the head and from every node that works."""
    nodes = node_resources()
    findings = Findings(
        nodes=len(nodes),
        cpus=sum(node.get("CPU", 0.0) for node in nodes),
        gpus=sum(node.get("GPU", 0.0) for node in nodes),
        python=platform.python_version(),
        dashboard=_dashboard_host(),
        head=ray.get_runtime_context().gcs_address.rsplit(":", 1)[0],
    )
    root, problems = root_of(job), findings.problems
    try:
        _check_room(job)
    except ClusterError as error:
        problems.append(str(error))
    unseen = _local_files(job, root)
    try:
        root.check_writable()
        attempts = read_attempts(root)
        findings.attempts = attempts[-1].number if attempts else 0
        findings.is_complete = (root / "final" / "scores.json").exists()
        _check_is_of(job)
    except VaegenError as error:
        problems.append(str(error))
    sources = {key: place.url for key, place in _sources(job).items()}
    answers = _ask_nodes(root.url, sources)
    if not answers:
        # Of a cluster whose nodes are all to come, the head tells what there is in object stores.
        answers = {"head": _node_view(root.url, {key: url for key, url in sources.items() if "://" in url})}
    for address, answer in answers.items():
        if answer.get("python") != findings.python:
            problems.append(
                f"{address} runs Python {answer.get('python')}, the head {findings.python}; all must have one image"
                if "python" in answer
                else f"{address} did not answer: {answer['problem']}"
            )
        for key, sentence in answer.get("missing", {}).items():
            problems.append(f"{key}: {sentence}, on the node {address}")
    problems.extend(unseen)
    findings.problems = list(dict.fromkeys(problems))
    return findings


def _check_room(job: AnyJob) -> None:
    if isinstance(job, PrepareJob):
        return
    if isinstance(job, SearchJob):
        from vaegen_ray.on_ray.search import concurrent_trials

        concurrent_trials(job, worker_needs(job.base))
        return
    train = job.base if isinstance(job, CompareJob) else job
    check_placement(train, worker_needs(train))


def _check_is_of(job: AnyJob) -> None:
    """Refuse a name under which another job was begun, before anything waits for room."""
    if isinstance(job, TrainJob):
        RunDirectory.of(job).check_is_of(job)
    elif isinstance(job, SearchJob):
        from vaegen_ray.on_ray import search

        search.check_is_of(job)
    elif isinstance(job, CompareJob):
        from vaegen_ray.on_ray import compare

        compare.check_is_of(job)


def _sources(job: AnyJob) -> dict[str, Location]:
    """What every node has to read, by key."""
    if isinstance(job, PrepareJob):
        path = getattr(job.source, "path", None)
        return {"source.path": Location.of(path)} if path and "*" not in path else {}
    train, prefix = (job.base, "base.") if isinstance(job, SearchJob | CompareJob) else (job, "")
    return {f"{prefix}{key}": Location.of(place) for key, place in places(train, READ).items()}


def _local_files(job: AnyJob, root: Location) -> list[str]:
    """A sentence where several nodes are to write one local folder that they do not share."""
    if not root.is_local or (isinstance(job, TrainJob) and not job.resources.needs_ray):
        return []
    from vaegen_ray.on_ray.preflight import check_storage_is_shared

    key = "destination" if isinstance(job, PrepareJob) else "storage"
    try:
        check_storage_is_shared(root, key)
    except VaegenError as error:
        return [str(error)]
    return []


def _node_view(root: str, sources: dict[str, str]) -> dict[str, Any]:
    """What a node sees."""
    missing: dict[str, str] = {}
    for key, url in sources.items():
        try:
            if not Location(url).exists():
                missing[key] = f"must be there, there is nothing at {url}"
        except VaegenError as error:
            missing[key] = str(error)
    if "://" in root:
        try:
            Location(root).check_writable()
        except VaegenError as error:
            missing["storage"] = str(error).removeprefix("storage: ")
    return {"python": platform.python_version(), "missing": missing}


def _ask_nodes(root: str, sources: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The view of each living node that has processors, by its address."""
    ask = ray.remote(num_cpus=0, max_retries=0)(_node_view)
    asked = {
        node["NodeManagerAddress"]: ask.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(root, sources)
        for node in ray.nodes()
        if node["Alive"] and (node["Resources"].get("CPU", 0) > 0 or node["Resources"].get("GPU", 0) > 0)
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_S) if asked else None
    answers: dict[str, dict[str, Any]] = {}
    for address, reference in asked.items():
        try:
            answers[address] = ray.get(reference, timeout=0.1)
        except ray.exceptions.RayError as error:
            answers[address] = {"problem": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return answers


def _dashboard_host() -> str:
    node: Any = ray._private.worker.global_worker.node
    url = str(node.address_info.get("webui_url") or "")
    return url.rsplit(":", 1)[0]


def main(job_file: str) -> None:
    """Print what there is to tell of the job in ``job_file``."""
    job = load_job(job_file)
    with cluster():
        print(MARK + json.dumps(asdict(look(job))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
