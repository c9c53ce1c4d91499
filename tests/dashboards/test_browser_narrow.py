"""The table of runs on a telephone: one column, and everything within reach of a thumb and of the keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("dash")
pytest.importorskip("selenium")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from dashboards.notes import NAME
from tests.dashboards.test_browser import HOSTILE, browser, errors, logs, pytestmark, text, until
from tests.dashboards.test_browser_runs import FILTER, asked, press, read, table

__all__ = ["browser", "logs", "pytestmark", "table"]

STACKS = """
const found = [...document.querySelectorAll('#runs .ag-center-cols-container .ag-row')];
found.sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index'));
return found.map(row => row.querySelector('.stack-head strong').innerText)
"""
ROOM = """
const table = document.querySelector('#runs .ag-center-cols-viewport');
const stacks = [...document.querySelectorAll('.stack')];
return {
  page: document.documentElement.scrollWidth - window.innerWidth,
  table: table.scrollWidth - table.clientWidth,
  cut: stacks.filter(stack => stack.scrollHeight > stack.parentElement.clientHeight + 1).length,
}
"""
TAP = """
const box = arguments[0].getBoundingClientRect();
return [box.left + box.width / 2, box.top + box.height - 12]
"""


@pytest.fixture
def telephone(browser: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    yield browser
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def shows(browser: webdriver.Chrome, *names: str) -> None:
    until(browser, lambda page: page.execute_script(STACKS) == list(names))


def tap(browser: webdriver.Chrome, element: object) -> None:
    """A thumb on the lower half of an element."""
    x, y = browser.execute_script(TAP, element)
    point = {"touchPoints": [{"x": x, "y": y}]}
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", **point})
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_nothing_lies_beside_a_narrow_screen(telephone: webdriver.Chrome, table: str) -> None:
    telephone.get(f"{table}/?sort=run:asc&group=state")
    read(telephone)
    until(telephone, lambda page: len(page.execute_script(STACKS)) == 3)
    assert telephone.execute_script(ROOM) == {"page": 0, "table": 0, "cut": 0}
    assert errors(telephone) == []


def test_a_run_is_searched_and_opened_by_thumb(telephone: webdriver.Chrome, table: str) -> None:
    telephone.get(f"{table}/?sort=run:asc")
    read(telephone)
    shows(telephone, "alpha", "beta", "gamma")
    tap(telephone, telephone.find_element(By.CSS_SELECTOR, "#runs-chips [data-name='failed']"))
    shows(telephone, "beta")
    tap(telephone, telephone.find_element(By.CSS_SELECTOR, "#runs-chips [data-name='failed']"))
    telephone.find_element(By.ID, "runs-search").send_keys("c.jsonl")  # words of a column that is not shown
    shows(telephone, "gamma")
    tap(telephone, telephone.find_element(By.CSS_SELECTOR, ".ag-row[row-id='final/c.jsonl'] .stack"))
    until(telephone, lambda page: urlsplit(page.current_url).path == "/run")
    until(telephone, lambda page: "gamma" in text(page))


def test_a_run_is_opened_by_keys_on_a_narrow_screen(telephone: webdriver.Chrome, table: str) -> None:
    telephone.get(f"{table}/")
    read(telephone)
    Select(telephone.find_element(By.ID, "runs-sort")).select_by_value("run:asc")
    shows(telephone, "alpha", "beta", "gamma")
    assert asked(telephone) == {"sort": ["run:asc"]}
    stack = ".ag-row[row-id='sweep/a.jsonl'] [col-id='stack']"
    telephone.execute_script("dash_ag_grid.getApi('runs').setFocusedCell(0, 'stack')")
    until(telephone, lambda page: "ag-cell-focus" in page.find_element(By.CSS_SELECTOR, stack).get_attribute("class"))
    press(telephone, Keys.ARROW_DOWN)
    press(telephone, Keys.ENTER)
    until(telephone, lambda page: asked(page).get("path") == ["sweep/b.jsonl"])


def test_filters_hold_when_the_screen_turns(telephone: webdriver.Chrome, table: str) -> None:
    telephone.get(f"{table}/?sort=run:asc")
    read(telephone)
    telephone.execute_script(FILTER, {"steps": {"filterType": "number", "type": "greaterThan", "filter": 25}})
    shows(telephone, "alpha", "beta")
    wide = {"width": 1400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    telephone.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", wide)
    columns = "return dash_ag_grid.getApi('runs').getAllDisplayedColumns().map(column => column.getColId())"
    until(telephone, lambda page: {"health", "run", "cause", "note"} <= set(page.execute_script(columns)))
    assert "stack" not in telephone.execute_script(columns)
    assert "2 of 3 shown" in text(telephone)


def fill(browser: webdriver.Chrome, name: str, words: str) -> None:
    field = browser.find_element(By.ID, name)
    field.clear()
    field.send_keys(words)


def kept(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    return dict(json.loads(path.read_text())["runs"]) if path.exists() else {}


OPEN = "const form = document.getElementById('note-form'); return Boolean(form && form.open)"


def open_form(browser: webdriver.Chrome, table: str, key: str) -> None:
    """The form for a run's tags and note, opened by thumb."""
    browser.get(f"{table}/?sort=run:asc")
    read(browser)
    shows(browser, "alpha", "beta", "gamma")
    tap(browser, browser.find_element(By.CSS_SELECTOR, f".ag-row[row-id='{key}'] .stack-edit"))
    until(browser, lambda page: page.execute_script(OPEN))


