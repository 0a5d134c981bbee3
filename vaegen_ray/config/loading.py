"""From a YAML file and overrides to a validated job."""

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from vaegen_ray.config.compare import CompareJob
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.config.search import SearchJob
from vaegen_ray.config.sentences import one_of, sentences, shown
from vaegen_ray.config.settings import with_settings
from vaegen_ray.config.space import broken_search_rules
from vaegen_ray.config.url_secrets import without_url_secrets
from vaegen_ray.config.variants import broken_compare_rules
from vaegen_ray.errors import CheckpointError, JobError, StorageError
from vaegen_ray.storage import Location

AnyJob = TrainJob | PrepareJob | SearchJob | CompareJob
J = TypeVar("J", TrainJob, PrepareJob, SearchJob, CompareJob)
KINDS: dict[str, type[AnyJob]] = {
    "train": TrainJob, "prepare": PrepareJob, "search": SearchJob, "compare": CompareJob,
}  # fmt: skip

_ADAPTER: TypeAdapter[AnyJob] = TypeAdapter(Annotated[AnyJob, Field(discriminator="kind")])
Tree = dict[str, Any]


# ---------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """Safe YAML with the plain values of YAML 1.2, and without repeated keys.

    PyYAML follows YAML 1.1, where 3e-4 is text, `no` is false, 010 is eight and 1:30 is ninety.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's protocol)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?\d[\d_]*", list("-+0123456789")),
    ("float", r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", None),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node).replace("_", ""))


def _mapping_without_repeated_keys(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = f"line {key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise JobError(f"{line}: a key must be text, got {shown(key)}")
        if key in seen:
            raise JobError(f"{line}: key '{key}' stands twice; keep one")
        seen.add(key)
    return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeated_keys)


def parse_yaml(text: str) -> Any:
    """Plain values as in YAML 1.2, no repeated keys; JobError with the line where it is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise JobError(f"{where}is not valid YAML: {problem}") from error
    except JobError:
        raise
    # A million brackets, a number of a million digits, or a tag (`!!bool maybe`) of what does not fit it.
    except (RecursionError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise JobError(f"is not valid YAML: {error}") from error


# ---------------------------------------------------------------------------- files and overrides


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> AnyJob:
    """Read the job file ``path`` (YAML, or a resolved ``job.json``), apply ``key=value`` overrides, validate.

    Raises JobError, whose message names the file and, for each broken rule, key, rule, value and remedy.
    """
    of_base = [override for override in overrides if override.strip().startswith("base.")]
    tree = with_overrides(load_tree(path), [override for override in overrides if override not in of_base])
    if tree.get("kind") in ("search", "compare"):
        tree = _with_base(tree, path)
    return job_of(with_overrides(tree, of_base), str(path))


def load_search_job(path: str | Path, overrides: Sequence[str] = ()) -> SearchJob:
    """As :func:`load_job`, for a job that must be of kind `search`."""
    return _load_job_of(SearchJob, path, overrides)


def load_compare_job(path: str | Path, overrides: Sequence[str] = ()) -> CompareJob:
    """As :func:`load_job`, for a job that must be of kind `compare`."""
    return _load_job_of(CompareJob, path, overrides)


def load_train_job(path: str | Path, overrides: Sequence[str] = ()) -> TrainJob:
    """As :func:`load_job`, for a job that must be of kind `train`."""
    return _load_job_of(TrainJob, path, overrides)


def load_prepare_job(path: str | Path, overrides: Sequence[str] = ()) -> PrepareJob:
    """As :func:`load_job`, for a job that must be of kind `prepare`."""
    return _load_job_of(PrepareJob, path, overrides)


def _load_job_of(kind: type[J], path: str | Path, overrides: Sequence[str]) -> J:
    job = load_job(path, overrides)
    if not isinstance(job, kind):
        (name,) = (name for name, model in KINDS.items() if model is kind)
        raise JobError(f"{path}: kind: must be '{name}' for this command, got '{job.kind}'; use `vaegen {job.kind}`")
    return job


def load_resolved(file: Location, kind: type[J], what: str) -> J:
    """The job that a directory keeps in ``file``, which makes it the directory of ``what``, such as "a run".

    Raises JobError where it is no such directory, and CheckpointError where the file is damaged.
    """
    if not file.exists():
        raise JobError(f"{file.parent}: must be the directory of {what}, found no {file.name} there")
    remedy = f"restore it or remove {file.parent}"
    try:
        tree = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: is damaged ({error}); {remedy}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{file}: is damaged (holds {shown(tree)}, no job); {remedy}")
    job = job_of(tree, str(file))
    if not isinstance(job, kind):
        raise JobError(f"{file.parent}: must be the directory of {what}, holds kind '{job.kind}'")
    return job


def load_tree(path: str | Path) -> Tree:
    """The keys and values of the job file ``path``, not yet validated."""
    try:
        tree = parse_yaml(_text(path))
    except JobError as error:
        raise JobError(f"{path}: {error}") from error
    if not isinstance(tree, dict):
        raise JobError(f"{path}: must hold 'key: value' lines that begin with 'kind: train', got {shown(tree)}")
    return tree


def _with_base(tree: Tree, path: str | Path) -> Tree:
    """Put the job that `base` names in its place, changed by `set`; what is malformed is left to the schema."""
    base, settings = tree.get("base"), tree.get("set", {})
    if isinstance(base, str):
        beside = Location.of(path).parent / base if "://" not in base and not base.startswith("/") else base
        scheme, separator, rest = str(beside).rpartition("://")
        base = load_tree(f"{scheme}{separator}{posixpath.normpath(rest)}")
    tree = {key: value for key, value in tree.items() if key != "set"}
    if not isinstance(base, dict):
        return tree
    if not isinstance(settings, dict):
        raise JobError(f"{path}: set: must be 'dotted.path: value' lines, got {shown(settings)}")
    kind = base.get("kind", "train")
    if kind != "train":
        raise JobError(f"{path}: base.kind: must be 'train', got {shown(kind)}; name a train job")
    try:
        base = with_settings(base, settings)
    except JobError as error:
        raise JobError(f"{path}: set: {error}") from error
    return {**tree, "base": base}


def _text(path: str | Path) -> str:
    location = Location.of(path)
    try:
        if not location.exists():
            raise JobError("there is no such job file")
        if location.is_local and location.local_path.is_dir():
            raise JobError("must be a job file, is a folder; name the files in it")
        return location.read_text()
    except StorageError as error:
        raise JobError(str(error).removeprefix(f"{path}: ")) from error
    except UnicodeDecodeError as error:
        raise JobError(f"must be a text file in UTF-8, is not at byte {error.start}") from error


def with_overrides(tree: Tree, overrides: Sequence[str]) -> Tree:
    """Return ``tree`` with every ``a.b.c=value`` applied, as :func:`with_settings` does; values are read as YAML."""
    settings = dict(map(_setting, overrides))
    try:
        return with_settings(tree, settings)
    except JobError as error:
        raise JobError(f"--set {error}") from error


def _setting(override: str) -> tuple[str, Any]:
    path, separator, text = override.partition("=")
    path = path.strip()
    if not separator or not all(path.split(".")):
        raise JobError(f"--set {override}: must be KEY=VALUE, such as training.total_images=50000")
    try:
        return path, parse_yaml(text)
    except JobError as error:
        raise JobError(f"--set {override}: {str(error).removeprefix('line 1: ')}") from error


# ---------------------------------------------------------------------------- trees and jobs


def job_of(tree: Tree, origin: str) -> AnyJob:
    """Validate ``tree``; ``origin`` begins each line of the message of a JobError, one line a broken rule."""
    kind = tree.get("kind")
    if kind is None:
        raise JobError(f"{origin}: kind: is required, {one_of(KINDS)}; add it")
    if not isinstance(kind, str) or kind not in KINDS:
        raise JobError(f"{origin}: kind: must be {one_of(KINDS)}, got {shown(kind)}")
    try:
        job = _ADAPTER.validate_python(tree)
    except ValidationError as error:
        raise JobError("\n".join(f"{origin}: {sentence}" for sentence in sentences(error, KINDS[kind]))) from error
    broken: list[str] = []
    if isinstance(job, SearchJob):
        broken = list(broken_search_rules(job))
    elif isinstance(job, CompareJob):
        broken = list(broken_compare_rules(job))
    if broken:
        raise JobError("\n".join(f"{origin}: {sentence}" for sentence in broken))
    _check_no_secrets(job, origin)
    return job


def _check_no_secrets(job: AnyJob, origin: str) -> None:
    """A job is copied into the run's directory and shown by Ray's dashboard."""
    for key, value in _texts(job.model_dump(mode="json")):
        blotted = without_url_secrets(value)
        if blotted != value:
            raise JobError(
                f"{origin}: {key}: must hold no user, password or signature, got {blotted}; take it out, and set the "
                "usual environment variables (AWS_ACCESS_KEY_ID, MLFLOW_TRACKING_PASSWORD, ...) where it runs"
            )


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each text in a tree, by its path."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, below in value.items():
            yield from _texts(below, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _texts(below, f"{key}[{index}]")


def dump_job(job: AnyJob) -> str:
    """The resolved job as JSON: every value, also those that the file left to their defaults."""
    return json.dumps(job.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
