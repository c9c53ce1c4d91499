"""non-finite-loss: the exact step, the component only where it alone is to blame, and no alarm where none is due."""

import numpy as np

RULE = "non-finite-loss"
N = 60


def columns(**changes):
    base = {"loss": np.ones(N), "loss/a": np.full(N, 0.4), "loss/b": np.full(N, 0.6), "grad_norm": np.ones(N)}
    return {**base, **{name.replace("__", "/"): values for name, values in changes.items()}}


def test_the_component_that_alone_breaks_is_named_at_its_step(make_run, judge):
    """And the last finite value is shown."""
    run = make_run(columns())
    for row in range(30, N):
        for name in ("loss", "loss/b"):
            run.train[name][row] = np.nan
            run.train.mark(row, name, 1)
    (finding,) = judge(run, RULE)
    assert (finding.subject, finding.first_step, finding.last_step, finding.state) == ("component:b", 31, 60, "active")
    assert finding.evidence == {"loss": "nan", "loss/b": "nan", "last_finite": 0.6, "bad_steps": 30}
    assert finding.severity == "critical"


def test_a_gradient_that_broke_first_is_named_instead(make_run, judge):
    """The component only shows what the weights had become."""
    run = make_run(columns())
    run.train.mark(29, "grad_norm", 1)
    run.train.mark(30, "loss/b", 1)
    run.train.mark(30, "loss", 1)
    (finding,) = judge(run, RULE)
    assert finding.subject == "run"
    assert finding.evidence["bad_first"] == 30
    assert "the gradient was bad first" in finding.message


def test_a_bad_batch_is_named(make_run, judge):
    """bad/input counts what is not finite in the input."""
    bad = np.zeros(N)
    bad[19] = 3
    run = make_run(columns(bad__input=bad, loss=np.where(np.arange(N) == 20, np.inf, 1.0)))
    (finding,) = judge(run, RULE)
    assert finding.first_step == 21
    assert "the input was bad first, at step 20" in finding.message
    assert "infinite" in finding.message


def test_a_single_bad_step_is_over_when_the_loss_came_back(make_run, judge):
    """It stays in the record."""
    (finding,) = judge(make_run(columns(loss=np.where(np.arange(N) == 5, np.inf, 1.0))), RULE)
    assert (finding.state, finding.last_step) == ("over", 6)
    assert "finite again" in finding.message


def test_steps_that_the_scaler_skipped_do_not_count(make_run, judge):
    """fp16 looks for its scale at the start."""
    first = np.arange(N) < 4
    run = make_run(columns(loss=np.where(first, np.inf, 1.0), amp__skipped=first.astype(float)))
    assert judge(run, RULE) == []


def test_at_weight_zero_it_poisons_nothing_yet(make_run, judge):
    """A warning: it will when the weight rises."""
    run = make_run(columns(loss__b=np.where(np.arange(N) > 3, np.inf, 1.0), weight__b=np.zeros(N)))
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "component:b", 5)


def test_an_evaluation_without_a_number_is_named(make_run, judge):
    """Split by split."""
    evals = [{"step": 10, "split": "valid", "loss": 1.0}, {"step": 20, "split": "valid", "loss": float("nan")}]
    (finding,) = judge(make_run(columns(), evals=evals), RULE)
    assert (finding.subject, finding.first_step) == ("split:valid", 20)


def test_nan_metrics_and_absent_losses_are_no_nan_loss(make_run, judge):
    """An average precision without detections, a component that is not there on every row."""
    sparse = np.where(np.arange(N) % 10 == 0, 0.5, np.nan)
    evals = [{"step": 10, "split": "valid", "loss": 1.0, "metric/map": float("nan")}]
    assert judge(make_run(columns(loss__c=sparse), evals=evals), RULE) == []


def broken(run, first, last, *names):
    """NaN in the rows of the steps from ``first`` to ``last``."""
    for name in names:
        for row in range(first - 1, last):
            run.train[name][row] = np.nan
            run.train.mark(row, name, 1)
    return run


