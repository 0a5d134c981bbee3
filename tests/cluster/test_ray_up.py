"""The files for `ray up`, as Ray itself checks them, and the image that they and KubeRay's use."""

import copy
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from vaegen_ray import __version__

FILES = ("aws", "gcp", "local")
CLOUDS = ("aws", "gcp")
DOCKERFILE = Path("cluster/image/Dockerfile").read_text()


def config(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(Path(f"cluster/{name}.yaml").read_text())
    return tree


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(config(name)))


@pytest.mark.parametrize("path", [(), ("available_node_types", "spot"), ("docker",)])
def test_misspelt_key_is_refused(path: tuple[str, ...]) -> None:
    tree = copy.deepcopy(config("aws"))
    place = tree
    for key in path:
        place = place[key]
    place["max_wrokers"] = 2
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(prepare_config(tree))


@pytest.mark.parametrize("name", FILES)
def test_head_trains_nothing_and_every_node_asks_for_the_token(name: str) -> None:
    tree = config(name)
    head, workers = tree["head_start_ray_commands"], tree["worker_start_ray_commands"]
    (start,) = [command for command in head if "ray start" in command]
    assert "--num-cpus=0 --num-gpus=0 --dashboard-host=127.0.0.1" in start.replace("\n", " ")
    for command in [*head, *workers]:
        if "ray start" in command or "spot_drain" in command:
            assert "RAY_AUTH_MODE=token" in command
    assert tree["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert not re.search(r"0\.0\.0\.0|dashboard-host=(?!127\.0\.0\.1)", Path(f"cluster/{name}.yaml").read_text())


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_are_spot_instances_that_wait_for_the_notice_and_the_head_is_not(name: str) -> None:
    tree = config(name)
    types = tree["available_node_types"]
    spot = {"aws": "InstanceMarketOptions", "gcp": "scheduling"}[name]
    assert spot in types["spot"]["node_config"]
    assert spot not in types["head"]["node_config"]
    assert types["head"]["resources"]["CPU"] == 0
    assert types["spot"]["max_workers"] > 0
    assert {kind: node["labels"]["market"] for kind, node in types.items()} == {
        "head": "on-demand",
        "spot": "spot",
        "on_demand": "on-demand",
    }
    assert any(f"spot_drain.py {name} " in command for command in tree["worker_start_ray_commands"])
    assert tree["docker"]["image"] == f"vaegen_ray:{__version__}"


# ---------------------------------------------------------------------------- the image


def test_versions_in_the_image_are_those_that_the_tests_ran_with() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())
    pinned = dict(pin.split("==") for pin in project["tool"]["uv"]["constraint-dependencies"])
    named = {name.lower(): value for name, value in re.findall(r"^ARG (RAY|TORCH)_VERSION=(\S+)$", DOCKERFILE, re.M)}
    assert named == {name: pinned[name] for name in ("ray", "torch")}
    # All others come by `uv sync`, which reads the same constraints, and nothing comes past it.
    assert re.findall(r"pip install \S+ (\S+)", DOCKERFILE) == ['"uv==${UV_VERSION}"']
    assert "COPY --chown=1000 pyproject.toml" in DOCKERFILE
    python = re.search(r"^FROM python:(\d+\.\d+)", DOCKERFILE, re.M)
    assert python
    assert project["project"]["requires-python"] == f">={python.group(1)}"


def test_image_is_not_run_by_root_and_takes_only_what_the_project_is() -> None:
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.M)
    assert users == ["1000"], "by number, or KubeRay's runAsNonRoot refuses it"
    sources = [part for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M) for part in line.split()[1:-1]]
    assert sources == ["pyproject.toml", "README.md", "LICENSE", "vaegen_ray", "cluster/spot_drain.py"]
    assert all(Path(source).exists() for source in sources)
    assert not re.search(r"(?i)secret|token|password|aws_", DOCKERFILE)
