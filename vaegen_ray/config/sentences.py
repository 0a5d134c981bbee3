"""What pydantic found wrong with a job, as sentences: dotted key, rule, value, remedy."""

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

LONGEST_VALUE = 60
"""Characters of a value that a sentence shows."""

RULES = {
    "bool_type": "must be true or false",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_type": "must be a whole number",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must not be empty",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a section of 'key: value' lines"),
}
"""Rule by pydantic's type of error; what is not here speaks for itself."""

NUMBER_TYPES = ("int_type", "float_type")
_KEY = r"[a-z_]\w*(\[\d+\])?(\.\w+(\[\d+\])?)*"


def sentences(error: ValidationError, job: type[BaseModel], *, num_tags: int = 1) -> list[str]:
    """One sentence for each broken rule, in the order of the schema.

    ``num_tags``: how many of pydantic's tags of unions stand before the first key.
    """
    details = ({**detail, "loc": detail["loc"][num_tags:]} for detail in error.errors())
    return list(dict.fromkeys(sentence for detail in details for sentence in _sentences(detail, job)))


def shown(value: Any) -> str:
    """The value as a user would write it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        text = f"'{value}'"
    elif isinstance(value, float) and not math.isfinite(value):
        text = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[str(value)]
    elif isinstance(value, dict):
        text = f"a section with {', '.join(map(str, value))}" if value else "an empty section"
    else:
        text = json.dumps(value, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def one_of(names: Iterable[str]) -> str:
    """Return "one of 'a', 'b'", or the only name."""
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"one of {', '.join(quoted)}"


def must_be(choices: Iterable[str], value: Any) -> str:
    """The rule of a choice, the value, and the choice that it resembles."""
    choices = list(choices)
    close = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    return f"must be {one_of(choices)}, got {shown(value)}" + (f"; did you mean '{close[0]}'?" if close else "")


# ---------------------------------------------------------------------------- one error


def _sentences(detail: Any, job: type[BaseModel]) -> Iterator[str]:
    place = _Place.of(detail, job)
    path, kind, value = place.path, detail["type"], detail["input"]
    if kind == "value_error":
        for rule in str(detail["ctx"]["error"]).split("\n"):
            yield _of_our_own_rule(rule, path, value)
    elif kind == "extra_forbidden":
        yield f"{path}: no such key; {_similar_key(place, job)}"
    elif kind == "missing" and isinstance(detail["loc"][-1], int):
        yield f"{place.list_path}: must be a list of {place.list_length} values, got {shown(value)}"
    elif kind in ("too_long", "too_short"):
        # Pydantic counts only the values that are right; the others have sentences of their own.
        if kind == "too_long" or len(value) < detail["ctx"]["min_length"]:
            yield f"{path}: {_length(detail, place.annotation)}, got {shown(value)}"
    elif kind == "missing":
        kinds = _kinds(place.models) if place.key == "kind" else []
        yield f"{path}: is required{f', {one_of(kinds)}' if kinds else ''}; add it"
    elif kind == "union_tag_not_found" or (kind == "union_tag_invalid" and value["kind"] is None):
        yield f"{path}.kind: is required, {one_of(_kinds(place.candidates))}; add it"
    elif kind == "union_tag_invalid":
        yield f"{path}.kind: {must_be(_kinds(place.candidates), value['kind'])}"
    elif kind == "literal_error":
        yield f"{path}: {must_be(_choices(place.annotation), value)}"
    else:
        yield f"{path}: {_rule(detail)}, got {shown(value)}{_remedy(kind, value)}"


def _of_our_own_rule(rule: str, path: str, value: Any) -> str:
    """A rule between keys names its keys itself, from the root or from its section; a rule of a value does not."""
    match = re.match(rf"({_KEY}): ", rule)
    if match:
        from_root = not path or "." in match.group(1)
        return rule if from_root else f"{path}.{rule}"
    must, semicolon, remedy = rule.partition("; ")
    return f"{path}: {must}, got {shown(value)}{semicolon}{remedy}"


def _rule(detail: Any) -> str:
    if detail["type"] in RULES:
        return RULES[detail["type"]].format(**detail.get("ctx", {}))
    text = re.sub(r"^Input should be", "must be", detail["msg"])
    return text[0].lower() + text[1:]


def _length(detail: Any, annotation: Any) -> str:
    """How many values a list must have, or keys a section whose keys are the user's."""
    if get_origin(annotation) is tuple and Ellipsis not in get_args(annotation):
        return f"must be a list of {len(get_args(annotation))} values"
    bound, key = ("least", "min_length") if detail["type"] == "too_short" else ("most", "max_length")
    number, what = detail["ctx"][key], "key" if isinstance(detail["input"], dict) else "value"
    return f"must have at {bound} {number} {what}{'s' if number > 1 else ''}"