def test_skips_without_a_flag_do_not_count(make_run, judge):
    """`applied` stands still on a step that was skipped."""
    first = np.arange(N) < 4
    applied = np.maximum(np.arange(N) - 3, 0)
    assert judge(make_run(columns(loss=np.where(first, np.inf, 1.0), applied=applied)), RULE) == []
    (finding,) = judge(make_run(columns(loss=np.where(first, np.inf, 1.0), applied=np.arange(N) + 1)), RULE)
    assert finding.first_step == 1


def test_skipping_without_end_is_critical(make_run, judge):
    """A hundred in a row; a few fewer are a scaler that looks for its scale."""
    for skips, found in ((99, 0), (100, 1)):
        ill = np.arange(300) < skips
        run = make_run({"loss": np.ones(300), "grad_norm": np.where(ill, np.inf, 1.0), "amp/skipped": ill * 1.0})
        findings = judge(run, RULE)
        assert len(findings) == found
        assert [(f.severity, f.first_step, f.last_step, f.state) for f in findings] == [
            ("critical", 1, 100, "over")
        ] * found


def test_what_was_bad_long_ago_is_not_the_origin(make_run, judge):
    """An infinite gradient at step 3, and 40 clean steps; one that lasts is remembered from its beginning."""
    run = broken(make_run(columns()), 44, N, "loss", "loss/b")
    run.train.mark(2, "grad_norm", 2)
    (finding,) = judge(run, RULE)
    assert (finding.subject, finding.first_step) == ("component:b", 44)
    run = broken(make_run(columns()), 3, N, "grad_norm")
    (finding,) = judge(broken(run, 44, N, "loss", "loss/b"), RULE)
    assert finding.evidence["bad_first"] == 3


def test_a_second_disease_is_told_apart(make_run, judge):
    """a once, b for good; and the number of findings is bounded."""
    run = broken(broken(make_run(columns()), 5, 5, "loss", "loss/a"), 40, N, "loss", "loss/b")
    first, second = judge(run, RULE)
    assert (first.subject, first.first_step, first.last_step, first.state) == ("component:a", 5, 5, "over")
    assert (second.subject, second.first_step, second.last_step, second.state) == ("component:b", 40, N, "active")
    many = np.where(np.arange(1000) % 50 == 9, np.inf, 1.0)
    found = judge(make_run({"loss": many}), RULE)
    assert [finding.evidence["bad_steps"] for finding in found] == [1, 1, 1, 17]


def test_a_component_beside_a_finite_total_is_a_warning(make_run, judge):
    """NaN where there is nothing to measure, and left out of the sum."""
    (finding,) = judge(broken(make_run(columns()), 30, 32, "loss/b"), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "component:b", 30)
    assert "3 steps" in finding.message


def test_a_component_of_an_evaluation(make_run, judge):
    """Critical where no total says otherwise."""
    for total, severity in (({}, "critical"), ({"loss": 1.0}, "warning")):
        evals = [{"step": 20, "split": "valid", "loss/a": float("nan"), "loss/b": 1.0, **total}]
        (finding,) = judge(make_run(columns(), evals=evals), RULE)
        assert (finding.subject, finding.severity, finding.evidence) == ("split:valid", severity, {"loss/a": "nan"})


def test_skipping_in_a_log_with_a_row_in_fifty(make_run, judge):
    """The window is 2 % of the planned steps, however many rows tell of them."""
    row = np.arange(400)
    ill = (row >= 100) & (row < 250)
    columns = {"step": 50 * (row + 1), "loss": np.ones(400), "grad_norm": np.where(ill, np.inf, 1.0)}
    run = make_run(columns | {"amp/skipped": ill * 1.0}, header={"total_steps": 20_000})
    assert [(f.first_step, f.last_step, f.state) for f in judge(run, RULE)] == [(5050, 12_500, "over")]


def test_a_split_that_is_named_anew_each_time_is_told_64_times(make_run, judge):
    """What the rule remembers does not grow with the run."""
    evals = [{"step": at, "split": f"step-{at}", "loss": float("nan")} for at in range(1, 100)]
    assert len(judge(make_run(columns(), evals=evals), RULE)) == 64
