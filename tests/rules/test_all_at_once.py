"""all-at-once: an info where many losses compete from the first step on, and nobody planned an order."""

import numpy as np
import pytest

RULE = "all-at-once"
N = 100
ROW = np.arange(N)


def columns(cosine=-0.4, **changed):
    table = {f"loss/{name}": 1 + np.exp(-ROW / 30) for name in "abc"} | {f"weight/{name}": np.ones(N) for name in "abc"}
    return table | {"grad_cosine/a~b": cosine + 0.1 * np.cos(ROW**2)} | changed


def test_a_quarrel_of_three_is_an_info(make_run, judge):
    """Two that pull against each other, or one that outweighs the others."""
    (finding,) = judge(make_run(columns()), RULE)
    assert (finding.severity, finding.subject, finding.evidence) == ("info", "run", {"losses": 3})
    loud = columns(0.0, **{"loss/a": np.full(N, 1000.0)})
    assert "outweighs" in judge(make_run(loud), RULE)[0].message


PLANNED = {"curriculum": {"name": "A", "stages": [{"start": 0}, {"start": 50}]}}
HEALTHY = {
    "they agree": (columns(0.1), None),
    "a curriculum is declared": (columns(), PLANNED),
    "one enters later": (columns(**{"weight/c": (ROW > 50) * 1.0}), None),
    "stages are recorded": (columns(stage=(ROW > 50) * 1.0), None),
    "two losses": ({name: v for name, v in columns().items() if not name.endswith("/c")}, None),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, make_run, judge):
    """There is an order, or no quarrel."""
    table, header = HEALTHY[name]
    assert judge(make_run(table, header=header), RULE) == []
