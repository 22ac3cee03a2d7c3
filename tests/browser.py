"""A headless Chromium for tests of pages, driven by Selenium."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
NEEDED = "DIM_NEEDS_BROWSER"  # where it is set, a missing browser fails tests instead of skipping them


@contextmanager
def browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """A browser with an empty folder for its profile. Without Chromium the test is skipped, or fails where it must be there."""
    chromium = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        say = pytest.fail if os.environ.get(NEEDED) else pytest.skip
        say("needs Chromium and chromedriver (on Debian the packages chromium and chromium-driver; make browser installs them as root)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Named, so that Selenium looks for none: it would download one.
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as window:
        yield window


def resize(window: webdriver.Chrome, width: int, height: int) -> None:
    """The page itself, without the window's frame."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    window.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
