"""step-reset: a counter that goes back without a resume."""

import numpy as np


def test_a_step_that_goes_back(make_run, judge):
    """From 50 to 1, told with both."""
    (found,) = judge(make_run({"step": [*range(1, 51), *range(1, 31)], "loss": np.ones(80)}), "step-reset")
    assert (found.severity, found.subject, found.first_step, found.last_step) == ("warning", "run", 50, 50)
    assert found.evidence == {"from": 50.0, "to": 1.0}


def test_a_count_of_applied_steps_that_goes_back(make_run, judge):
    """The step itself goes on."""
    applied = np.concatenate([np.arange(1, 51), [np.nan], np.arange(1, 30)])
    (found,) = judge(make_run({"loss": np.ones(80), "applied": applied}), "step-reset")
    assert (found.subject, found.first_step, found.evidence["from"]) == ("clock:applied", 52, 50.0)


def test_a_resume_and_a_repeated_step_are_none(make_run, judge):
    """Both are explained, or another rule's."""
    run = make_run({"loss": np.ones(50)}, header={}, end=None)
    make_run({"step": [31, 32, 32, 33], "loss": np.ones(4)}, header={"resumed_from": 30}, onto=run)
    assert judge(run, "step-reset") == []


def test_two_writers_are_not_told_at_every_line(make_run, judge):
    """Five, and that there are more."""
    steps = np.stack([np.arange(100, 300), np.arange(1, 201)], axis=1).ravel()
    found = judge(make_run({"step": steps, "loss": np.ones(400)}), "step-reset")
    assert len(found) == 5
    assert found[-1].message.endswith("explains it; later ones are not listed.")
