"""dead-module: exactly zero where others are not."""

import numpy as np
import pytest

RULE = "dead-module"
N = 200
ROW = np.arange(N)
ONES = np.ones(N)


def test_a_module_that_dies_is_named_by_its_first_row(make_run, judge):
    """And is over when it lives again."""
    body = np.where((ROW >= 77) & (ROW < 150), 0.0, 0.3)
    (finding,) = judge(make_run({"grad_norm/body": body, "grad_norm/head": ONES}), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "module:body", 78)
    assert (finding.last_step, finding.state) == (150, "over")


def test_a_component_that_is_switched_off_explains_it(make_run, judge):
    """Weight 0 in these rows: an info."""
    columns = {"grad_norm/aux": 0 * ONES, "grad_norm/body": ONES, "loss/b": ONES, "weight/b": 0 * ONES}
    assert [finding.severity for finding in judge(make_run(columns), RULE)] == ["info"]


@pytest.mark.parametrize(("spread", "severity"), [(0.0, "warning"), (0.01, "info")])
def test_a_switched_off_component_does_not_explain_a_loss_that_is_one_number(spread, severity, make_run, judge):
    """No batch makes a difference any more: what is cut off is the whole model."""
    loss = 5.66 + spread * np.sin(ROW)
    columns = {"grad_norm/body": 0 * ONES, "grad_norm/head": ONES, "loss": loss, "loss/a": loss, "loss/b": 0 * ONES}
    assert [finding.severity for finding in judge(make_run(columns), RULE)] == [severity]


def test_a_module_that_lived_without_a_component_is_not_explained_by_it(make_run, judge):
    """The component was off all along, and the module had its gradient from another one until it died."""
    columns = {"grad_norm/trunk": np.where(ROW < 75, 0.3, 0.0), "grad_norm/body": ONES, "weight/b": 0 * ONES}
    (finding,) = judge(make_run(columns | {"loss/b": ONES}), RULE)
    assert (finding.severity, finding.first_step) == ("warning", 76)
    switched = columns | {"weight/b": np.where(ROW < 75, 1.0, 0.0)}
    assert [finding.severity for finding in judge(make_run(switched), RULE)] == ["info"]


@pytest.mark.parametrize("seed", range(10))
def test_gates_turns_and_skipped_steps_are_healthy(seed, make_run, judge):
    """A gate that opens in its second step; two optimisers by turns; nothing at all; a frozen module without a norm."""
    turn = ((seed + 1) * 2 > ROW % ((seed + 1) * 4)).astype(float)
    run = {"grad_norm/a": np.where(ROW < 2, 0.0, 1.0), "grad_norm/b": turn, "grad_norm/c": 1 - turn}
    assert [f for f in judge(make_run(run), RULE) if seed < 9] == []
    assert judge(make_run({"grad_norm/a": 0 * ONES, "grad_norm/b": 0 * ONES}), RULE) == []
    assert judge(make_run({"grad_norm/a": np.nan * ONES, "grad_norm/b": ONES}), RULE) == []
