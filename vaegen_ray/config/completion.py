"""Values that follow from others, filled into a job's tree before it is validated.

So a resolved job shows every value, and no later code asks whether one is absent.
"""

import math
from typing import Any

from pydantic import BaseModel

from vaegen_ray.config.presets import PRESETS, Sizes
from vaegen_ray.config.sentences import must_be, shown

Tree = dict[str, Any]

REPORTS_PER_RUN = 200
CHECKPOINTS_PER_RUN = 10


def complete(tree: Tree) -> Tree:
    """Return ``tree`` with the preset and the dependent defaults filled in; malformed parts pass unchanged.

    Completing what is complete changes nothing. Sections may be given as objects: they become trees again.
    """
    tree = _as_tree(tree)
    objective = tree.get("objective")
    if not isinstance(objective, dict):
        return tree
    model = tree.get("model")
    model = model if isinstance(model, dict) else {}
    model_kind = model.get("kind")
    if model_kind == "kl_autoencoder" and model.get("freeze_encoder") is True:
        # Before the preset, whose weight would have no effect.
        objective = merged({"kl": {"weight": 0.0}}, objective)
    objective = tree["objective"] = _expand_preset(objective, tree)
    kind = objective.get("kind")
    if kind == "vae_gan":
        _complete_adversarial(objective, shows="reconstructions" if model_kind == "kl_autoencoder" else "both")
    if kind == "gan":
        _set_default(objective, "adversarial", "balance", {"kind": "fixed", "weight": 1.0})
        _set_default(objective, "adversarial", "shows", "generated")
    if kind in ("gan", "vae_gan"):
        _set_default(objective, "discriminator", "kind", "convolutional")
        _set_default(tree, "optimizer", "discriminator", {})
        if isinstance(tree["optimizer"], dict):
            _set_default(tree["optimizer"], "discriminator", "betas", [0.5, 0.99])
    if kind in ("vae", "vae_gan") and model_kind == "convolutional":
        _set_default(tree, "model", "encoder", {})
    _complete_intervals(tree)
    return tree


def merged(below: Tree, above: Tree) -> Tree:
    """Return the two trees as one; where both have a value ``above`` wins, and another ``kind`` replaces the whole."""
    if "kind" in above and above["kind"] != below.get("kind", above["kind"]):
        return above
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _expand_preset(objective: Tree, tree: Tree) -> Tree:
    name = objective.get("preset")
    if name is None:
        return objective
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"objective.preset: {must_be(PRESETS, name)}")
    sizes = Sizes(
        values_per_image=_count(tree, "model", "channels") * _count(tree, "model", "image_size") ** 2,
        images_per_step=_count(tree, "training", "images_per_step"),
    )
    preset = PRESETS[name](sizes)
    if objective.get("kind", preset["kind"]) != preset["kind"]:
        raise ValueError(
            f"objective.preset: '{name}' is a preset of the kind '{preset['kind']}', got the kind "
            f"{shown(objective['kind'])}; remove objective.kind or the preset"
        )
    return merged(preset, objective)


def _count(tree: Tree, section: str, key: str) -> int:
    """The count, or 1 where it is missing or malformed: the schema refuses the job for that, in a sentence."""
    part = tree.get(section)
    value = part.get(key) if isinstance(part, dict) else None
    return value if isinstance(value, int) and value >= 1 else 1


def _complete_adversarial(objective: Tree, shows: str) -> None:
    adversarial = objective.get("adversarial")
    if isinstance(adversarial, dict):
        _set_default(objective, "adversarial", "shows", shows)
        if objective["adversarial"]["shows"] != "generated":
            _set_default(objective, "adversarial", "reaches_encoder", value=True)


def _complete_intervals(tree: Tree) -> None:
    training = tree.get("training")
    total = training.get("total_images") if isinstance(training, dict) else None
    if isinstance(total, bool) or not isinstance(total, int | float) or not 1 <= total < math.inf:
        return
    total = int(total)  # 50e6 is a float in YAML.
    _set_default(tree, "training", "report_every_images", max(1, total // REPORTS_PER_RUN))
    _set_default(tree, "training", "checkpoint_every_images", max(1, total // CHECKPOINTS_PER_RUN))


def _as_tree(value: Any) -> Any:
    """Return a copy of nested dicts, with sections that are objects as dicts of what was given to them."""
    if isinstance(value, BaseModel):
        value = {key: getattr(value, key) for key in value.model_fields_set}
    return {key: _as_tree(part) for key, part in value.items()} if isinstance(value, dict) else value


def _set_default(tree: Tree, section: str, key: str, value: Any) -> None:
    part = tree.get(section, {})
    if isinstance(part, dict) and part.get(key) is None:
        tree[section] = {**part, key: value}
