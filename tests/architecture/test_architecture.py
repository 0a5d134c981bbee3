"""The house: layers, sizes, names, and what may be imported where."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path("vaegen_ray")
MODULES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads(Path("pyproject.toml").read_text())

MOST_LINES = 450
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base_trainer"}

IMPORT_WITHOUT_RAY = """
import sys
import vaegen_ray
assert not {"torch", "ray"} & set(sys.modules), "importing the package imports torch or ray"
for name in ("ray", "optuna"):
    sys.modules[name] = None  # Any import of it fails.
import vaegen_ray.cli.main
assert "torch" not in sys.modules, "the command line imports torch before it knows the verb"
import vaegen_ray.bench.step, vaegen_ray.training.run, vaegen_ray.evaluation.evaluate, vaegen_ray.tracking.open
import vaegen_ray.training.plan, vaegen_ray.data.prepare, vaegen_ray.data.batches, vaegen_ray.training.local_session
import vaegen_ray.cli.evaluate, vaegen_ray.cli.pictures, vaegen_ray.cli.progress
"""

IMPORT_WITHOUT_WHAT_FEW_PROCESSES_USE = """
import sys
import vaegen_ray.report.run, vaegen_ray.report.search, vaegen_ray.report.comparison, vaegen_ray.report.server
import vaegen_ray.cli.watch, vaegen_ray.cli.leaderboard, vaegen_ray.cli.runs
assert "torch" not in sys.modules, "what only reads a directory imports torch"
import vaegen_ray.training.run, vaegen_ray.on_ray.search, vaegen_ray.on_ray.compare
slow = {"torchvision", "torchmetrics", "scipy.signal", "torch._dynamo", "mlflow", "plotly"} & set(sys.modules)
assert not slow, f"drivers and reports import {slow}, which costs them seconds"
"""


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def tool(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def test_import_contracts_are_kept() -> None:
    run(tool("lint-imports"))


def test_core_imports_without_ray_and_the_package_without_torch() -> None:
    run(sys.executable, "-c", IMPORT_WITHOUT_RAY)


def test_what_takes_seconds_to_import_is_imported_where_it_is_used() -> None:
    run(sys.executable, "-c", IMPORT_WITHOUT_WHAT_FEW_PROCESSES_USE)


@pytest.mark.slow
def test_ruff_is_clean() -> None:
    run(tool("ruff"), "check", ".")
    run(tool("ruff"), "format", "--check", ".")


@pytest.mark.slow
def test_mypy_is_clean() -> None:
    run(tool("mypy"))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_module_is_short_well_named_and_documented(module: Path) -> None:
    text = module.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert module.stem not in VAGUE_NAMES
    assert ast.get_docstring(ast.parse(text)), "a module says in its first lines what it is responsible for"


def test_versions_of_direct_dependencies_are_pinned() -> None:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    wanted += [requirement for extra in ("mlflow",) for requirement in project["optional-dependencies"][extra]]
    pinned = {_name(pin): pin for pin in PROJECT["tool"]["uv"]["constraint-dependencies"]}
    assert {_name(requirement) for requirement in wanted} <= pinned.keys()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pinned.values())


def test_version_is_written_once_in_agreement() -> None:
    from vaegen_ray import __version__

    assert PROJECT["project"]["version"] == __version__


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match.group()).lower()
