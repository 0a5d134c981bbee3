"""`vaegen validate` as a user calls it, and the exit codes of the application."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.config.samples import tree_of
from vaegen_ray import __version__
from vaegen_ray.cli.main import main

QUICKSTART = "jobs/train/vae_gan_quickstart.yaml"

VALIDATE_AND_LIST_MODULES = """
import json, sys, time
started = time.perf_counter()
from vaegen_ray.cli.main import main
try:
    main()
finally:
    heavy = [name for name in ("torch", "ray", "optuna", "pyarrow", "numpy") if name in sys.modules]
    print(json.dumps({"heavy": heavy, "seconds": time.perf_counter() - started}), file=sys.stderr)
"""


def vaegen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Exit code, output and errors of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["vaegen", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    return int(ended.value.code or 0), output.out, output.err


def test_validate_imports_nothing_heavy_and_is_quick() -> None:
    done = subprocess.run(
        [sys.executable, "-c", VALIDATE_AND_LIST_MODULES, "validate", QUICKSTART],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{QUICKSTART}: a valid train job named 'vae_gan_quickstart'\n"
    assert json.loads(done.stderr)["heavy"] == []


def test_valid_jobs_exit_0(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = vaegen(capsys, monkeypatch, "validate", QUICKSTART, "jobs/prepare/cifar10.yaml")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{QUICKSTART}: a valid train job named 'vae_gan_quickstart'",
        "jobs/prepare/cifar10.yaml: a valid prepare job named 'cifar10'",
    ]


def test_every_bad_file_is_reported_and_the_good_ones_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(tree_of() | {"sed": 1, "optimizer": {"generator": {"betas": [0.5, 1]}}}))
    code, out, err = vaegen(capsys, monkeypatch, "validate", bad, QUICKSTART, tmp_path / "nope.yaml")
    assert code == 2
    assert out == f"{QUICKSTART}: a valid train job named 'vae_gan_quickstart'\n"
    assert err.splitlines() == [
        f"error: {bad}: optimizer.generator.betas[1]: must be below 1, got 1",
        f"{bad}: sed: no such key; did you mean 'seed'?",
        f"{tmp_path}/nope.yaml: there is no such job file",
    ]


def test_overrides_are_validated_too(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = vaegen(capsys, monkeypatch, "validate", QUICKSTART, "--set", "training.total_image=50e6")
    assert code == 2
    assert err == f"error: {QUICKSTART}: training.total_image: no such key; did you mean 'total_images'?\n"


def test_version_and_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert vaegen(capsys, monkeypatch, "--version") == (0, f"vaegen_ray {__version__}\n", "")
    code, out, _ = vaegen(capsys, monkeypatch, "--help")
    assert code == 0
    for verb in ("train", "validate", "plan", "prepare", "evaluate", "sample", "reconstruct", "interpolate", "bench"):
        assert verb in out


def test_unknown_verb_exits_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = vaegen(capsys, monkeypatch, "trian", QUICKSTART)
    assert code == 2
    assert "trian" in err
