"""invalid-outputs: what was well formed and is no longer; a young model's outputs are an info at most."""

import numpy as np
import pytest

RULE = "invalid-outputs"


def told(play, judge, validity, total=200):
    rows = [{"kind": "sample", "step": 10 * i, "quality/validity": value} for i, value in enumerate(validity, 1)]
    return judge(play([{"kind": "run", "total_steps": total}, *rows]), RULE)


def test_a_fall_is_named_from_its_first_sample(play, judge):
    """And is over when the outputs are valid again."""
    (finding,) = told(play, judge, [0.2, 0.9, 1, 1, 1, 1, 0.4, 0.3, 0.5, 0.4])
    assert (finding.severity, finding.first_step, finding.state) == ("warning", 70, "active")
    (finding,) = told(play, judge, [0.2, 0.9, 1, 1, 1, 1, 0.4, 0.3, 0.5, 0.4, 1, 1])
    assert (finding.state, finding.last_step) == ("over", 100)


@pytest.mark.parametrize("seed", range(20))
def test_silent_on_the_scatter_of_small_samples(seed, play, judge):
    """48 outputs of which 95 % are valid, and before that a young model's."""
    random = np.random.default_rng(seed)
    young = random.uniform(0, 0.9, 5)
    assert [f for f in told(play, judge, [*young, *random.binomial(48, 0.95, 15) / 48]) if f.rank] == []


def test_outputs_that_never_were_valid_are_an_info(play, judge):
    """From half of the run on."""
    assert told(play, judge, [0.3] * 10) == []
    assert [finding.severity for finding in told(play, judge, [0.3] * 12)] == ["info"]


@pytest.mark.parametrize(("floor", "alarms"), [(0.1, 1), (2.0, 0)])
def test_a_loss_that_came_down_tells_sick_outputs_from_young_ones(floor, alarms, play, judge):
    """They never were good; a model that has learned has no such excuse."""
    records = [{"kind": "run", "total_steps": 100}]
    for step in range(1, 101):
        records.append({"kind": "step", "step": step, "loss": floor + 3 * 0.9**step})
        if step % 10 == 0:
            records.append({"kind": "sample", "step": step, "quality/validity": 0.03})
    assert len([finding for finding in judge(play(records), "invalid-outputs") if finding.rank]) == alarms


@pytest.mark.parametrize(("validity", "alarms"), [(0.0, 1), (0.05, 0)])
def test_not_a_single_valid_output_in_all_the_planned_steps(validity, alarms, play, judge):
    """The loss came down to 60 %: who learns something gets something right."""
    records = [{"kind": "run", "total_steps": 100}]
    for step in range(1, 101):
        records.append({"kind": "step", "step": step, "loss": 3 + 2 * 0.9**step})
        if step % 10 == 0:
            records.append({"kind": "sample", "step": step, "quality/validity": validity})
    assert len([finding for finding in judge(play(records), RULE) if finding.rank]) == alarms


def test_outputs_that_get_better_are_waited_for(play, judge):
    """Though most of the loss is gone, and half of the run is over."""
    records = [{"kind": "run", "total_steps": 160}]
    for step in range(1, 126):
        records.append({"kind": "step", "step": step, "loss": 0.1 + 3 * 0.9**step})
        if step % 40 == 0:
            records.append({"kind": "sample", "step": step, "quality/validity": 0.1 * step / 40})
    assert [finding for finding in judge(play(records), RULE) if finding.rank] == []


@pytest.mark.parametrize(("late", "alarms"), [(0.35, 0), (0.15, 1)])
def test_three_times_as_many_as_at_first_are_a_gain(late, alarms, play, judge):
    """A third of them, at the end of a short run."""
    records = [{"kind": "run", "total_steps": 100}]
    for step in range(1, 101):
        records.append({"kind": "step", "step": step, "loss": 0.1 + 3 * 0.95**step})
        if step % 25 == 0:
            validity = 0.1 if step <= 50 else late
            records.append({"kind": "sample", "step": step, "quality/validity": validity})
    assert len([finding for finding in judge(play(records), RULE) if finding.rank]) == alarms


@pytest.mark.parametrize(("lost", "alarms"), [(4, 0), (8, 1)])
def test_some_of_the_same_24_prompts_may_be_lost(lost, alarms, play, judge):
    """Asked again and again, their answers are no fresh sample: four went while the reward rose."""
    found = told(play, judge, [1, 1, 1, 0.92, *[1 - lost / 24] * 8])
    assert len([finding for finding in found if finding.rank]) == alarms


@pytest.mark.parametrize(("channel", "alarms"), [("loss/policy", 0), ("loss/words", 1)])
def test_the_loss_of_a_game_does_not_tell_a_young_model(channel, alarms, play, judge):
    """A surrogate is about 0 by nature: what is left of its first value is chance."""
    records = [{"kind": "run", "total_steps": 100}]
    for step in range(1, 101):
        loss = 0.1 + 3 * 0.9**step
        records.append({"kind": "step", "step": step, "loss": loss, channel: loss})
        if step % 10 == 0:
            records.append({"kind": "sample", "step": step, "quality/validity": 0.03})
    assert len([finding for finding in judge(play(records), RULE) if finding.rank]) == alarms
