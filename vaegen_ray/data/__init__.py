"""From images anywhere to batches: preparing a dataset, reading it in a reproducible order."""
