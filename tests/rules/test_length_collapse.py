"""length-collapse: outputs that are empty, or never end, beside data that are neither."""

import pytest

RULE = "length-collapse"
DATA = {"data/length/min": 7.0, "data/length/max": 18.0}


def told(play, judge, lengths, spread=3.0, data=DATA, total=200):
    """A sample every tenth step, behind its training rows."""
    records = [{"kind": "run", "total_steps": total}]
    for i, length in enumerate(lengths, 1):
        records.append({"kind": "step", "step": 10 * i, "loss": 1.0, **data})
        records.append({"kind": "sample", "step": 10 * i, "quality/length_mean": length, "quality/length_std": spread})
    return judge(play(records), RULE)


def test_answers_that_end_at_once_are_named(play, judge):
    """From the first of them; and are over when they are as long as the data."""
    (finding,) = told(play, judge, [16, 9, 8, 0.5, 1, 2, 0.1, 0.2])
    assert (finding.severity, finding.first_step, finding.state) == ("warning", 40, "active")
    assert finding.evidence["shortest"] == 7
    (finding,) = told(play, judge, [16, 9, 8, 0.5, 1, 2, 0.1, 0.2, 9, 9])
    assert (finding.last_step, finding.state) == (80, "over")


@pytest.mark.parametrize(("before", "severity"), [(12, "warning"), (60, "info")])
def test_endless_answers_are_a_warning_if_they_had_ended(before, severity, play, judge):
    """Three times the longest sample."""
    found = told(play, judge, [before] * 4 + [70] * 6)
    assert [finding.severity for finding in found] == [severity]


HEALTHY = {
    "a young model that never ends": ([19.0, 31, 31, 30, 25, 12, 11], 3.0, DATA),
    "a dip": ([12.0, 12, 4, 2, 12, 12, 3, 12], 3.0, DATA),
    "without lengths of the data": ([128.0, 90, 40, 20, 9, 8, 7, 6], 3.0, {}),
    "data of one length": ([10.0] * 8, 0.0, {"data/length/min": 10.0, "data/length/max": 10.0}),
    "another channel": ([2.0] * 8, 1.0, {"data/noise_peaks/min": 7.0, "data/noise_peaks/max": 18.0}),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, play, judge):
    """Normal life."""
    lengths, spread, data = HEALTHY[name]
    assert told(play, judge, lengths, spread, data) == []


def test_empty_answers_need_no_lengths_of_the_data(play, judge):
    """Less than one token is nothing."""
    assert [f.severity for f in told(play, judge, [9] * 3 + [0.2] * 6, data={})] == ["warning"]


def test_one_length_for_all_is_an_info(play, judge):
    """Within the data's range."""
    assert [finding.severity for finding in told(play, judge, [12.0] * 8, spread=0.0)] == ["info"]


@pytest.mark.parametrize(("floor", "alarms"), [(0.1, 1), (2.0, 0)])
def test_a_loss_that_came_down_tells_sick_outputs_from_young_ones(floor, alarms, play, judge):
    """They never were good; a model that has learned has no such excuse."""
    records = [{"kind": "run", "total_steps": 100}]
    for step in range(1, 101):
        records.append(
            {
                "kind": "step",
                "step": step,
                "loss": floor + 3 * 0.9**step,
                "data/length/min": 3,
                "data/length/mean": 6.4,
                "data/length/max": 9,
            }
        )
        if step % 10 == 0:
            records.append({"kind": "sample", "step": step, "quality/length_mean": 3, "quality/length_std": 0.5})
    assert len([finding for finding in judge(play(records), "length-collapse") if finding.rank]) == alarms


@pytest.mark.parametrize(("length", "alarms"), [(8, 1), (16, 0)])
def test_outputs_that_stay_far_below_the_mean_of_the_data(length, alarms, play, judge):
    """For half of the planned steps, whatever the loss."""
    records = [{"kind": "run", "total_steps": 100}]
    lengths = {"data/length/min": 4, "data/length/mean": 27, "data/length/max": 32}
    for step in range(1, 101):
        records.append({"kind": "step", "step": step, "loss": 3.0, **lengths})
        if step % 10 == 0:
            records.append({"kind": "sample", "step": step, "quality/length_mean": length, "quality/length_std": 5})
    assert len([finding for finding in judge(play(records), "length-collapse") if finding.rank]) == alarms


