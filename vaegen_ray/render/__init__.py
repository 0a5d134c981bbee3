"""Manifests that run a job on a cluster's own scheduler: KubeRay, Slurm. Needs neither torch nor Ray."""
