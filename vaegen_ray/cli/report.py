"""`vaegen report`: a run, a search or a comparison as one HTML file."""

import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vaegen_ray.errors import JobError
from vaegen_ray.storage import Location

if TYPE_CHECKING:
    from vaegen_ray.search.directory import SearchDirectory

MARKS = {"job.json": "run", "search.json": "search", "compare.json": "comparison"}
"""The file that tells what a directory is of."""


def report(
    place: Annotated[str, typer.Argument(metavar="RUN|SEARCH|COMPARISON", help="A directory, local or s3://.")],
    output: Annotated[str | None, typer.Option(help="HTML file, local or s3://; by default report.html there.")] = None,
    opens: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,  # noqa: FBT002
) -> None:
    """Write one HTML file that needs no network: what was run, curves, pictures, incidents, fronts and tables."""
    from vaegen_ray.report.page import html_page

    root = Location.of(place)
    page = html_page(page_data(root))
    file = Location.of(output) if output is not None else root / "report.html"
    file.write_text(page)
    Console(markup=False).print(f"report: {file} ({len(page.encode()) / 1e6:.1f} MB)", soft_wrap=True, highlight=False)
    if opens:
        local = file.local_path if file.is_local else _copied(page)
        webbrowser.open(local.as_uri())


def kind_of(root: Location) -> str | None:
    """`run`, `search` or `comparison`; None where ``root`` is none of them."""
    names = root.names()
    return next((kind for mark, kind in MARKS.items() if mark in names), None)


def page_data(root: Location) -> dict[str, Any]:
    """The page of whatever is in ``root``; JobError where that is no run, search or comparison."""
    from vaegen_ray.compare.directory import CompareDirectory
    from vaegen_ray.config.run_directory import RunDirectory
    from vaegen_ray.report.comparison import comparison_page
    from vaegen_ray.report.run import run_page
    from vaegen_ray.report.search import search_page
    from vaegen_ray.search.directory import SearchDirectory

    match kind_of(root):
        case "run":
            return run_page(RunDirectory(root))
        case "search":
            directory = SearchDirectory(root)
            return search_page(directory, _importances(directory))
        case "comparison":
            return comparison_page(CompareDirectory(root))
        case _:
            raise JobError(
                f"{root}: must be the directory of a run, a search or a comparison, found none of "
                f"{', '.join(MARKS)} there"
            )


def _importances(directory: "SearchDirectory") -> dict[str, dict[str, float]]:
    from vaegen_ray.on_ray.importance import importances
    from vaegen_ray.search.log import read_trials
    from vaegen_ray.search.open import load_search

    return importances(load_search(directory), read_trials(directory))


def _copied(page: str) -> Path:
    """A local copy of a report in an object store, for the browser."""
    with tempfile.NamedTemporaryFile("w", suffix=".html", prefix="vaegen-report-", delete=False) as file:
        file.write(page)
    return Path(file.name)
