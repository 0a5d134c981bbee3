"""How a step, a run and a resume work. Knows nothing of Ray."""
