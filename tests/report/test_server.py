"""The server of pages: read-only, from storage, updating by itself."""

import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import Browser
from vaegen_ray.cli.report import page_data
from vaegen_ray.compare.directory import CompareDirectory
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.report import server as server_module
from vaegen_ray.report.server import Server
from vaegen_ray.runs.attempts import Attempt, now, write_attempt
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.storage import Location


@pytest.fixture
def server(
    trained: RunDirectory,
    search: SearchDirectory,  # noqa: ARG001 (lies beside the run)
    comparison: CompareDirectory,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Server]:
    monkeypatch.setattr(server_module, "FRESH_S", 0.0)
    yield from serving(trained.root.parent)


def serving(root: Location) -> Iterator[Server]:
    opened = Server(root, page_data, "127.0.0.1", 0)
    threading.Thread(target=opened.serve_forever, daemon=True).start()
    yield opened
    opened.shutdown()
    opened.server_close()


def get(server: Server, path: str, method: str = "GET") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(server.url + path, method=method), timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def rows(server: Server) -> list[list[Any]]:
    return list(json.loads(get(server, "data/")[1])["blocks"][0]["rows"])


def test_server_lists_runs_searches_and_comparisons_and_shows_each(server: Server) -> None:
    kinds = {row[0]: row[1] for row in rows(server)}
    assert kinds == {"a-run-more": "train", "search": "search", "families": "compare"}
    for name, kind in (("a-run-more", "run"), ("search", "search"), ("families", "comparison")):
        assert json.loads(get(server, f"data/{name}")[1])["kind"] == kind
        status, page = get(server, f"page/{name}")
        assert status == HTTPStatus.OK
        assert f'LIVE = "/data/{name}"' in page
    assert json.loads(get(server, "data/families/runs/gentle-0")[1])["kind"] == "run"


def test_server_says_when_nothing_is_new_and_tells_what_is(server: Server, tmp_path: Path) -> None:
    shutil.copytree(f"{server.root}/a-run-more", tmp_path / "live")
    (tmp_path / "live/final/scores.json").unlink()
    for own in serving(Location.of(tmp_path)):
        version = json.loads(get(own, "data/live")[1])["version"]
        assert get(own, f"data/live?version={version}")[0] == HTTPStatus.NO_CONTENT
        with (tmp_path / "live/metrics.jsonl").open("a") as metrics:
            metrics.write('{"position": 408, "time_s": 2.0, "generator_loss": 1.0}\n')
        status, text = get(own, f"data/live?version={version}")
        assert status == HTTPStatus.OK
        assert "408 of 400" in json.loads(text)["subtitle"]


@pytest.mark.parametrize(
    "path",
    [
        "page/..", "page/../..", "page/%2e%2e/x", "page/nothing", "data/search/log/000000.jsonl", "etc/passwd",
        "page/search/../a-run-more",
    ],
)  # fmt: skip
def test_server_gives_nothing_that_its_storage_does_not_list(server: Server, path: str) -> None:
    assert get(server, path)[0] == HTTPStatus.NOT_FOUND


def test_server_shows_what_has_not_begun_and_what_is_damaged(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "FRESH_S", 0.0)
    attempt = Attempt(1, "faces-1", "http://head:8265", "", begun=now(), heard=now())
    write_attempt(Location.of(str(tmp_path / "waiting")), attempt)
    shutil.copytree(str(trained.root), tmp_path / "broken")
    (tmp_path / "broken/job.json").write_text("{")
    for own in serving(Location.of(tmp_path)):
        waiting = json.loads(get(own, "data/waiting")[1])
        assert "running" in waiting["subtitle"]
        assert "attempt 1, submitted as faces-1 to http://head:8265: running" in waiting["blocks"][0]["sentences"]
        broken = json.loads(get(own, "data/broken")[1])
        assert "damaged" in broken["subtitle"]
        assert "job.json" in broken["blocks"][0]["sentences"][0]
        # Once it has begun, the same page shows the run.
        shutil.copytree(str(trained.root), tmp_path / "waiting", dirs_exist_ok=True)
        status, text = get(own, f"data/waiting?version={waiting['version']}")
        assert status == HTTPStatus.OK
        assert json.loads(text)["kind"] == "run"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_server_is_read_only(server: Server, method: str) -> None:
    assert get(server, "data/search", method)[0] == HTTPStatus.NOT_IMPLEMENTED


@pytest.mark.s3
def test_server_shows_runs_in_an_object_store(trained: RunDirectory, s3_bucket: str) -> None:
    stored = Location.of(s3_bucket) / "copied"
    for name in ("job.json", "metrics.jsonl", "provenance.json"):
        (stored / name).write_bytes((trained.root / name).read_bytes())
    for own in serving(Location.of(s3_bucket)):
        assert [row[:2] for row in rows(own)] == [["copied", "train"]]
        assert "400 of 400" in json.loads(get(own, "data/copied")[1])["subtitle"]


@pytest.mark.slow
def test_page_of_the_server_leads_to_a_run_and_updates_by_itself(
    server: Server, browser: Browser, tmp_path: Path
) -> None:
    shutil.copytree(f"{server.root}/a-run-more", tmp_path / "live")
    for own in serving(Location.of(tmp_path)):
        browser.look_like(width=1280, dark=False)
        browser.open(own.url)
        browser.script("document.querySelector('tr.opens').click()")
        browser.open(own.url + "page/live")
        with (tmp_path / "live/metrics.jsonl").open("a") as metrics:
            metrics.write('{"position": 408, "time_s": 2.0, "generator_loss": 1.0}\n')
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(browser.driver, 60).until(
            lambda driver: "408 of 400" in driver.execute_script("return document.body.innerText")
        )
        assert browser.errors() == []
