"""Tiny networks run faster in one thread."""

from tests.objectives.conftest import one_thread

__all__ = ["one_thread"]
