"""From a page's data to one HTML file that needs no network."""

import base64
import gzip
import html
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent / "assets"


def html_page(data: dict[str, Any], *, live: str | None = None) -> str:
    """The file. ``live`` is where the page looks for newer data, every few seconds; a file on a disk never does.

    plotly.js is in it compressed, which makes 2 MB of its 4.8; the browser unpacks it.
    """
    # A `</script>` inside of the data would end it, and a `<!--<script>` would keep it from ending.
    content = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">',
            f"<title>{html.escape(str(data['title']))}</title><style>{_asset('page.css')}</style></head><body>",
            '<header><p id="kind"></p><h1 id="title"></h1><p id="subtitle"></p></header><nav id="contents"></nav>',
            '<main id="blocks"></main><dialog id="detail"></dialog>',
            f'<script type="application/json" id="data">{content}</script>',
            f'<script type="text/plain" id="plotly">{_plotly()}</script>',
            f"<script>const LIVE = {json.dumps(live)};\n{_asset('page.js')}</script></body></html>\n",
        )
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text()


@lru_cache(maxsize=1)
def _plotly() -> str:
    """plotly.js as its package ships it, compressed, in base64."""
    import plotly

    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    return base64.b64encode(gzip.compress(script.read_bytes(), 9, mtime=0)).decode()
