"""resume-discontinuity: what a checkpoint forgot."""

import numpy as np
import pytest

HEAD = {"total_steps": 1000, "config": {"lr": 1e-3}, "time": 1e9}


def columns(first, last, seed=0, **more):
    """Rows of a run as it goes on without an interruption, but for its noise."""
    random, step = np.random.default_rng(seed), np.arange(first, last + 1)
    return {
        "step": step,
        "loss": 0.5 + 2.5 * np.exp(-step / 100) + 0.1 * random.standard_t(3, len(step)),
        "lr/main": 1e-3 * (1 - step / 1000),
        "amp/scale": np.full(len(step), 1024.0),
        "data/index": 8.0 * (step - 1),
        "samples": 8.0 * step,
        "epoch": np.zeros(len(step)),
        **more,
    }


def judged(make_run, judge, after, until=450, head=None, events=()):
    """Resumed from step 400, where the run had come to ``until``."""
    run = make_run(columns(1, until, 7), header=HEAD, end=None)
    make_run(after, header={**HEAD, "time": 2e9, "resumed_from": 400, **(head or {})}, onto=run, events=events)
    return judge(run, "resume-discontinuity")


@pytest.mark.parametrize("until", [400, 401, 450])
@pytest.mark.parametrize("seed", range(20))
def test_a_resume_that_goes_on(make_run, judge, seed, until):
    """With other noise, and with a stage whose loss is another one."""
    assert judged(make_run, judge, columns(401, 600, seed), until) == []


@pytest.mark.parametrize("until", [400, 450])
@pytest.mark.parametrize(
    ("name", "change", "severity", "says"),
    [
        ("lr/main", lambda step: 1e-3 * np.minimum((step - 400) / 50, 1), "warning", "lr/main is 2e-05"),
        ("lr/main", lambda step: 1e-3 + 0 * step, "warning", "lr/main is 0.001"),
        ("loss", lambda step: 2.0 + 0 * step, "warning", "the loss is 2 where"),
        ("data/index", lambda step: 8.0 * (step - 401), "warning", "at sample 0 instead of 3,200"),
        ("data/index", lambda step: 8.0 * (step - 3), "info", "at sample 3,184 instead of 3,200"),
        ("amp/scale", lambda step: 65536.0 + 0 * step, "info", "scaler is at 65536"),
        ("samples", lambda step: 8.0 * (step - 400), "info", "the count of samples"),
    ],
)
def test_what_jumps(make_run, judge, until, name, change, severity, says):
    """Each by itself, at the first step behind the resume."""
    after = columns(401, 600)
    (found,) = judged(make_run, judge, {**after, name: change(after["step"])}, until)
    assert (found.severity, found.first_step) == (severity, 401)
    assert says in found.message


def test_an_optimiser_that_began_anew(make_run, judge):
    """The recorder says so; it belongs to the resume after which it was said."""
    event = {"event": "resume", "step": 401, "time": 2e9 + 1, "empty_optimizers": ["adamw"]}
    (found,) = judged(make_run, judge, columns(401, 600), events=[event])
    assert (found.severity, found.first_step) == ("warning", 401)
    assert "the adamw optimiser began without its state" in found.message
    assert judged(make_run, judge, columns(401, 600), events=[{**event, "time": 3.0}]) == []


@pytest.mark.parametrize(("count", "told"), [(449, []), (54, ["warning"])])
def test_a_state_of_an_older_checkpoint(make_run, judge, count, told):
    """It counts fewer of the steps that were taken; what was superseded does not matter."""
    before, after = columns(1, 450, 7), columns(401, 600)
    before["state_steps/adam"] = np.where(before["step"] % 50 == 0, before["step"] - 1, np.nan)
    after["state_steps/adam"] = np.where(after["step"] == 450, count, np.nan)
    run = make_run(before, header=HEAD, end=None)
    make_run(after, header={**HEAD, "time": 2e9, "resumed_from": 400}, onto=run)
    found = judge(run, "resume-discontinuity")
    assert [one.severity for one in found] == told
    said = "the adam optimiser counts 54 of 450 steps at step 450, where it counted 399 of 400 at step 400"
    assert all(said in one.message for one in found)


def test_a_change_on_purpose_is_mentioned(make_run, judge):
    """The config says another rate."""
    after = columns(401, 600)
    after["lr/main"] = after["lr/main"] * 0.1
    (found,) = judged(make_run, judge, after, head={"config": {"lr": 1e-4}})
    assert found.severity == "info"


def test_it_can_be_over_and_is_kept_through_another_resume(make_run, judge):
    """The loss comes back; two resumes, one finding."""
    after = columns(401, 600)
    after["loss"] = after["loss"] + 1.5 * (after["step"] < 450)
    run = make_run(columns(1, 450, 7), header=HEAD, end=None)
    make_run(after, header={**HEAD, "resumed_from": 400}, onto=run, end=None)
    make_run(columns(601, 700, 3), header={**HEAD, "resumed_from": 600}, onto=run)
    (found,) = judge(run, "resume-discontinuity")
    assert (found.first_step, found.state) == (401, "over")


