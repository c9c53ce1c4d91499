"""The dashboard in a real browser, while a run is being written: what a person would see, and when."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

pytest.importorskip("dash")
pytest.importorskip("selenium")

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from dashboards.app import start
from trainwatch.recorder.recorder import Recorder

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="chromium and chromedriver are not installed"),
    pytest.mark.timeout(85),
]
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --window-size=1400,1000"
)
STEPS = 600
OURS = ("loss", "weight/", "grad", "clip", "lr/", "schedule/", "clock/", "stage")
HOSTILE = "<img src=x onerror=document.title='pwned'>"

TRACE = """
const graph = [...document.querySelectorAll('figure.panel')].find(p => p.dataset.name === arguments[0]);
const plot = graph && graph.querySelector('.js-plotly-plot');
const found = plot && plot.data && plot.data.find(t => t.name === arguments[1]);
const list = v => v && v._inputArray ? [...v._inputArray] : v ? [...v] : [];
return found ? list(found.x) : null
"""
SPAN = """
const panel = document.querySelector(`figure.panel[data-name="${arguments[0]}"]`);
return panel.querySelector('.js-plotly-plot').layout.xaxis.range
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(CHROMEDRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder


@pytest.fixture
def address(browser: webdriver.Chrome, logs: Path) -> Iterator[str]:
    server, address = start(logs, 0)
    yield address
    leave(browser)
    server.shutdown()
    server.server_close()


def leave(browser: webdriver.Chrome) -> None:
    """No page may go on asking a server that is gone; what it said belongs to its own test."""
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get_log("performance")


def until(browser: webdriver.Chrome, asked: Callable[[webdriver.Chrome], Any], seconds: float = 20.0) -> Any:
    redrawn = [StaleElementReferenceException]  # found, and replaced by a tick before it was asked
    return WebDriverWait(browser, seconds, poll_frequency=0.05, ignored_exceptions=redrawn).until(asked)


def text(browser: webdriver.Chrome) -> str:
    return str(browser.execute_script("return document.body.innerText"))


def reveal(browser: webdriver.Chrome, name: str) -> None:
    """Scroll to a figure: only what is on screen is kept up to date."""
    found = 'return document.querySelector(`figure.panel[data-name="${arguments[0]}"]`)'
    panel = until(browser, lambda page: page.execute_script(found, name))
    browser.execute_script("arguments[0].scrollIntoView()", panel)


def press(browser: webdriver.Chrome, key: str) -> None:
    """A key as a hand presses it: wherever the focus is."""
    ActionChains(browser).send_keys(key).perform()


def requests(browser: webdriver.Chrome) -> set[str]:
    """Every host that a page asked for something."""
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [entry["params"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]
    own = [item["request"]["url"] for item in asked if item.get("documentURL", "").startswith("http")]
    return {urlsplit(url).hostname or "" for url in own if url.startswith("http")}


def errors(browser: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


class Trainer(threading.Thread):
    """Records a run while somebody watches: from step 360 on a component has a weight that was never declared."""

    def __init__(self, path: Path, header: Any, row: Any) -> None:
        super().__init__(daemon=True)
        declared = header("live-run", STEPS)
        taken = ("config", "total_steps", "curriculum", "schedules", "clocks", "components", "max_grad_norm")
        self.row = row
        self.go, self.done = threading.Event(), threading.Event()
        self.watch = Recorder(path, run="live-run", **{name: declared[name] for name in taken})

    def run(self) -> None:
        rng = random.Random(1)
        with self.watch:
            for step in range(1, STEPS - 10):
                if step == 321:
                    self.go.wait()
                if self.done.is_set():
                    break
                told = {name: value for name, value in self.row(step, STEPS, rng).items() if name.startswith(OURS)}
                if step == 477:
                    told |= {"loss/precursor": float("nan"), "loss": float("nan")}
                self.watch.log(told)
                self.watch.step()
                time.sleep(0.002)


def test_a_run_is_watched_while_it_is_written(
    browser: webdriver.Chrome, logs: Path, address: str, header: Any, row: Any
) -> None:
    browser.get(f"{address}/")
    until(browser, lambda page: "No run here yet" in text(page))

    trainer = Trainer(logs / "live.jsonl", header, row)
    trainer.start()
    until(browser, lambda page: "live-run" in text(page))
    browser.find_element(By.CSS_SELECTOR, ".run-link").click()
    reveal(browser, "loss")
    until(browser, lambda page: (page.execute_script(TRACE, "loss", "sequence [nat]") or [0])[-1] >= 320)
    assert "curriculum-weight-drift" not in text(browser)

    browser.execute_script("window.notReloaded = true")
    trainer.go.set()
    # the finding comes without a reload, and the tab says how bad it is
    until(browser, lambda page: "curriculum-weight-drift" in text(page))
    until(browser, lambda page: page.title.startswith("◆ Critical: live-run"))
    icon = "return document.querySelector(\"link[rel='icon']\").href"
    assert browser.execute_script(icon).endswith("/assets/icon-critical.svg")

    # the NaN is a mark at its exact step
    reveal(browser, "loss")
    until(browser, lambda page: page.execute_script(TRACE, "loss", "precursor [ppm]: nan"))
    assert browser.execute_script(TRACE, "loss", "precursor [ppm]: nan")[0] == 477

    # the rule's page unfolds where the finding is
    folded = "document.querySelector('.finding details:not([open]) summary')?.click()"  # a new row may draw cards anew
    until(browser, lambda page: page.execute_script(folded) or "When it is wrong" in text(page))

    # a click on a finding zooms every plot to it
    trainer.done.set()
    trainer.join()
    button = until(browser, lambda page: page.find_element(By.CSS_SELECTOR, ".finding button"))
    where = json.loads(button.get_attribute("id"))
    browser.execute_script("arguments[0].click()", button)
    for name in (where["figure"], "loss", "weights"):
        reveal(browser, name)
        until(browser, lambda page, name=name: page.execute_script(SPAN, name) == [where["first"], where["last"]])
    assert f"step={where['first']}-{where['last']}" in browser.current_url

    assert browser.execute_script("return window.notReloaded")
    assert errors(browser) == []
    assert requests(browser) <= {"127.0.0.1"}


UNANSWERED = """
window.asked = 0;
const fetched = window.fetch;
window.fetch = (url, ...rest) => {
  if (!String(url).startsWith("/rule/")) return fetched(url, ...rest);
  window.asked += 1;
  return window.asked === 1 ? Promise.reject(new TypeError("Failed to fetch")) : fetched(url, ...rest);
};
"""


def test_a_rule_whose_page_does_not_come_is_asked_for_once_an_unfolding(
    browser: webdriver.Chrome, finished: Path
) -> None:
    server, address = start(finished, 0)
    browser.get(f"{address}/run?path=peptide.jsonl")
    until(browser, lambda page: page.find_element(By.CSS_SELECTOR, ".finding .rule-page summary"))
    browser.execute_script(UNANSWERED)
    fold = "document.querySelector('.finding .rule-page summary').click()"
    browser.execute_script(fold)
    until(browser, lambda page: "fold this and unfold it again" in text(page))
    time.sleep(0.3)
    assert browser.execute_script("return window.asked") == 1
    browser.execute_script(fold)
    until(browser, lambda page: "fold this and unfold it again" not in text(page))
    browser.execute_script(fold)
    until(browser, lambda page: "When it is wrong" in text(page))
    assert browser.execute_script("return window.asked") == 2
    leave(browser)
    server.shutdown()
    server.server_close()


def test_a_row_is_on_screen_about_a_second_after_it_was_written(
    browser: webdriver.Chrome, logs: Path, address: str, write: Any, header: Any, row: Any
) -> None:
    path = write(logs / "a.jsonl", header("quick", STEPS), *(row(step, STEPS) for step in range(1, 100)))
    browser.get(f"{address}/run?path=a.jsonl")
    reveal(browser, "loss")
    until(browser, lambda page: (page.execute_script(TRACE, "loss", "sequence [nat]") or [0])[-1] == 99)
    write(path, row(100, STEPS))
    # no timed test: a page that never updates fails here, one that is slow does not
    until(browser, lambda page: page.execute_script(TRACE, "loss", "sequence [nat]")[-1] == 100)
    assert "100 of 600" in text(browser)


def test_a_zoom_by_hand_stays_while_the_run_grows(
    browser: webdriver.Chrome, logs: Path, address: str, write: Any, header: Any, row: Any
) -> None:
    path = write(logs / "a.jsonl", header("zoomed", STEPS), *(row(step, STEPS) for step in range(1, 200)))
    browser.get(f"{address}/run?path=a.jsonl&step=50-90")
    until(browser, lambda page: page.execute_script(TRACE, "loss", "sequence [nat]"))
    assert browser.execute_script(SPAN, "loss") == [50, 90]
    write(path, row(200, STEPS))
    until(browser, lambda page: "200 of 600" in text(page))
    assert browser.execute_script(SPAN, "loss") == [50, 90]
    browser.find_element(By.ID, "whole").click()
    until(browser, lambda page: page.execute_script(SPAN, "loss") == [1, 200])


def test_one_look_for_all_plots_stands_in_the_address(browser: webdriver.Chrome, finished: Path) -> None:
    server, address = start(finished, 0)
    browser.get(f"{address}/run?path=peptide.jsonl&step=100-200")
    until(browser, lambda page: page.execute_script(TRACE, "loss", "sequence [nat]"))
    for name, value in (("against", "samples"), ("scale", "linear"), ("smooth", "10")):
        box = browser.find_element(By.CSS_SELECTOR, f"#{name} input[value='{value}']")
        browser.execute_script("arguments[0].click()", box)
    smoothed = "sequence [nat], smoothed over 10"
    reveal(browser, "loss")
    until(browser, lambda page: (page.execute_script(TRACE, "loss", smoothed) or [0])[0] > 6000)
    assert browser.execute_script(SPAN, "loss") == [6400, 12800]
    said = dict(parse_qsl(urlsplit(browser.current_url).query))
    assert said == {"path": "peptide.jsonl", "step": "100-200", "x": "samples", "y": "linear", "smooth": "10"}
    browser.get(browser.current_url)  # a colleague's link
    until(browser, lambda page: (page.execute_script(TRACE, "loss", smoothed) or [0])[0] > 6000)
    assert errors(browser) == []
    leave(browser)
    server.shutdown()
    server.server_close()


KIND = """
const graph = document.querySelector(`figure.panel[data-name="${arguments[0]}"] .js-plotly-plot`);
return graph && graph._fullLayout ? graph._fullLayout.xaxis.type + ' ' + graph._fullLayout.xaxis.title.text : ''
"""
ZOOM = """
const graph = document.querySelector('figure.panel[data-name="loss"] .js-plotly-plot');
Plotly.relayout(graph, {"xaxis.range": [Math.log10(20), Math.log10(200)]});
"""


def test_a_log_axis_across_is_zoomed_in_steps_and_stands_in_the_address(
    browser: webdriver.Chrome, finished: Path
) -> None:
    server, address = start(finished, 0)
    browser.get(f"{address}/run?path=peptide.jsonl")
    until(browser, lambda page: page.execute_script(TRACE, "loss", "sequence [nat]"))
    box = browser.find_element(By.CSS_SELECTOR, "#x_scale input[value='log']")
    browser.execute_script("arguments[0].click()", box)
    reveal(browser, "loss")
    until(browser, lambda page: page.execute_script(KIND, "loss") == "log step, log")
    browser.execute_script(ZOOM)
    until(browser, lambda page: "steps 20 to 200" in text(page))
    said = dict(parse_qsl(urlsplit(browser.current_url).query))
    assert said == {"path": "peptide.jsonl", "step": "20-200", "xscale": "log"}
    browser.get(browser.current_url)  # a colleague's link
    until(browser, lambda page: (page.execute_script(TRACE, "loss", "sequence [nat]") or [0])[0] >= 19)
    assert [round(10**end) for end in browser.execute_script(SPAN, "loss")] == [20, 200]
    browser.get(f"{address}/run?path=peptide.jsonl&xscale=log&x=time")  # which begins at 0
    until(browser, lambda page: "would lose 0" in page.execute_script(KIND, "loss"))
    assert browser.execute_script(KIND, "loss").startswith("linear")
    assert errors(browser) == []
    leave(browser)
    server.shutdown()
    server.server_close()


def test_keys_walk_and_the_pointer_draws_one_line(browser: webdriver.Chrome, finished: Path) -> None:
    server, address = start(finished, 0)
    browser.get(f"{address}/run?path=peptide.jsonl")
    until(browser, lambda page: page.execute_script(TRACE, "loss", "sequence [nat]"))
    focus = "return document.activeElement.matches('.finding') && document.activeElement.innerText"
    press(browser, "n")
    first = until(browser, lambda page: page.execute_script(focus))
    press(browser, "n")
    until(browser, lambda page: page.execute_script(focus) not in (False, first))
    press(browser, "p")
    until(browser, lambda page: page.execute_script(focus) == first)
    press(browser, "?")
    assert browser.find_element(By.ID, "keys").is_displayed()
    press(browser, "?")
    reveal(browser, "loss")
    lines = "return [...document.querySelectorAll('.hover-line')].filter(l => l.style.display === 'block').length"
    hover = "document.querySelector('[data-name=loss] .js-plotly-plot').emit('plotly_hover', {points: [{x: 50}]})"
    until(browser, lambda page: page.execute_script(hover) is None and page.execute_script(lines) >= 3)
    leave(browser)
    server.shutdown()
    server.server_close()


def test_a_hostile_run_stays_text(
    browser: webdriver.Chrome, logs: Path, address: str, write: Any, header: Any, row: Any
) -> None:
    told = header(HOSTILE, STEPS, components={HOSTILE: {"unit": HOSTILE}}, config={HOSTILE: HOSTILE})
    rows = [row(step, STEPS, **{f"loss/{HOSTILE}": 1.0, f"weight/{HOSTILE}": 1.0}) for step in range(1, 60)]
    write(logs / f"{HOSTILE.replace('/', '')}.jsonl", told, *rows)
    browser.get(f"{address}/")
    until(browser, lambda page: "onerror" in text(page))
    browser.find_element(By.CSS_SELECTOR, ".run-link").click()
    until(browser, lambda page: page.execute_script(TRACE, "loss", "sequence"))
    assert "pwned" not in browser.title.split(" - ")[0].replace(HOSTILE, "")
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    assert requests(browser) <= {"127.0.0.1"}
    assert errors(browser) == []


def refused(browser: webdriver.Chrome) -> list[str]:
    """Every answer that was not what a page wanted."""
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    answers = [entry["params"]["response"] for entry in entries if entry["method"] == "Network.responseReceived"]
    return [f"{one['status']} {one['url']}" for one in answers if one["status"] >= 400]


def test_a_token_opens_the_page_once_and_for_all_and_is_not_seen_again(
    browser: webdriver.Chrome, finished: Path
) -> None:
    token = "a-token-of-thirty-two-characters"
    server, address = start(finished, 0, token=token)
    browser.get(f"{address}/run?path=peptide.jsonl")
    until(browser, lambda page: "asks for its token" in text(page))
    assert "peptide" not in text(browser)
    leave(browser)
    browser.get(f"{address}/run?path=peptide.jsonl&token={token}")
    until(browser, lambda page: page.execute_script(TRACE, "loss", "sequence [nat]"))
    assert browser.current_url == f"{address}/run?path=peptide.jsonl"
    assert browser.execute_script("return document.cookie") == ""
    browser.get(f"{address}/")
    until(browser, lambda page: page.find_elements(By.CSS_SELECTOR, ".run-link"))
    assert refused(browser) == []
    assert errors(browser) == []
    leave(browser)
    browser.delete_all_cookies()
    server.shutdown()
    server.server_close()


def test_a_link_in_a_page_elsewhere_is_let_in_and_its_scripts_are_not(
    browser: webdriver.Chrome, finished: Path, tmp_path: Path
) -> None:
    """Elsewhere is another name of this machine here: to a browser that is another site."""
    token = "a-token-of-thirty-two-characters"
    server, address = start(finished, 0, token=token)
    elsewhere = tmp_path / "elsewhere.html"
    page = """<a href="{0}/run?path=peptide.jsonl&token={1}">see</a><script>
    fetch("{0}/_dash-update-component", {{method: "POST", credentials: "include", mode: "no-cors",
        headers: {{"Content-Type": "text/plain"}}, body: "{{}}"}}).finally(() => (window.asked = true))</script>"""
    elsewhere.write_text(page.format(address, token))
    browser.get(elsewhere.as_uri())
    until(browser, lambda page: page.execute_script("return window.asked"))
    browser.find_element(By.TAG_NAME, "a").click()
    until(browser, lambda page: page.execute_script(TRACE, "loss", "sequence [nat]"))
    assert browser.current_url == f"{address}/run?path=peptide.jsonl"
    leave(browser)
    browser.delete_all_cookies()
    server.shutdown()
    server.server_close()


def test_a_finished_run_is_seldom_asked_for(browser: webdriver.Chrome, finished: Path) -> None:
    """Every five seconds: its file may be written anew."""
    server, address = start(finished, 0)
    browser.get(f"{address}/run?path=peptide.jsonl")
    until(browser, lambda page: page.execute_script(TRACE, "loss", "sequence [nat]"))
    time.sleep(1.5)
    browser.get_log("performance")
    time.sleep(2.5)
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    leave(browser)
    server.shutdown()
    server.server_close()
    assert len([entry for entry in entries if entry["method"] == "Network.requestWillBeSent"]) <= 1


def test_an_open_page_follows_a_file_that_was_replaced(
    browser: webdriver.Chrome, logs: Path, write: Any, header: Any, row: Any, end: Any
) -> None:
    path = write(logs / "again.jsonl", header("first", STEPS), *(row(step, STEPS) for step in range(1, 50)), end())
    server, address = start(logs, 0)
    browser.get(f"{address}/run?path=again.jsonl")
    until(browser, lambda page: page.find_element(By.TAG_NAME, "h1").text == "first")
    path.unlink()
    write(path, header("second", STEPS), *(row(step, STEPS) for step in range(1, 80)))
    until(browser, lambda page: page.find_element(By.TAG_NAME, "h1").text == "second")
    leave(browser)
    server.shutdown()
    server.server_close()


def test_a_page_says_when_its_server_is_gone(
    browser: webdriver.Chrome, logs: Path, write: Any, header: Any, row: Any
) -> None:
    write(logs / "a.jsonl", header("left", STEPS), *(row(step, STEPS) for step in range(1, 50)))
    server, address = start(logs, 0)
    browser.get(f"{address}/run?path=a.jsonl")
    until(browser, lambda page: page.execute_script(TRACE, "loss", "sequence [nat]"))
    assert not browser.find_element(By.ID, "lost").is_displayed()
    server.shutdown()
    server.server_close()
    until(browser, lambda page: page.find_element(By.ID, "lost").is_displayed())
    leave(browser)


AXIS = """
const panel = [...document.querySelectorAll('figure.panel')].find(one => one.innerText.startsWith(arguments[0]));
if (!panel) return null;
panel.scrollIntoView();
const plot = panel.querySelector('.js-plotly-plot');
const list = v => v && v._inputArray ? [...v._inputArray] : v ? [...v] : [];
return plot && plot.data && plot.layout.xaxis && {
  x: plot.layout.xaxis.title.text, y: plot.layout.yaxis.title.text, range: plot.layout.xaxis.range,
  curves: Object.fromEntries(plot.data.map(one => [one.name, list(one.x)])),
}
"""


def test_runs_are_compared_while_they_are_written(
    browser: webdriver.Chrome, logs: Path, address: str, write: Any, header: Any, row: Any
) -> None:
    for key in ("a", "b"):
        write(logs / f"{key}.jsonl", header(key, STEPS), *(row(step, STEPS) for step in range(1, 100)))
    write(logs / "b.jsonl", row(100, STEPS))
    browser.get(f"{address}/compare?run=a.jsonl&run=b.jsonl&run=gone.jsonl")
    until(browser, lambda page: "2 runs compared" in text(page))
    assert "Nothing that is called so" in text(browser)
    shown = until(browser, lambda page: page.execute_script(AXIS, "loss"))
    assert (shown["x"], shown["y"]) == ("step", "loss")

    # a row that is written is on the screen, and nothing was loaded anew
    browser.execute_script("window.notReloaded = true")
    write(logs / "a.jsonl", *(row(step, STEPS) for step in range(100, 131)))
    until(browser, lambda page: page.execute_script(AXIS, "loss")["curves"]["a"][-1] == 130)

    # what is chosen changes the plots and stands in the address
    browser.execute_script("document.getElementById('compare-difference').click()")
    until(browser, lambda page: page.execute_script(AXIS, "loss")["y"] == "less a")
    browser.execute_script("document.querySelectorAll('#compare-runs input[type=radio]')[1].click()")
    until(browser, lambda page: page.execute_script(AXIS, "loss")["y"] == "less b")
    browser.execute_script("document.querySelector('#against input[value=samples]').click()")
    until(browser, lambda page: page.execute_script(AXIS, "loss")["x"] == "samples")
    asked = browser.current_url
    assert {"difference=1", "baseline=b.jsonl", "x=samples"} <= set(asked.partition("?")[2].split("&"))
    assert browser.execute_script("return window.notReloaded")

    # and the address leads back to it
    browser.get(f"{asked}&samples=640-3200")
    until(browser, lambda page: (page.execute_script(AXIS, "loss") or {}).get("range") == [640, 3200])
    again = browser.execute_script(AXIS, "loss")
    assert (again["x"], again["y"]) == ("samples", "less b")
    assert errors(browser) == []
    assert requests(browser) <= {"127.0.0.1"}
