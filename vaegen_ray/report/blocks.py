"""What a page is made of. A page is data; the script in it draws the data, in a file and on a server alike."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vaegen_ray.storage import Location

Block = dict[str, Any]
"""A JSON object with a `type` that `assets/page.js` draws."""


def facts(title: str, rows: Sequence[tuple[str, object]]) -> Block:
    """Names and values."""
    return {"type": "facts", "title": title, "rows": [[name, str(value)] for name, value in rows]}


def note(title: str, sentences: Sequence[str]) -> Block:
    """A list of sentences."""
    return {"type": "note", "title": title, "sentences": list(sentences)}


def source(title: str, text: str) -> Block:
    """Text as it stands in a file, folded."""
    return {"type": "source", "title": title, "text": text}


def chart(
    title: str, traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], *, note: str = "", height: int = 320
) -> Block:
    """Traces and layout of plotly.js. A point whose `customdata` is text opens the detail of that name."""
    return {
        "type": "chart", "title": title, "traces": list(traces), "layout": dict(layout), "note": note,
        "height": height,
    }  # fmt: skip


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    opens: Sequence[str] = (),
    best: Sequence[Sequence[int]] = (),
    note: str = "",
    filters: bool = True,
) -> Block:
    """A table that sorts by its columns, and filters. ``opens``: of each row, the detail that a click on it opens.

    ``best``: row and column of the cells to be emphasised.
    """
    return {
        "type": "table", "title": title, "columns": list(columns),
        "rows": [[_cell(cell) for cell in row] for row in rows],
        "opens": list(opens), "best": [list(cell) for cell in best], "note": note, "filters": filters,
    }  # fmt: skip


def slider(title: str, frames: Sequence[tuple[str, str]], *, note: str = "") -> Block:
    """Pictures (label, data URI), one at a time, the last first."""
    return {"type": "slider", "title": title, "frames": [list(frame) for frame in frames], "note": note}


def pictures(title: str, items: Sequence[tuple[str, str]], *, note: str = "") -> Block:
    """Pictures (caption, data URI) beside each other."""
    return {"type": "pictures", "title": title, "items": [list(item) for item in items], "note": note}


def picture_uri(file: Location) -> str:
    """A PNG file as a URI that holds it whole."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _cell(value: object) -> object:
    """Numbers stay numbers, because a table sorts by them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else str(value)