def test_tags_and_a_note_are_written_by_thumb(telephone: webdriver.Chrome, logs: Path, table: str) -> None:
    open_form(telephone, table, "sweep/b.jsonl")
    assert "Tags and note of beta" in text(telephone)
    assert telephone.execute_script(ROOM)["page"] == 0
    fill(telephone, "note-tags", f"bad, {HOSTILE[:20]}")
    fill(telephone, "note-note", "its loss is NaN")
    tap(telephone, telephone.find_element(By.ID, "note-keep"))
    until(telephone, lambda page: not page.execute_script(OPEN))
    assert kept(logs) == {"sweep/b.jsonl": {"tags": ["bad", HOSTILE[:20].strip()], "note": "its loss is NaN"}}
    until(telephone, lambda page: "its loss is NaN" in text(page))
    assert urlsplit(telephone.current_url).path == "/"  # the form is no link
    assert telephone.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    assert errors(telephone) == []


def test_tags_and_a_note_are_written_by_keys(telephone: webdriver.Chrome, logs: Path, table: str) -> None:
    telephone.get(f"{table}/?sort=run:asc")
    read(telephone)
    shows(telephone, "alpha", "beta", "gamma")
    stack = ".ag-row[row-id='sweep/a.jsonl'] [col-id='stack']"
    telephone.execute_script("dash_ag_grid.getApi('runs').setFocusedCell(0, 'stack')")
    until(telephone, lambda page: "ag-cell-focus" in page.find_element(By.CSS_SELECTOR, stack).get_attribute("class"))
    press(telephone, "e")
    until(telephone, lambda page: page.execute_script(OPEN))
    press(telephone, "first", Keys.TAB, "line", Keys.ENTER, "line")
    press(telephone, Keys.TAB, Keys.TAB, Keys.ENTER)
    until(telephone, lambda page: not page.execute_script(OPEN))
    assert kept(logs) == {"sweep/a.jsonl": {"tags": ["first"], "note": "line\nline"}}
    # the focus is where it was, and Escape keeps nothing
    until(telephone, lambda page: "ag-cell-focus" in page.find_element(By.CSS_SELECTOR, stack).get_attribute("class"))
    press(telephone, "e")
    until(telephone, lambda page: page.execute_script(OPEN))
    press(telephone, "second", Keys.ESCAPE)
    until(telephone, lambda page: not page.execute_script(OPEN))
    assert kept(logs)["sweep/a.jsonl"]["tags"] == ["first"]


def test_words_that_could_not_be_kept_stay_in_the_form(telephone: webdriver.Chrome, logs: Path, table: str) -> None:
    open_form(telephone, table, "sweep/a.jsonl")
    fill(telephone, "note-tags", "x" * 50)
    fill(telephone, "note-note", "kept all the same")
    telephone.find_element(By.ID, "note-keep").click()
    until(telephone, lambda page: "at most 20 tags of at most 40 characters" in text(page))
    assert telephone.execute_script(OPEN)
    fill(telephone, "note-tags", "short")
    telephone.find_element(By.ID, "note-keep").click()
    until(telephone, lambda page: not page.execute_script(OPEN))
    assert kept(logs) == {"sweep/a.jsonl": {"tags": ["short"], "note": "kept all the same"}}


OTHERS = """
const others = {rows: [{key: 'final/c.jsonl', tags: 'late', note: ''}], said: 'Kept beside the runs.'};
window.trainwatchNotes.answered(others);
document.getElementById('note-keep').disabled = true;  // as while its own words are on their way
window.trainwatchNotes.answered(others);
"""


def test_the_answer_to_other_words_does_not_close_the_form(telephone: webdriver.Chrome, table: str) -> None:
    open_form(telephone, table, "sweep/a.jsonl")
    fill(telephone, "note-note", "half a sen")
    telephone.execute_script(OTHERS)
    assert telephone.execute_script(OPEN)
    assert telephone.find_element(By.ID, "note-note").get_property("value") == "half a sen"


UNANSWERED = """
const later = window.setTimeout;
window.setTimeout = (call, wait, ...words) => later(call, wait === 10000 ? 100 : wait, ...words);
window.dash_clientside.set_props = () => {};
"""


def test_words_that_nobody_answers_can_be_sent_again(telephone: webdriver.Chrome, table: str) -> None:
    open_form(telephone, table, "sweep/a.jsonl")
    fill(telephone, "note-note", "words")
    telephone.execute_script(UNANSWERED)
    keep = telephone.find_element(By.ID, "note-keep")
    keep.click()
    until(telephone, lambda page: "these words are not kept yet" in text(page))
    assert keep.is_enabled()
    assert telephone.find_element(By.ID, "note-note").get_property("value") == "words"
