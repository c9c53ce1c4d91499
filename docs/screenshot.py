"""Pictures of the dashboard for the README, made from a run file with the real app and headless Chromium.

python docs/screenshot.py logs/demo.jsonl     writes docs/dashboard-light.png and docs/dashboard-dark.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, str(Path(__file__).parents[1]))
from dashboards.app import start

HERE = Path(__file__).parent
SIZE = {"width": 1360, "height": 1780, "deviceScaleFactor": 1, "mobile": False}
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --hide-scrollbars"
)
DRAWN = "return [...document.querySelectorAll('figure.panel .main-svg')].length > 3"


def browser(profile: str) -> webdriver.Chrome:
    """Debian's Chromium, without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))


def main(path: Path) -> None:
    """Write one picture for each colour scheme."""
    server, address = start(path.parent, 0)
    with tempfile.TemporaryDirectory() as profile:
        driver = browser(profile)
        try:
            for scheme in ("light", "dark"):
                feature = {"name": "prefers-color-scheme", "value": scheme}
                driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
                driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", SIZE)
                driver.get(f"{address}/run?path={quote(path.name)}")
                WebDriverWait(driver, 30).until(lambda page: page.execute_script(DRAWN))
                driver.find_element(By.TAG_NAME, "h1").is_displayed()
                picture = HERE / f"dashboard-{scheme}.png"
                driver.save_screenshot(str(picture))
                print(f"{picture} {picture.stat().st_size // 1000} kB")
        finally:
            driver.quit()
            server.shutdown()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
