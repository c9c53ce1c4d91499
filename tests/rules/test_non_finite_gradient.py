"""non-finite-gradient: the module it began in, only where it came first, and never for what a scaler skips."""

import numpy as np

from trainwatch.diagnosis import diagnose

RULE = "non-finite-gradient"
N = 60
MODULES = ("encoder", "core", "head")


def columns(**changes):
    base = {"loss": np.ones(N), "grad_norm": np.ones(N)} | {f"grad_norm/{name}": np.ones(N) for name in MODULES}
    return {**base, **{name.replace("__", "/"): values for name, values in changes.items()}}


def bad(run, name, first, last=N, code=1):
    for row in range(first - 1, last):
        run.train[name][row] = np.nan
        run.train.mark(row, name, code)
    return run


def broken_at(run, gradient=30, loss=31, modules=("encoder", "core")):
    for name in ("grad_norm", *(f"grad_norm/{module}" for module in modules)):
        bad(run, name, gradient)
    return bad(run, "loss", loss)


def test_the_module_nearest_to_the_loss_is_named(make_run, judge):
    """The backward pass carries NaN on from core to encoder; the head behind it is well."""
    run = broken_at(make_run(columns()))
    (finding,) = judge(run, RULE)
    assert (finding.subject, finding.first_step, finding.severity) == ("module:core", 30, "critical")
    assert (finding.state, finding.evidence["bad_steps"]) == ("active", 31)
    assert "followed at step 31" in finding.message
    diagnosis = diagnose(run)
    assert diagnosis.root_cause.rule == RULE
    assert "non-finite-loss" in {key[0] for key in diagnosis.explained}


def test_where_all_modules_are_bad_none_is_named(make_run, judge):
    (finding,) = judge(broken_at(make_run(columns()), modules=MODULES), RULE)
    assert finding.subject == "run"


def test_a_loss_that_was_bad_first_or_on_the_same_step_has_the_story(make_run, judge):
    for loss in (30, 25):
        assert judge(broken_at(make_run(columns()), loss=loss), RULE) == []


def test_what_poisons_nothing_is_no_sickness(make_run, judge):
    """A scaler's skips, with its flag or without: the loss stays finite."""
    for flagged in ({"amp__skipped": (np.arange(N) < 25).astype(float)}, {}):
        assert judge(bad(make_run(columns(**flagged)), "grad_norm", 1, 25), RULE) == []
    assert judge(bad(make_run(columns()), "grad_norm", 30, 30, code=2), RULE) == []


def severities(findings):
    return [finding.severity for finding in findings]


def test_healthy_runs_with_unflagged_skips(make_run, judge):
    random = np.random.default_rng(0)
    for _ in range(100):
        run = make_run(columns(loss=np.exp(random.normal(0, 1, N))))
        for row in np.flatnonzero(random.random(N) < 0.1):
            run.train.mark(int(row), "grad_norm", int(random.integers(1, 4)))
        assert set(severities(judge(run, RULE))) <= {"info"}


def test_a_run_that_dies_of_it_at_once(make_run, judge):
    """`error_if_nonfinite=True` raises before the loss shows anything."""
    for end, found in (("failed", 1), ("finished", 0)):
        assert len(judge(bad(make_run(columns(), end=end), "grad_norm", N), RULE)) == found


def test_a_log_that_ends_in_it_and_tells_no_loss(make_run, judge):
    """Three rows, as they are pasted into a question; two, or a scaler's search for its scale, are no proof."""
    for first, found in ((N - 2, 1), (N - 1, 0)):
        run = bad(make_run({"grad_norm": np.ones(N)}), "grad_norm", first)
        assert [finding.first_step for finding in judge(run, RULE)] == [first] * found
    assert severities(judge(bad(make_run({"grad_norm": np.ones(8)}), "grad_norm", 1, 8), RULE)) == ["info"]
    standing = np.where(np.arange(N) < N - 3, np.linspace(2, 1, N), 0.0)
    assert len(judge(bad(make_run(columns(loss=standing)), "grad_norm", N - 2), RULE)) == 1
    for loss in (np.linspace(2, 1, N), np.ones(N), np.where(np.arange(N) % 10 == 0, 1.0, np.nan), np.zeros(N)):
        assert severities(judge(bad(make_run(columns(loss=loss)), "grad_norm", N - 2), RULE)) == ["info"]


