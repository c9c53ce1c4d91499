"""Pictures of every page of the dashboard, made from a folder of run files with the real app and headless Chromium.

python docs/screenshot.py logs demo.jsonl healthy.jsonl

writes docs/pictures/<page>-<light|dark>-<wide|narrow>.webp: the runs below the folder, the first run, all compared.
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, str(Path(__file__).parents[1]))
from dashboards.app import start

PICTURES = Path(__file__).parent / "pictures"
SIZES = {"wide": (1360, 1500), "narrow": (390, 1500)}
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --hide-scrollbars"
)
DRAWN = {
    "runs": "return document.querySelectorAll('.run-link').length > 0 && !/being read|for the first time/.test("
    "document.body.innerText)",
    "run": "return document.querySelectorAll('figure.panel .main-svg').length > 3",
    "compare": "return document.querySelectorAll('figure.panel .main-svg').length > 3",
}


def browser(profile: str) -> webdriver.Chrome:
    """Debian's Chromium, without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))


def addresses(runs: list[str]) -> dict[str, str]:
    """The pages, by name."""
    compared = urlencode([("run", run) for run in runs])
    return {"runs": "/", "run": f"/run?{urlencode({'path': runs[0]})}", "compare": f"/compare?{compared}"}


def take(driver: webdriver.Chrome, address: str, drawn: str, scheme: str, size: tuple[int, int], picture: Path) -> None:
    """One picture of one page."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(address)
    WebDriverWait(driver, 60).until(lambda page: page.execute_script(drawn))
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": 72})
    picture.write_bytes(base64.b64decode(taken["data"]))
    print(f"{picture} {picture.stat().st_size // 1000} kB", flush=True)


def main(folder: Path, runs: list[str]) -> None:
    """Write the pictures of every page, in both colour schemes and sizes."""
    PICTURES.mkdir(exist_ok=True)
    server, address = start(folder, 0)
    with tempfile.TemporaryDirectory() as profile:
        driver = browser(profile)
        try:
            for name, page in addresses(runs).items():
                for scheme in ("light", "dark"):
                    for label, size in SIZES.items():
                        picture = PICTURES / f"{name}-{scheme}-{label}.webp"
                        take(driver, address + page, DRAWN[name], scheme, size, picture)
        finally:
            driver.quit()
            server.shutdown()


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
