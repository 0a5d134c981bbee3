"""What storage says of a run besides its results: who writes it, its attempts, their logs, and how it stands."""
