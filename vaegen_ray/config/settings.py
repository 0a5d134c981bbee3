"""Dotted paths into a job's tree: listing them, and replacing what they name."""

from collections.abc import Mapping
from typing import Any

from vaegen_ray.config.sentences import shown
from vaegen_ray.errors import JobError

Tree = dict[str, Any]

KEYS_OF_A_RESOLVED_JOB = {
    "name", "seed", "storage", "data", "model", "objective", "optimizer", "training", "evaluation", "tracking",
    "watchdog", "changes", "resources",
}  # fmt: skip
"""Less only its kind: a job file by hand leaves some of them to their defaults."""


def with_settings(tree: Tree, settings: Mapping[str, Any]) -> Tree:
    """Return ``tree`` with the value of every dotted path replaced.

    Giving a section another ``kind`` drops the section's other keys, which belong to the old kind; so kinds
    are applied before all else, outer ones first, and the order of the settings does not matter for that.
    JobError where a path leads through a plain value, or a preset would lose to values that all stand there.
    """
    preset = settings.get("objective.preset")
    if preset is not None and "objective.kind" not in settings and tree.keys() >= KEYS_OF_A_RESOLVED_JOB:
        raise JobError(
            f"objective.preset: has no effect on a job in which every key has its value, got {shown(preset)}; give the "
            "section as a whole, `objective: {preset: NAME, ...}`"
        )
    for path, value in sorted(settings.items(), key=lambda setting: _rank_of_kind(setting[0].split("."))):
        tree = _replaced(tree, path.split("."), value, path)
    return tree


def flat(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Dotted path to value, for every leaf of ``tree``."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves.update(flat(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves


def _rank_of_kind(keys: list[str]) -> float:
    return len(keys) if keys[-1] == "kind" else float("inf")


def _replaced(tree: Any, keys: list[str], value: Any, path: str) -> Tree:
    if not isinstance(tree, dict):
        above = path.removesuffix("." + ".".join(keys))
        raise JobError(f"{path}: '{above}' is a plain value, {shown(tree)}; set that as a whole")
    num_words = _words_of_key(tree, keys)
    key, rest = ".".join(keys[:num_words]), keys[num_words:]
    if rest:
        below = tree.get(key)
        return {**tree, key: _replaced({} if below is None else below, rest, value, path)}
    if key == "kind" and tree.get("kind") not in (None, value):
        return {"kind": value}
    return {**tree, key: value}


def _words_of_key(tree: Tree, keys: list[str]) -> int:
    """How many of ``keys`` make the next key: one, except among the axes of a space, whose names have dots."""
    for num_words in range(len(keys), 0, -1):
        if ".".join(keys[:num_words]) in tree:
            return num_words
    return len(keys) if any("." in key for key in tree) else 1
