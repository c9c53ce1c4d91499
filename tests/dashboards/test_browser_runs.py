"""The table of runs in a real browser: found, chosen, annotated, and shown to somebody else by its address."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

pytest.importorskip("dash")
pytest.importorskip("selenium")

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from dashboards.app import start
from dashboards.notes import NAME
from tests.dashboards.conftest import append, broken, end, header, row
from tests.dashboards.test_browser import HOSTILE, browser, errors, leave, logs, pytestmark, requests, text, until

__all__ = ["browser", "logs", "pytestmark"]

NAMES = """
const found = [...document.querySelectorAll('#runs .ag-center-cols-container .ag-row')];
found.sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index'));
return found.map(row => row.querySelector('.run-link strong').innerText)
"""
FILTER = "dash_ag_grid.getApi('runs').setFilterModel(arguments[0])"


def record(path: Path, name: str, steps: int, status: str = "", **bad: str) -> None:
    rows = [row(step) for step in range(1, steps)] + [broken(row(steps), **bad) if bad else row(steps)]
    append(path, header(name, host=os.uname().nodename), *rows, *([end(status)] if status else []))


@pytest.fixture
def table(browser: webdriver.Chrome, logs: Path) -> Iterator[str]:
    record(logs / "sweep" / "a.jsonl", "alpha", 30, "finished")
    record(logs / "sweep" / "b.jsonl", "beta", 40, "failed", loss="nan")
    record(logs / "final" / "c.jsonl", "gamma", 20)
    server, address = start(logs, 0)
    yield address
    leave(browser)
    server.shutdown()
    server.server_close()


def shows(browser: webdriver.Chrome, *names: str) -> None:
    until(browser, lambda page: sorted(page.execute_script(NAMES)) == sorted(names))


def read(browser: webdriver.Chrome) -> None:
    until(browser, lambda page: "3 in all, 1 running" in text(page) and "reading" not in text(page))


def press(browser: webdriver.Chrome, *keys: str) -> None:
    ActionChains(browser).send_keys(*keys).perform()


def cell(browser: webdriver.Chrome, key: str, column: str) -> Any:
    where = f".ag-row[row-id='{key}'] [col-id='{column}']"
    return until(browser, lambda page: page.find_element(By.CSS_SELECTOR, where))


def asked(browser: webdriver.Chrome) -> dict[str, list[str]]:
    return parse_qs(urlsplit(browser.current_url).query)


def test_a_link_shows_a_colleague_the_same_table(browser: webdriver.Chrome, table: str) -> None:
    browser.get(f"{table}/")
    read(browser)
    press(browser, "/")
    press(browser, "sweep")
    shows(browser, "alpha", "beta")
    assert "2 of 3 shown" in text(browser)
    Select(browser.find_element(By.ID, "runs-group")).select_by_value("health")
    browser.find_element(By.CSS_SELECTOR, "#runs .ag-header-cell[col-id='steps'] .ag-header-cell-label").click()
    browser.execute_script(FILTER, {"steps": {"filterType": "number", "type": "greaterThan", "filter": 35}})
    shows(browser, "beta")
    until(browser, lambda page: {"q", "group", "sort", "filter"} <= asked(page).keys())
    link = browser.current_url
    leave(browser)
    browser.get(link)
    shows(browser, "beta")
    assert browser.find_element(By.ID, "runs-search").get_attribute("value") == "sweep"
    assert Select(browser.find_element(By.ID, "runs-group")).first_selected_option.get_attribute("value") == "health"
    browser.find_element(By.ID, "runs-whole").click()
    shows(browser, "alpha", "beta", "gamma")
    until(browser, lambda page: asked(page).keys() == {"group", "sort"})
    assert errors(browser) == []


def test_groups_stand_together_and_one_can_be_shown_alone(browser: webdriver.Chrome, table: str) -> None:
    browser.get(f"{table}/?group=folder&sort=run:desc")
    until(browser, lambda page: page.execute_script(NAMES) == ["gamma", "beta", "alpha"])  # final, then sweep
    heads = sorted(browser.find_elements(By.CSS_SELECTOR, ".group-name"), key=lambda head: head.location["y"])
    assert [head.text for head in heads] == ["final", "sweep"]
    browser.find_element(By.CSS_SELECTOR, "#runs-chips [data-name='sweep']").click()
    shows(browser, "alpha", "beta")
    assert asked(browser)["only"] == ["sweep"]


@pytest.mark.parametrize(
    "odd", ["filter={&sort=x:y&group=moon&only=nowhere", f"q={quote(HOSTILE)}&filter=[1]&only=%00"]
)
def test_an_address_that_makes_no_sense_is_a_table_all_the_same(
    browser: webdriver.Chrome, table: str, odd: str
) -> None:
    browser.get(f"{table}/?{odd}")
    until(browser, lambda page: "0 of 3 shown" in text(page))
    browser.find_element(By.ID, "runs-whole").click()
    shows(browser, "alpha", "beta", "gamma")
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    assert errors(browser) == []


def test_two_runs_are_chosen_and_compared(browser: webdriver.Chrome, logs: Path, table: str) -> None:
    browser.get(f"{table}/?sort=run:asc")
    read(browser)
    button = browser.find_element(By.ID, "runs-compare")
    box = "#runs .ag-center-cols-container .ag-row[row-id='{}'] input[type=checkbox]"
    browser.find_element(By.CSS_SELECTOR, box.format("sweep/a.jsonl")).click()
    until(browser, lambda _: button.text == "Compare 1 run")
    assert not button.is_enabled()
    browser.find_element(By.CSS_SELECTOR, box.format("final/c.jsonl")).click()
    until(browser, lambda _: button.is_enabled())
    # what is chosen stays while runs grow and come
    append(logs / "final" / "c.jsonl", row(21))
    record(logs / "late.jsonl", "delta", 5, "finished")
    shows(browser, "alpha", "beta", "gamma", "delta")
    until(browser, lambda page: "21 of 600" in text(page))
    assert button.text == "Compare 2 runs"
    button.click()
    until(browser, lambda page: urlsplit(page.current_url).path == "/compare")
    assert asked(browser) == {"run": ["sweep/a.jsonl", "final/c.jsonl"]}


def test_a_note_is_typed_into_the_table(browser: webdriver.Chrome, logs: Path, table: str) -> None:
    browser.get(f"{table}/")
    read(browser)
    ActionChains(browser).double_click(cell(browser, "sweep/a.jsonl", "tags")).perform()
    press(browser, f"good, {HOSTILE[:30]}", Keys.ENTER)
    until(browser, lambda page: "Kept beside the runs" in text(page))
    ActionChains(browser).double_click(cell(browser, "sweep/a.jsonl", "note")).perform()
    # a row that comes meanwhile does not take the words away
    press(browser, "look ")
    append(logs / "final" / "c.jsonl", row(21))
    until(browser, lambda page: "21 of 600" in text(page))
    press(browser, "again", Keys.ENTER)
    until(browser, lambda page: "note of sweep/a.jsonl" in text(page))
    kept = json.loads((logs / NAME).read_text())["runs"]
    assert kept == {"sweep/a.jsonl": {"tags": ["good", HOSTILE[:30].strip()], "note": "look again"}}
    browser.refresh()
    until(browser, lambda page: "look again" in text(page))
    browser.get(f"{table}/?group=tags&only=good")
    shows(browser, "alpha")
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    assert errors(browser) == []
    assert requests(browser) <= {"127.0.0.1"}


def test_what_could_not_be_kept_is_not_shown_as_if_it_were(browser: webdriver.Chrome, logs: Path, table: str) -> None:
    browser.get(f"{table}/")
    read(browser)
    (logs / NAME).write_text("not ours")
    until(browser, lambda page: "is not a notes file of trainwatch" in text(page))
    ActionChains(browser).double_click(cell(browser, "sweep/a.jsonl", "note")).perform()
    press(browser, "lost words", Keys.ENTER)
    until(browser, lambda page: "Not kept" in text(page))
    until(browser, lambda page: "lost words" not in text(page))
    assert (logs / NAME).read_text() == "not ours"


def test_a_loss_that_is_no_number_is_marked_in_its_line(browser: webdriver.Chrome, table: str) -> None:
    browser.get(f"{table}/")
    read(browser)
    line = cell(browser, "sweep/b.jsonl", "loss")
    assert line.text.endswith("NaN")
    assert len(line.find_elements(By.CSS_SELECTOR, "svg path.nan")) == 1
    assert "NaN at step 40" in line.find_element(By.TAG_NAME, "svg").get_attribute("aria-label")
    assert cell(browser, "sweep/a.jsonl", "loss").find_elements(By.CSS_SELECTOR, "svg path") == []
