"""Comparisons: their directory, and what their runs say together. From storage alone."""
