"""A package, so that no package of this name among the dependencies stands in its place."""