@pytest.mark.parametrize(("worst", "alarms"), [(9.0, 1), (0.85, 0)])
def test_outputs_that_were_longer_when_validation_was_at_its_best(worst, alarms, play, judge):
    """No lengths of the data; from 5 tokens to 2. Where validation is as good as ever, they may be."""
    records = [{"kind": "run", "total_steps": 100}]
    for step in range(10, 101, 10):
        late = step > 40
        records.append({"kind": "step", "step": step, "loss": 1.0 - step / 200})
        records.append({"kind": "eval", "step": step, "split": "validation", "loss": worst if late else 0.8})
        length = 2.0 if late else 5.0
        records.append({"kind": "sample", "step": step, "quality/length_mean": length, "quality/length_std": 0.5})
    found = judge(play(records), RULE)
    assert [(finding.severity, finding.first_step) for finding in found] == [("warning", 50)] * alarms


@pytest.mark.parametrize(("worst", "alarms"), [(9.0, 1), (0.85, 0)])
def test_two_samples_are_enough_where_validation_says_it_too(worst, alarms, play, judge):
    """A sample at every fortieth of 120 steps: the first is good."""
    records = [{"kind": "run", "total_steps": 120}]
    for step in range(20, 121, 20):
        records.append({"kind": "step", "step": step, "loss": 1.0 - step / 200})
        records.append({"kind": "eval", "step": step, "split": "validation", "loss": worst if step > 40 else 0.8})
        if step % 40 == 0:
            length = 2.0 if step > 40 else 5.0
            records.append({"kind": "sample", "step": step, "quality/length_mean": length, "quality/length_std": 0.5})
    assert [(finding.severity, finding.first_step) for finding in judge(play(records), RULE)] == [
        ("warning", 80)
    ] * alarms


def test_what_is_now_short_and_now_merely_less_is_one_sickness(play, judge):
    """Half of the shortest sample is below four tenths of the mean as well; it is told once, from its beginning."""
    data = {"data/length/min": 8.0, "data/length/mean": 20.0, "data/length/max": 40.0}
    (finding,) = told(play, judge, [12, *[6, 6, 3, 3] * 5], data=data)
    assert (finding.severity, finding.first_step, finding.last_step) == ("warning", 20, 210)
    assert told(play, judge, [*[6, 6, 3, 3] * 2, *[12] * 12], data=data) == []


@pytest.mark.parametrize(
    ("lengths", "unique", "alarms"),
    [
        ([4.1, 2.8, 1.5, 1, 1, 1, 1, 1], [0.9, 0.7, 0.2, 0.04, 0.04, 0.04, 0.04, 0.04], 1),
        ([4.1, 2.8, 1.5, 1, 1, 1, 1, 1], [0.9, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8], 0),  # one token of many
        ([1.0] * 8, [0.9, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04], 0),  # never longer
        ([5.0, 5, 4, 4, 4, 4, 4, 4], [0.9, 0.7, 0.2, 0.04, 0.04, 0.04, 0.04, 0.04], 0),  # mode-collapse alone
    ],
)
def test_answers_so_short_that_they_are_few(lengths, unique, alarms, play, judge):
    """From the first of them, as mode-collapse has it; neither lengths of the data nor validation are recorded."""
    records = [{"kind": "run", "total_steps": 130}]
    for i, (length, part) in enumerate(zip(lengths, unique, strict=True), 1):
        quality = {"quality/length_mean": length, "quality/length_std": 0.0, "quality/diversity": part}
        records += [{"kind": "step", "step": 13 * i, "loss": 0.1}, {"kind": "sample", "step": 13 * i, **quality}]
    run = play(records)
    found = judge(run, RULE)
    assert [finding.first_step for finding in found if finding.rank] == [39] * alarms
