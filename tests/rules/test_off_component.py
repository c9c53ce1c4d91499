"""off-component: a declared loss without a weight is said once, when the run is over or half through."""

import numpy as np
import pytest

RULE = "off-component"
N = 60
HEADER = {"components": {"a": {}, "b": {}, "c": {}}, "total_steps": 100}
COLUMNS = {"loss/a": np.ones(N), "weight/a": np.ones(N), "loss/b": np.ones(N), "weight/b": np.zeros(N)}


def test_what_never_had_a_weight_is_told(make_run, judge):
    """Recorded with 0, or not recorded at all."""
    found = judge(make_run(COLUMNS, header=HEADER), RULE)
    assert [(f.severity, f.subject) for f in found] == [("info", "component:b"), ("info", "component:c")]


PLAN = {"name": "A", "stages": [{"start": 0, "weights": {"a": 1}}, {"start": 90, "weights": {"b": 1, "c": 1}}]}
HEALTHY = {
    "a later stage": (COLUMNS, HEADER | {"curriculum": PLAN}, "finished"),
    "a young run": (COLUMNS, HEADER | {"total_steps": 1000}, None),
    "one row with a weight": (
        {**COLUMNS, "weight/b": (np.arange(N) == 7) * 1.0, "loss/c": np.ones(N)},
        HEADER,
        "finished",
    ),
    "few rows": ({name: values[:5] for name, values in COLUMNS.items()}, HEADER, "finished"),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, make_run, judge):
    """It is not too late, or it was there."""
    columns, header, end = HEALTHY[name]
    assert judge(make_run(columns, header=header, end=end), RULE) == []
