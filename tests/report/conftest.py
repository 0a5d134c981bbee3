"""A headless browser, and what there is to look at: a trained run, a search and a comparison."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.search.samples import SPACE, base_tree, search_job
from tests.training.jobs import ADVERSARIAL, NETWORK, run_job
from vaegen_ray.compare.directory import CompareDirectory, Outcome
from vaegen_ray.config.loading import dump_job, job_of
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import TrialLog
from vaegen_ray.search.trials import TrialState, asked, ended, scored, started
from vaegen_ray.training.local_session import local_session
from vaegen_ray.training.run import run_training


class Browser:
    """Chromium without a window."""

    def __init__(self, chromium: str, driver: str) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader",
                         "--disable-dev-shm-usage", "--window-size=1280,1000", "--hide-scrollbars"):  # fmt: skip
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.driver.set_page_load_timeout(120)

    def open(self, address: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        self.driver.get(address)
        WebDriverWait(self.driver, 120).until(
            lambda driver: driver.execute_script("return document.documentElement.dataset.ready") == "yes"
        )

    def look_like(self, *, width: int, dark: bool) -> None:
        """A screen of another width, in light or dark mode."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def script(self, text: str) -> Any:
        return self.driver.execute_script(text)

    def errors(self) -> list[str]:
        """What the console says that is an error or a warning of ours."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def screenshot(self, file: Path) -> None:
        height = self.script("return document.documentElement.scrollHeight")
        size = {"width": self.script("return innerWidth"), "height": min(height, 6000), "x": 0, "y": 0, "scale": 1}
        import base64

        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": size})
        file.write_bytes(base64.b64decode(shot["data"]))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs headless Chromium and its driver: apt-get install chromium chromium-driver")
    opened = Browser(chromium, driver)
    yield opened
    opened.driver.quit()


@pytest.fixture(scope="session")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished VAE-GAN with a ramp."""
    adversarial = {**ADVERSARIAL, "start_images": 80, "ramp_images": 80}
    job = run_job(
        dataset,
        tmp_path_factory.mktemp("storage"),
        {"kind": "vae_gan", "adversarial": adversarial, "discriminator": NETWORK},
        training={"total_images": 400, "report_every_images": 8},
        evaluation={"every_images": 80},
        name="a <run> & more".replace("<", "").replace(">", "").replace(" & ", "-").replace(" ", "-"),
    )
    with local_session() as session:
        run_training(job, session, ["vaegen", "train", "<b>job</b>.yaml"])
    return RunDirectory.of(job)


@pytest.fixture(scope="session")
def search(trained: RunDirectory) -> SearchDirectory:
    """A search whose trials were made up, beside the run."""
    job = search_job(trained.root.parent.url, trials=14)
    directory = SearchDirectory.of(job)
    directory.job_file.write_text(dump_job(job))
    log, draw = TrialLog(directory), np.random.default_rng(0)
    names = list(SPACE)
    for number in range(14):
        settings = {names[0]: float(10 ** draw.uniform(-2, 1)), names[1]: float(draw.uniform(0.1, 0.9))}
        psnr, swd = 18 - 4 * settings[names[1]] + float(draw.normal()), 0.5 - 0.4 * settings[names[1]]
        scores = {"reconstruction_psnr": psnr, "sample_swd": swd + 0.02 * float(draw.random()), "kl_nats": 5.0}
        log.record(asked(number, settings))
        log.record(started(number))
        log.record(scored(number, 32, scores))
        if number == 13:
            log.record(ended(number, TrialState.STOPPED, reason="at 32 images others were better <i>"))
        else:
            log.record(ended(number, TrialState.COMPLETE, scores=scores))
    log.close()
    return directory


@pytest.fixture(scope="session")
def comparison(trained: RunDirectory) -> CompareDirectory:
    """Two variants of three seeds, whose scores were made up."""
    tree = {
        "kind": "compare", "name": "families", "storage": trained.root.parent.url, "base": base_tree(),
        "variants": {"gentle": {"objective.kl.weight": 0.5}, "strict": {"objective.kl.weight": 5.0}},
    }  # fmt: skip
    job = job_of(tree, "compare")
    directory = CompareDirectory(trained.root.parent / "families")
    directory.job_file.write_text(dump_job(job))
    for variant, base in (("gentle", 0.3), ("strict", 0.1)):
        for seed in job.seeds:
            train_job, run = directory.train_job(job, variant, seed, {}), directory.run(variant, seed)
            run.claim(train_job)
            kl = 0.01 if (variant, seed) == ("strict", 2) else 5.0
            lines = [
                {"position": at, "time_s": 1.0, "sample_swd": base + seed / 100 - at / 10_000, "train_kl_nats": kl,
                 "training_s": 1.0, "images_per_s": 32.0, "peak_memory_bytes": 2.0**30}
                for at in (32, 64, 96)
            ]  # fmt: skip
            run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
            scores = {"sample_swd": base + seed / 100, "reconstruction_psnr": 20 + draw_of(variant, seed)}
            record = {"scores": scores, "measured_on": dict.fromkeys(scores, "16 images of nothing"), "position": 96}
            run.scores.write_text(json.dumps(record))
            directory.record(variant, seed, Outcome("complete"))
    return directory


def draw_of(variant: str, seed: int) -> float:
    return {"gentle": (0.0, 0.5, 1.0), "strict": (0.1, 0.6, 0.7)}[variant][seed]