def test_another_loss_by_design(make_run, judge):
    """The weights are others behind the resume."""
    after = columns(401, 600, **{"weight/b": np.ones(200)})
    after["loss"] = after["loss"] + 2.0
    run = make_run(columns(1, 450, 7, **{"weight/b": np.zeros(450)}), header=HEAD, end=None)
    make_run(after, header={**HEAD, "resumed_from": 400}, onto=run)
    assert judge(run, "resume-discontinuity") == []


@pytest.mark.parametrize(("period", "begins", "told"), [(1000, 0, ["warning"]), (1000, 400, []), (50, 0, [])])
def test_the_first_batches_again(make_run, judge, period, begins, told):
    """By their fingerprints; not where they are other ones, nor where epochs repeat themselves anyway."""
    first, after = columns(1, 450), columns(401, 500)
    first["data/fingerprint"] = 7.0 + np.arange(450) % period
    after["data/fingerprint"] = 7.0 + (begins + np.arange(100)) % period
    del first["data/index"], after["data/index"]
    run = make_run(first, header=HEAD, end=None)
    make_run(after, header={**HEAD, "time": 2e9, "resumed_from": 400}, onto=run)
    assert [finding.severity for finding in judge(run, "resume-discontinuity")] == told


@pytest.mark.parametrize(("old", "says"), [(False, []), (True, ["warning"])])
def test_old_weights_that_a_short_run_learns_again(make_run, judge, old, says):
    """Within twenty rows: the first five tell; twenty seeds."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        step = np.arange(1, 101)
        loss = 2.6 + 2 * np.exp(-step / 6) + 0.05 * random.standard_normal(100)
        again = 2.6 + 2 * np.exp(-(step[50:] - 45 * old) / 6) + 0.05 * random.standard_normal(50)
        run = make_run({"step": step[:50], "loss": loss[:50]}, header=HEAD, end=None)
        make_run({"step": step[50:], "loss": again}, header={**HEAD, "resumed_from": 50}, onto=run)
        found = judge(run, "resume-discontinuity")
        assert [one.severity for one in found] == says


@pytest.mark.parametrize("rows", [20, 30])
@pytest.mark.parametrize(("old", "says"), [(False, []), (True, ["warning"])])
def test_old_weights_where_twenty_rows_are_all_the_way_down(rows, old, says, make_run, judge):
    """Their spread is the descent's, and no noise; twenty seeds."""
    for seed in range(20):
        noise = 0.05 * np.random.default_rng(seed).standard_normal(2 * rows)
        row = np.arange(2 * rows)
        loss = 1 + 3 * np.exp(-np.where(row < rows, row, row - 0.8 * rows * old) / (rows / 2)) + noise
        run = make_run({"step": 10 * row[:rows] + 1, "loss": loss[:rows]}, header=HEAD, end=None)
        again = {"step": 10 * row[rows:] + 1, "loss": loss[rows:]}
        make_run(again, header={**HEAD, "resumed_from": 10 * rows}, onto=run)
        assert [one.severity for one in judge(run, "resume-discontinuity")] == says


@pytest.mark.parametrize("seed", range(40))
def test_a_short_log_that_wanders(seed, make_run, judge):
    """In waves of ten rows, up and down by as much as it had gained; the resume falls where it may."""
    random, row = np.random.default_rng(seed), np.arange(50)
    loss = 1 + np.exp(-row / 4) + 0.4 * np.sin(row * 0.6 + seed) + 0.02 * random.standard_normal(50)
    run = make_run({"step": row[:25] + 1, "loss": loss[:25]}, header=HEAD, end=None)
    make_run({"step": row[25:] + 1, "loss": loss[25:]}, header={**HEAD, "resumed_from": 25}, onto=run)
    assert judge(run, "resume-discontinuity") == []


@pytest.mark.parametrize(
    ("behind", "told"),
    [
        ((1.6, 1.4, 1.3), ["warning"]),  # half of what was gained is lost
        ((1.15, 1.1, 1.0), []),  # a seventh of it
        ((1.02, 0.99, 0.97), []),
    ],
)
@pytest.mark.parametrize("scatter", [0.0, 0.4])
def test_weights_that_only_validation_misses(behind, told, scatter, make_run, judge):
    """The training loss scatters as widely as it fell. Nor does a validation tell that had swung as far before; what
    the superseded steps had reached later is no measure.
    """
    before = np.array([2.2, 1.8, 1.5, 1.25, 1.0]) + scatter * np.array([0, 1, 0, 1, 0])
    evals = [{"step": 10 * (i + 1), "time": 1e9 + i, "split": "valid", "loss": v} for i, v in enumerate([*before, 0.2])]
    later = [{"step": 55 + i, "time": 2e9 + i, "split": "valid", "loss": value} for i, value in enumerate(behind)]
    loss = 3.0 + np.random.default_rng(0).standard_normal(110)
    run = make_run({"loss": loss[:60]}, header=HEAD, evals=evals, end=None)
    again = {"step": np.arange(51, 101), "loss": loss[60:]}
    make_run(again, header={**HEAD, "time": 1.5e9, "resumed_from": 50}, evals=later, onto=run)
    found = judge(run, "resume-discontinuity")
    assert [one.severity for one in found] == (told if not scatter else [])
    assert all("the validation loss is 1.6 where it was 1" in one.message for one in found)