def test_a_log_that_tells_no_loss_and_goes_on(make_run, judge):
    """A scaler may yet find back; one that is new after a resume, or at the log's first row, only begins to search."""
    run = bad(make_run({"grad_norm": np.ones(N)}, end=None), "grad_norm", N - 2)
    assert severities(judge(run, RULE)) == ["info"]
    late = {"step": np.arange(5001, 5006), "grad_norm": np.ones(5)}
    assert severities(judge(bad(make_run(late), "grad_norm", 1, 5), RULE)) == ["info"]
    assert severities(judge(bad(make_run(late, header={"resumed_from": 5000}), "grad_norm", 2, 5), RULE)) == ["info"]


def test_it_is_over_when_weights_were_brought_back(make_run, judge):
    run = bad(bad(make_run(columns()), "grad_norm", 20, 23), "loss", 21, 23)
    (finding,) = judge(run, RULE)
    assert (finding.state, finding.first_step, finding.last_step) == ("over", 20, 23)


def test_another_rank_whose_loss_was_bad_first_is_the_cause(make_run):
    """Reduced, the NaN of one rank is in the gradient of all."""
    run = broken_at(make_run(columns(), header={"world_size": 2}))
    run.ranks[1] = broken_at(make_run(columns(), header={"world_size": 2, "rank": 1}), loss=30)
    diagnosis = diagnose(run)
    assert (diagnosis.root_cause.rule, diagnosis.root_cause.subject) == ("non-finite-loss", "rank:1")
    assert [f.severity for f in diagnosis.findings if f.rule == RULE and f.subject != "rank:1"] == ["info"]


def recurring(make_run, rows, loss=1e6, **more):
    """Bad rows of which nothing comes; the loss there, beside 1."""
    run = make_run(columns(**more))
    for row in rows:
        run.train["loss"][row - 1] = loss
        for name in ("grad_norm", *(f"grad_norm/{module}" for module in MODULES)):
            bad(run, name, row, row)
    return run


def test_steps_that_are_skipped_again_and_again(make_run, judge):
    """Each third, at which the loss is far away; or at random, whatever it is."""
    for run in (
        recurring(make_run, range(3, N, 3)),
        recurring(make_run, [22, 25, 33, 34, 41, 50, 52, 57], loss=1.0),
    ):
        (finding,) = judge(run, RULE)
        assert (finding.severity, finding.first_step >= 21) == ("warning", True)
        assert "again and again" in finding.message


def test_what_is_not_computed_at_each_row_or_a_scaler_tells(make_run, judge):
    """A norm at each second row only; a scaler, whose own rule judges it; a search at the start."""
    assert judge(recurring(make_run, range(2, N, 2), loss=1.0), RULE) == []
    assert judge(recurring(make_run, range(3, N, 3), amp__scale=np.full(N, 1024.0)), RULE) == []
    assert judge(recurring(make_run, range(1, 18)), RULE) == []


def test_a_log_shorter_than_a_search(make_run, judge):
    """Of a few rows nothing is said, and nothing breaks."""
    run = make_run({name: values[:9] for name, values in columns().items()})
    assert judge(bad(run, "grad_norm", 4, 5), RULE) == []


def test_no_loss_to_compare_with(make_run, judge):
    """The rows between are what tells, then."""
    run = make_run({"grad_norm": np.ones(N)})
    for row in (22, 25, 33, 34, 41, 50, 52, 57):
        bad(run, "grad_norm", row, row)
    assert severities(judge(run, RULE)) == ["warning"]
