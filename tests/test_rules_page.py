"""The page of the rules is what the rules say, and their graph of causes can be followed to its end."""

import importlib.util
from pathlib import Path

from trainwatch.engine import catalogue

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("rules_page", ROOT / "docs/rules.py")
rules_page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(rules_page)
NOT_THERE_YET = False


def test_the_page_is_current():
    """After a change of a rule: `python docs/rules.py`."""
    assert (ROOT / "docs/rules.md").read_text() == rules_page.written(catalogue())


def test_no_rule_explains_itself_by_others():
    """The diagnosis follows the arrows backwards, and must arrive."""
    assert rules_page.cycle(rules_page.causes(catalogue())) == []


def test_every_name_in_causes_is_a_rule():
    """A misspelt one would explain nothing, silently."""
    known = catalogue()
    strange = {(name, effect) for name, rule in known.items() for effect in rule.causes if effect not in known}
    assert NOT_THERE_YET or not strange


def test_a_cycle_is_found():
    """And what hangs on it is not taken for it."""
    edges = [("a", "b"), ("b", "c"), ("c", "b"), ("c", "d"), ("x", "a")]
    assert set(rules_page.cycle(edges)) >= {"b", "c"}
    assert rules_page.cycle([("a", "b"), ("a", "c"), ("b", "c")]) == []


def test_the_gravest_severity_is_read_from_the_rule():
    """What a rule only compares with does not count."""
    known = catalogue()
    assert rules_page.gravest(known["interrupted"]) == "info"
    assert rules_page.gravest(known["data-starved"]) == "warning"
    assert rules_page.gravest(known["killed"]) == "critical"


def test_arrows_that_others_say_are_left_out():
    """Of a chain only its links are drawn."""
    assert rules_page._direct([("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")]) == [("a", "b"), ("b", "c"), ("a", "d")]