def _remedy(kind: str, value: Any) -> str:
    if value is None:
        return "; give a value or remove the line"
    if kind in NUMBER_TYPES and isinstance(value, str) and re.fullmatch(r"[-+]?[\d._]+([eE][-+]?\d+)?", value):
        return "; write it without quotes"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return "; write it in quotes"
    return ""


def _similar_key(place: "_Place", job: type[BaseModel]) -> str:
    owners = [model for model in place.siblings if place.key in model.model_fields]
    if owners:
        return f"it belongs to the kind {' or '.join(repr(kind) for kind in _kinds(owners))}; remove it"
    known = sorted({name for model in place.models for name in model.model_fields})
    close = difflib.get_close_matches(place.key, known, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    elsewhere = [path for path in _all_keys(job) if path.split(".")[-1] == place.key]
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    return f"known here: {', '.join(known)}"


# ---------------------------------------------------------------------------- where an error is


class _Place:
    """The place in the file of an error: its keys, without the tags of unions that pydantic mixes in."""

    def __init__(self, annotation: Any) -> None:
        self.parts: list[str | int] = []
        self.annotation = annotation
        """Type of the value at this place, None where the schema has no such place."""
        self.models: list[type[BaseModel]] = []
        """The sections that may hold the last key: more than one where the file does not say which."""
        self.siblings: list[type[BaseModel]] = []
        """The sections of all kinds, one of which holds the last key."""
        self.list_annotation: Any = None

    @classmethod
    def of(cls, detail: Any, job: type[BaseModel]) -> "_Place":
        place, loc = cls(job), detail["loc"]
        for i, part in enumerate(loc):
            is_unknown_key = detail["type"] == "extra_forbidden" and i == len(loc) - 1
            if isinstance(part, int):
                place._enter_item(part)
            elif get_origin(place.annotation) is dict:
                place._enter_entry(part)
            elif len(place.candidates) > 1 or not (is_unknown_key or place._has_key(part)):
                place._follow_tag(part)
            else:
                place._enter_key(part)
        return place

    def _enter_item(self, index: int) -> None:
        self.parts.append(index)
        self.list_annotation = self.annotation
        items = get_args(self.annotation)
        self.annotation = items[index] if index < len(items) and items[-1] is not Ellipsis else next(iter(items), None)

    def _enter_entry(self, key: str) -> None:
        """Enter a mapping whose keys are the user's."""
        self.parts.append(key)
        self.annotation = get_args(self.annotation)[1]
        self.models = []

    def _enter_key(self, key: str) -> None:
        self.parts.append(key)
        self.models = self.candidates
        fields = [model.model_fields[key] for model in self.models if key in model.model_fields]
        self.annotation = fields[0].annotation if fields else None
        self.siblings = [] if fields else self.siblings

    def _has_key(self, key: str) -> bool:
        return any(key in model.model_fields for model in self.candidates)

    def _follow_tag(self, tag: str) -> None:
        self.siblings = self.candidates
        tagged = [model for model in self.siblings if tag in _kinds([model])]
        self.annotation = tagged[0] if tagged else self.annotation

    @property
    def candidates(self) -> list[type[BaseModel]]:
        """The sections that the value at this place may be."""
        return _sections(self.annotation)

    @property
    def key(self) -> str:
        return str(self.parts[-1]) if self.parts else ""

    @property
    def path(self) -> str:
        return _dotted(self.parts)

    @property
    def list_path(self) -> str:
        """Where the last key is the number of a value: the list that holds it."""
        return _dotted(self.parts[:-1])

    @property
    def list_length(self) -> int:
        return len(get_args(self.list_annotation))


def _dotted(parts: list[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _sections(part)]


def _choices(annotation: Any) -> list[str]:
    """The values of a Literal, which may stand beside None."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _kinds(models: Iterable[type[BaseModel]]) -> list[str]:
    fields = [model.model_fields["kind"] for model in models if "kind" in model.model_fields]
    return [str(kind) for field in fields for kind in get_args(field.annotation)]


def _all_keys(section: type[BaseModel], above: str = "") -> Iterator[str]:
    """Dotted paths of all keys that a job may have."""
    for name, field in section.model_fields.items():
        yield f"{above}{name}"
        if get_origin(field.annotation) is not tuple:
            for below in _sections(field.annotation):
                yield from _all_keys(below, f"{above}{name}.")
