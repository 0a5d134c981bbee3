"""The search as data: axes, trials, fronts. No optimiser inside, and no Ray."""
