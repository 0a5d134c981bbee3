"""Where the numbers and pictures of a run go: JSON lines and TensorBoard always, MLflow and W&B on request."""
