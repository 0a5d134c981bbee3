"""The base of every section of a job, and the value types that sections share."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A part of a job: frozen, complete, and closed to keys that it does not know."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )


LAST_IMAGE = 10**12 - 1
"""End of the clock: folders of checkpoints are named by twelve digits."""


def _whole(value: Any) -> Any:
    """Take `50e6`, which is a float in YAML, for the whole number that it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# All are strict, because pydantic otherwise takes `true` for 1 and '64' for 64.
Count = Annotated[int, Field(ge=1, strict=True)]
"""How many, at least one."""

Images = Annotated[int, Field(ge=0, le=LAST_IMAGE, strict=True), BeforeValidator(_whole)]
"""A point or a length on the clock, which counts images."""

PositiveImages = Annotated[int, Field(ge=1, le=LAST_IMAGE, strict=True), BeforeValidator(_whole)]
"""A length on the clock of at least one image."""

Bytes = Annotated[int, Field(ge=1, strict=True), BeforeValidator(_whole)]
"""A size; `50e9` is 50 GB."""

Weight = Annotated[float, Field(ge=0, strict=True)]
"""A multiplier in a sum."""

PositiveFloat = Annotated[float, Field(gt=0, strict=True)]

Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]

ProperFraction = Annotated[float, Field(ge=0, lt=1, strict=True)]
"""A part that is less than the whole."""

LARGEST_SEED = 2**63 - 1
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED, strict=True)]
"""Of random generators, which take no more."""

Flag = Annotated[bool, Field(strict=True)]

Text = Annotated[str, Field(min_length=1)]
"""A path or a name; never empty."""

NAME_PATTERN = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,99}")


def _is_a_folder_name(value: str) -> str:
    if not NAME_PATTERN.fullmatch(value):
        raise ValueError("must be 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter or digit")
    return value


Name = Annotated[str, AfterValidator(_is_a_folder_name)]
"""Of a folder, on a disk or in an object store."""


class Goal(Section):
    """A metric, and which way is better."""

    metric: Text
    """A score of `vaegen evaluate`, such as `sample_fid` or `reconstruction_psnr`."""
    goal: Literal["minimize", "maximize"]

    def cost(self, scores: Mapping[str, float]) -> float:
        """The metric, turned so that less is better."""
        return scores[self.metric] if self.goal == "minimize" else -scores[self.metric]
