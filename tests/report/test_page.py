"""The pages as they are looked at: in headless Chromium, from a file, without a network."""

import json
import math
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.report.conftest import Browser
from tests.search.samples import search_job
from vaegen_ray.cli.main import app
from vaegen_ray.cli.report import page_data
from vaegen_ray.compare.directory import CompareDirectory
from vaegen_ray.config.loading import dump_job
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.report.page import html_page
from vaegen_ray.runs.attempts import Attempt, AttemptState, now, write_attempt
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import TrialLog
from vaegen_ray.search.trials import TrialState, asked, ended, started
from vaegen_ray.storage import Location

FIVE_MB = 5_000_000


def report(root: Location, file: Path) -> Path:
    result = CliRunner().invoke(app, ["report", root.url, "--output", str(file)])
    assert result.exit_code == 0, result.output
    assert file.stat().st_size < FIVE_MB
    return file


@pytest.mark.slow
def test_page_of_a_run_opens_from_a_file_and_its_slider_moves(
    trained: RunDirectory, browser: Browser, tmp_path: Path
) -> None:
    page = report(trained.root, tmp_path / "report.html")
    browser.look_like(width=1280, dark=False)
    browser.open(page.as_uri())
    assert browser.errors() == []
    text = browser.script("return document.body.innerText")
    for expected in ("a-run-more", "400 of 400 images", "Adversarial share", "Where the time went", "Incidents"):
        assert expected in text, expected
    assert "<b>job</b>.yaml" in text, "what a user typed is text, not markup"
    assert browser.script("return document.querySelectorAll('.chart .main-svg').length") > 10
    ramp = browser.script("return [...document.querySelectorAll('.annotation-text')].map(e => e.textContent)")
    assert "adversarial ramp" in ramp
    first = browser.script(
        "const i = document.querySelector('.slide input');"
        "return [i.value, i.closest('section').querySelector('img').src]"
    )
    moved = browser.script(
        "const i = document.querySelector('.slide input'); i.value = 0; i.dispatchEvent(new Event('input'));"
        "const s = i.closest('section'); return [s.querySelector('output').textContent, s.querySelector('img').src]"
    )
    assert (first[0], moved[0]) == ("5", "0 images")
    assert first[1] != moved[1]
    for name, (width, dark) in {"light": (1280, False), "dark": (1280, True), "phone": (390, False)}.items():
        browser.look_like(width=width, dark=dark)
        until_s = time.monotonic() + 10  # Charts follow the width a moment later.
        while browser.script("return document.documentElement.scrollWidth") > width:
            assert time.monotonic() < until_s, f"{name} scrolls sideways"
            time.sleep(0.1)
    ground = browser.script("return getComputedStyle(document.body).backgroundColor")
    browser.look_like(width=1280, dark=True)
    assert browser.script("return getComputedStyle(document.body).backgroundColor") != ground
    assert browser.errors() == []


