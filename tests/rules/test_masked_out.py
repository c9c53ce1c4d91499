"""A mask that leaves nothing of a loss; masks that are meant."""

import numpy as np
import pytest

RULE = "masked-out"


def columns(random, masked, rows=400, loss=None):
    share = np.clip(masked + 0.01 * random.standard_normal(rows), 0, 1)
    loss = 1 + 0.1 * random.standard_normal(rows) if loss is None else loss
    return {"data/masked/a": share, "loss/a": loss}


def test_a_mask_that_closes(make_run, judge):
    """The onset within a block, the end, twenty seeds."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        course = np.full(400, 0.4)
        course[150:300] = 0.96
        (found,) = judge(make_run(columns(random, course)), RULE)
        assert (found.severity, found.subject, found.state) == ("warning", "component:a", "over")
        assert abs(found.first_step - 151) <= 20


def test_nothing_is_left(make_run, judge):
    """All of it: nothing trains."""
    (found,) = judge(make_run(columns(np.random.default_rng(0), 1.5)), RULE)
    assert found.severity == "critical"
    assert "nothing trains it" in found.message


def test_a_log_of_ten_rows(make_run, judge):
    """Epoch by epoch."""
    (found,) = judge(make_run({"data/masked/a": np.full(10, 0.97)}), RULE)
    assert (found.severity, found.first_step) == ("warning", 1)


@pytest.mark.parametrize("masked", [0.0, 0.5, 0.85])
def test_half_or_a_masked_language_model_is_healthy(make_run, judge, masked):
    """Well below nearly everything."""
    assert judge(make_run(columns(np.random.default_rng(0), masked)), RULE) == []


def test_tasks_that_take_turns_are_healthy(make_run, judge):
    """Each step is of one of six tasks; the others are masked whole."""
    for seed in range(20):
        share = np.ones((400, 6))
        share[np.arange(400), np.random.default_rng(seed).integers(0, 6, 400)] = 0.2
        assert judge(make_run({f"data/masked/{name}": share[:, i] for i, name in enumerate("abcdef")}), RULE) == []


def test_answers_to_long_prompts_that_are_learnt(make_run, judge):
    """Worth knowing, no more."""
    loss = 3 * np.exp(-np.arange(400) / 100) + 0.2
    (found,) = judge(make_run(columns(np.random.default_rng(0), 0.97, loss=loss)), RULE)
    assert found.severity == "info"


@pytest.mark.parametrize(("empty", "validation", "severity"), [(5, 1, "warning"), (5, -1, "info"), (400, 1, "info")])
def test_a_few_positions_learnt_by_heart(make_run, judge, empty, validation, severity):
    """Nothing is left in every fifth row, and validation has gained nothing; each alone is healthy."""
    loss, share = 3 * np.exp(-np.arange(400) / 100) + 0.2, np.full(400, 0.99)
    share[::empty] = 1.0
    evals = [{"step": step, "loss/a": 1 + validation * step / 1000} for step in range(50, 401, 50)]
    (found,) = judge(make_run({"data/masked/a": share, "loss/a": loss}, evals=evals), RULE)
    assert found.severity == severity


def test_what_is_no_task(make_run, judge):
    """An auxiliary loss may look at a few positions."""
    head = {"components": {"a": {"role": "auxiliary"}}}
    (found,) = judge(make_run(columns(np.random.default_rng(0), 0.97), header=head), RULE)
    assert found.severity == "info"


def test_a_regulariser_is_known_by_its_name(make_run, judge):
    """Declared without a role, `kl` is no task."""
    closed = {"data/masked/kl": np.ones(400), "loss/kl": np.ones(400)}
    (found,) = judge(make_run(closed, header={"components": {"kl": {"unit": "nat"}}}), RULE)
    assert found.severity == "info"


@pytest.mark.parametrize(("role", "severity"), [("auxiliary", "warning"), ("regulariser", "info")])
def test_an_auxiliary_of_which_nothing_is_left(role, severity, make_run, judge):
    """For more than a fifth of the run; earlier the mask may yet open."""
    header = {"components": {"a": {"role": role}}, "total_steps": 400}
    (found,) = judge(make_run(columns(np.random.default_rng(0), 1.5), header=header), RULE)
    assert found.severity == severity
    short = make_run(columns(np.random.default_rng(0), 1.5, rows=120), header=header | {"total_steps": 4000})
    assert [one.severity for one in judge(short, RULE)] == ["info"]


def test_a_log_of_a_row_in_ten(make_run, judge):
    """Thirty rows of three hundred steps; not in the first half, nor where the mask opens."""
    step = np.arange(1, 31) * 10
    head = {"total_steps": 300}
    closed = {"data/masked/a": np.full(30, 0.97), "step": step}
    (found,) = judge(make_run(closed, header=head), RULE)
    assert (found.severity, found.first_step) == ("warning", 10)
    early = {name: values[:14] for name, values in closed.items()}
    assert judge(make_run(early, header=head, end=None), RULE) == []
    assert judge(make_run(closed | {"data/masked/a": np.where(step < 150, 0.97, 0.4)}, header=head), RULE) == []


@pytest.mark.parametrize(("empty", "left", "severity"), [(5, 0.5, "warning"), (5, 0.1, "info"), (400, 0.5, "info")])
def test_validation_falls_less_far_than_what_is_learnt_by_heart(make_run, judge, empty, left, severity):
    """By the total, where the component is not evaluated; rows of which nothing is left have no say in it."""
    share, loss = np.full(400, 0.99), 3 * np.exp(-np.arange(400) / 100) + 0.2
    share[::empty] = 1.0
    total = np.where(share == 1, 0.01, loss)
    evals = [{"step": step, "loss": 6 * left ** ((step - 50) / 350)} for step in range(50, 401, 50)]
    (found,) = judge(make_run({"data/masked/a": share, "loss/a": loss, "loss": total}, evals=evals), RULE)
    assert found.severity == severity


@pytest.mark.parametrize(("validation", "severity"), [(1, "warning"), (-1, "info")])
def test_a_few_positions_learnt_by_heart_in_a_log_of_few_rows(make_run, judge, validation, severity):
    """Nothing is left in every fifth of forty rows, and validation has gained nothing."""
    loss, share = 3 * np.exp(-np.arange(40) / 10) + 0.2, np.full(40, 0.99)
    share[::5] = 1.0
    evals = [{"step": step, "loss/a": 1 + validation * step / 100} for step in range(5, 41, 5)]
    (found,) = judge(make_run({"data/masked/a": share, "loss/a": loss}, evals=evals), RULE)
    assert found.severity == severity
