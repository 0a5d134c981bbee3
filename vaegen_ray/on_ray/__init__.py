"""The only package that imports ray or optuna: the training core, run on a cluster."""

import os

# Under `uv run`, Ray would send the working directory to its workers and have uv install everything there again.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