@pytest.mark.slow
def test_page_of_a_search_opens_a_trial_from_the_front_and_sorts_and_filters(
    search: SearchDirectory, browser: Browser, tmp_path: Path
) -> None:
    page = report(search.root, tmp_path / "report.html")
    browser.look_like(width=1280, dark=False)
    browser.open(page.as_uri())
    assert browser.errors() == []
    titles = browser.script("return [...document.querySelectorAll('h2')].map(e => e.textContent)")
    for title in (
        "The front",
        "Parallel coordinates",
        "Which axes mattered",
        "Hypervolume of the front",
        "Leaderboard",
    ):
        assert title in titles
    traces = browser.script("return document.querySelector('.chart').data.map(t => [t.name, t.customdata])")
    (front,) = [names for name, names in traces if name == "front"]
    clicked = browser.script(
        "const c = document.querySelector('.chart'); const t = c.data.findIndex(t => t.name === 'front');"
        "c.emit('plotly_click', {points: [{customdata: c.data[t].customdata[0]}]}); return location.hash"
    )
    assert clicked == f"#{front[0]}"
    detail = browser.script(
        "return new Promise(r => setTimeout(() => r(document.querySelector('dialog').innerText), 300))"
    )
    assert f"Trial {front[0].removeprefix('trial-')}" in detail
    assert "vaegen train" in detail
    browser.script("document.querySelector('dialog button').click()")
    rows = (
        "const s = [...document.querySelectorAll('section')]"
        ".find(s => s.querySelector('h2').textContent === 'Leaderboard');"
        "{} return [...s.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    everyone = browser.script(rows.format(""))
    assert len(everyone) == 14
    click = "[...s.querySelectorAll('th button')].find(b => b.textContent === 'sample_swd').click();"
    place = 6
    ascending = [float(row[place]) for row in browser.script(rows.format(click)) if row[place]]
    assert ascending == sorted(ascending)
    descending = [float(row[place]) for row in browser.script(rows.format(click)) if row[place]]
    assert descending == ascending[::-1]
    filter_ = "const i = s.querySelector('input'); i.value = 'stopped'; i.dispatchEvent(new Event('input'));"
    (kept,) = browser.script(rows.format(filter_))
    assert kept[-1] == "at 32 images others were better <i>"
    assert browser.errors() == []


@pytest.mark.slow
def test_page_of_a_comparison_shows_table_significance_and_stability(
    comparison: CompareDirectory, browser: Browser, tmp_path: Path
) -> None:
    page = report(comparison.root, tmp_path / "report.html")
    browser.look_like(width=1280, dark=False)
    browser.open(page.as_uri())
    assert browser.errors() == []
    best = browser.script("return [...document.querySelectorAll('td.best')].map(e => e.textContent)")
    assert best == ["0.11 ± 0.01"], "only the significant difference is emphasised"
    text = browser.script("return document.body.innerText")
    assert "1 of 3" in text
    assert "strict-2: watchdog.posterior_collapse" in text


def test_report_names_no_place_outside_of_itself(trained: RunDirectory, tmp_path: Path) -> None:
    page = report(trained.root, tmp_path / "report.html").read_text()
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']+""", page) == []
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    kinds = {block["type"] for block in data["blocks"]}
    assert kinds == {"table", "slider", "pictures", "chart", "note", "facts", "source"}


def test_report_of_a_run_with_damaged_records_and_a_number_that_is_not_finite_is_made(
    trained: RunDirectory, tmp_path: Path
) -> None:
    shutil.copytree(str(trained.root), tmp_path / "run")
    run = RunDirectory(Location.of(tmp_path / "run"))
    run.provenance.write_text("")
    run.incidents.write_text('[{"time"')
    with (tmp_path / "run/metrics.jsonl").open("a") as metrics:
        metrics.write('{"position": 408, "generator_loss": null, "not_finite": {"generator_loss": "nan"}}\n')
    page = html_page(page_data(run.root))
    assert "provenance.json: must be JSON, is damaged" in page
    assert "incidents.json: must be JSON, is damaged" in page


def test_report_of_a_run_with_records_of_another_shape_is_made(trained: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(str(trained.root), tmp_path / "run")
    run = RunDirectory(Location.of(tmp_path / "run"))
    bare_start, bare_incident = {"position": 0, "dataset": {}}, {"rule": "x", "position": 1, "action": "warn"}
    run.provenance.write_text(json.dumps([bare_start, bare_start]))
    run.incidents.write_text(json.dumps([bare_incident]))
    assert "x; warned" in html_page(page_data(run.root))
    run.provenance.write_text("[{}]")
    run.incidents.write_text("[{}]")
    page = html_page(page_data(run.root))
    assert "provenance.json: must be a list of entries with dataset, position, is damaged" in page
    assert "incidents.json: must be a list of entries with action, position, rule, is damaged" in page


def test_text_of_a_page_cannot_leave_its_block() -> None:
    page = html_page({"title": "a", "blocks": ["</script>", "<!--<script>"]})
    (content,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert "<" not in content
    assert json.loads(content)["blocks"] == ["</script>", "<!--<script>"]


def test_page_of_a_search_of_thousands_of_trials_takes_seconds(tmp_path: Path) -> None:
    """Ten thousand took over a minute: each trial was looked for in lists of the others."""
    job = search_job(tmp_path, trials=5000)
    directory = SearchDirectory.of(job)
    directory.job_file.write_text(dump_job(job))
    log = TrialLog(directory)
    log.record(asked(0, {"objective.kl.weight": 1.0}))
    page_data(directory.root)  # The imports, which take half of the time.
    for number in range(1, 5000):
        scores = {"reconstruction_psnr": math.sin(number), "sample_swd": math.cos(1.7 * number)}
        log.record(asked(number, {"objective.kl.weight": 1.0 + number / 5000}))
        log.record(started(number))
        log.record(ended(number, TrialState.COMPLETE, scores=scores))
    log.close()
    begun_s = time.process_time()
    assert page_data(directory.root)["title"] == job.name
    assert time.process_time() - begun_s < 20


def test_report_of_another_folder_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert "must be the directory of a run, a search or a comparison" in str(result.exception)


def test_watch_shows_how_each_stands(
    trained: RunDirectory, search: SearchDirectory, comparison: CompareDirectory
) -> None:
    for root, expected in (
        (trained.root, "400 of 400 images"),
        (search.root, "14 of 14 trials over"),
        (comparison.root, "strict-2"),
    ):
        result = CliRunner().invoke(app, ["watch", root.url], env={"COLUMNS": "160"})
        assert result.exit_code == 0, result.output
        assert expected in result.output


@pytest.mark.timeout(60)
def test_watch_of_a_run_whose_submission_failed_ends_and_says_why(trained: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(Location.of(tmp_path) / "failed")
    run.job_file.write_text(trained.job_file.read_text())
    run.metrics.write_text(trained.metrics.read_text())
    attempt = Attempt(1, "tiny-a1", "http://127.0.0.1:9", "process 7", now(), now())
    write_attempt(run.root, replace(attempt, state=AttemptState.FAILED, exit_code=1, error="the loss is not finite"))
    result = CliRunner().invoke(app, ["watch", run.root.url], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "failed: the loss is not finite" in result.output
