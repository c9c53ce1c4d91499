"""non-finite-input: the batch that broke the loss; what a model takes well is no alarm."""

import numpy as np

from trainwatch.diagnosis import diagnose

RULE = "non-finite-input"
N = 60


def run_of(make_run, at=(30,), **changes):
    counts = np.zeros(N)
    counts[np.array(at, dtype=int) - 1] = 32
    base = {"loss": np.ones(N), "grad_norm": np.ones(N), "bad/input": counts, "data/index": 8.0 * np.arange(N)}
    return make_run({**base, **{name.replace("__", "/"): values for name, values in changes.items()}})


def broken(run, first, last=N, names=("loss", "grad_norm")):
    for name in names:
        for row in range(first - 1, last):
            run.train[name][row] = np.nan
            run.train.mark(row, name, 1)
    return run


def test_the_batch_that_broke_the_loss(make_run, judge):
    run = broken(run_of(make_run), 30)
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.first_step, finding.evidence) == (
        *("critical", 30, {"bad_inputs": 32.0, "index": 232.0}),
    )
    diagnosis = diagnose(run)
    assert diagnosis.root_cause.rule == RULE
    assert "non-finite-loss" in {key[0] for key in diagnosis.explained}


def test_statistics_of_the_input_will_do(make_run, judge):
    run = broken(run_of(make_run, (), data__input_mean=np.zeros(N)), 30)
    run.train.mark(29, "data/input_mean", 1)
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.first_step) == ("critical", 30)


def test_a_loss_that_is_logged_later(make_run, judge):
    """Every tenth row tells the loss; the batch came in between."""
    told = np.where(np.arange(1, N + 1) % 10 == 0, 1.0, np.nan)
    run = run_of(make_run, (33,), loss=told, grad_norm=told)
    for row in range(39, N, 10):
        for name in ("loss", "grad_norm"):
            run.train[name][row] = np.nan
            run.train.mark(row, name, 1)
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.first_step) == ("critical", 33)


def test_a_model_that_masks_what_is_missing_is_told_as_info(make_run, judge):
    """Every batch has some."""
    (finding,) = judge(run_of(make_run, range(1, N + 1)), RULE)
    assert (finding.severity, finding.evidence) == ("info", {"batches": 60})


def test_a_loss_that_broke_before_was_not_broken_by_it(make_run, judge):
    (finding,) = judge(broken(run_of(make_run), 20), RULE)
    assert finding.severity == "info"


def test_a_batch_that_the_scaler_skipped(make_run, judge):
    skipped = (np.arange(N) == 29).astype(float)
    (finding,) = judge(broken(run_of(make_run, amp__skipped=skipped), 30, 30), RULE)
    assert finding.severity == "info"


def test_it_is_over_when_the_loss_came_back(make_run, judge):
    (finding,) = judge(broken(run_of(make_run), 30, 32), RULE)
    assert (finding.state, finding.severity) == ("over", "critical")


def test_without_a_loss_nobody_can_tell(make_run, judge):
    (finding,) = judge(make_run({"bad/input": np.ones(5)}), RULE)
    assert finding.severity == "warning"
    assert judge(make_run({"bad/input": np.zeros(5)}), RULE) == []
