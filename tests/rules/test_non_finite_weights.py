"""non-finite-weights: only where no loss and no gradient explains it."""

import itertools

import numpy as np
import pytest

from trainwatch.diagnosis import diagnose
from trainwatch.engine import Engine

RULE = "non-finite-weights"
N = 200
SEEN = (np.arange(1, N + 1) % 50 == 0) | (np.arange(N) == 0)


def columns(**changes):
    base = {"loss": np.ones(N), "grad_norm": np.ones(N), "weight_norm/a": np.where(SEEN, 5.0, np.nan)}
    return {**base, **{name.replace("__", "/"): values for name, values in changes.items()}}


def bad(run, name, first, last=N, where=None):
    for row in range(first - 1, last):
        if where is None or where[row]:
            run.train[name][row] = np.nan
            run.train.mark(row, name, 1)
    return run


def test_weights_that_break_by_themselves(make_run, judge):
    """The optimiser's doing: the weight norm of step 100 is NaN, and so is the loss from there on."""
    run = bad(bad(make_run(columns()), "weight_norm/a", 100, where=SEEN), "loss", 100)
    (finding,) = judge(run, RULE)
    assert (finding.subject, finding.first_step, finding.severity, finding.state) == (
        *("group:a", 100, "critical", "active"),
    )
    assert diagnose(run).root_cause.rule == RULE


def held(*values, steps=(50, 100)):
    return [{"step": step, "loss/a": value, "loss/b": 1.0} for step, value in zip(steps, values, strict=True)]


def parts_from(first, last=N):
    parts = {"loss__a": np.ones(N), "loss__b": np.ones(N), "weight_norm/a": np.full(N, np.nan)}
    return {name: values for name, values in columns(**parts).items() if name != "weight_norm/a"}, first, last


@pytest.mark.parametrize(
    ("evals", "last", "skipped", "count"),
    [
        (held(1.0, np.inf), N, 0, 1),
        (held(np.inf, np.inf), N, 0, 0),  # it never was a number: validation's own data
        (held(1.0, 1.0), N, 0, 0),
        (held(1.0, np.inf), 101, 0, 0),  # one bad batch
        (held(1.0, np.inf), N, 1, 0),  # a scaler skips them
    ],
)
def test_validation_tells_what_a_finite_step_left_behind(make_run, judge, evals, last, skipped, count):
    """Its loss and gradient were numbers, and no component is one since."""
    base, _, _ = parts_from(101)
    run = make_run(base | {"amp/skipped": np.where(np.arange(N) >= 100, skipped, 0)}, evals=evals)
    for record, row in zip(evals, range(2), strict=True):
        if not np.isfinite(record["loss/a"]):
            run.eval["loss/a"][row] = np.nan
            run.eval.mark(row, "loss/a", 1)
    for name in ("loss", "loss/a", "loss/b", "grad_norm"):
        bad(run, name, 101, last)
    found = judge(run, RULE)
    assert [(one.severity, one.first_step) for one in found] == [("critical", 100)] * count


def test_counted_weights(make_run, judge):
    """bad/weights is counted after the step; the loss follows."""
    run = bad(make_run(columns(bad__weights=np.where(np.arange(N) >= 69, 3.0, 0.0))), "loss", 71)
    (finding,) = judge(run, RULE)
    assert (finding.first_step, finding.evidence) == (70, {"bad": 3.0})


def test_a_loss_or_gradient_that_was_bad_before_has_the_story(make_run, judge):
    """Between two looks at the weights, or on the step after which they were counted."""
    for name, first in (("loss", 80), ("grad_norm", 99)):
        run = bad(bad(make_run(columns()), "weight_norm/a", 100, where=SEEN), name, first)
        assert judge(run, RULE) == []
    counted = np.where(np.arange(N) >= 69, 3.0, 0.0)
    assert judge(bad(make_run(columns(bad__weights=counted)), "grad_norm", 70), RULE) == []


def test_it_is_over_when_they_are_whole_again(make_run, judge):
    run = bad(make_run(columns()), "weight_norm/a", 100, 100)
    (finding,) = judge(run, RULE)
    assert (finding.state, finding.last_step) == ("over", 100)


def test_healthy_weights(make_run, judge):
    assert judge(make_run(columns(bad__weights=np.zeros(N))), RULE) == []


def test_rows_that_say_nothing_of_weights_do_not_clear_a_loss(make_run):
    """A bad loss explains bad weights until somebody has looked at them, however the rows are cut."""
    counts = np.where(np.arange(N) >= 149, 3.0, np.nan)
    values = {"loss": np.ones(N), "bad/weights": counts}
    values["loss"][100] = np.inf
    found = []
    for cuts in ((0, N), (0, 120, 140, N)):
        run, engine = make_run(header={}, end=None), Engine()
        for first, stop in itertools.pairwise(cuts):
            rows = {name: column[first:stop] for name, column in values.items()}
            make_run(rows | {"step": np.arange(first + 1, stop + 1)}, end=None, onto=run)
            engine.feed(run)
        found.append([finding for finding in engine.findings(run) if finding.rule == RULE])
    assert found == [[], []]


def test_the_last_step_is_the_highest(make_run, judge):
    """A log may go backwards."""
    steps = np.where(np.arange(N) < 190, np.arange(1, N + 1), np.arange(1, N + 1) - 60)
    (finding,) = judge(make_run(columns(step=steps, bad__weights=np.where(np.arange(N) >= 69, 3.0, 0.0))), RULE)
    assert finding.last_step == 190


def test_few_that_are_bad_with_the_loss_and_all_a_row_later_were_first(make_run, judge):
    """They are counted before the step then; a loss that is bad first spoils at once what its gradient reaches."""
    for first, told in ((96.0, [141]), (14_000.0, [])):
        counts = np.select([np.arange(N) < 140, np.arange(N) == 140], [0.0, first], 15_000.0)
        run = bad(bad(make_run(columns(bad__weights=counts)), "loss", 141), "grad_norm", 141)
        assert [finding.first_step for finding in judge(run, RULE)] == told
