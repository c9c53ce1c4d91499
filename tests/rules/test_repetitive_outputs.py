"""repetitive-outputs: GGGG... after better days; the first words of a young model are an info at most."""

import pytest

RULE = "repetitive-outputs"


def told(play, judge, parts, length=20.0, total=200):
    rows = [
        {"kind": "sample", "step": 10 * i, "quality/longest_run": part * length, "quality/length_mean": length}
        for i, part in enumerate(parts, 1)
    ]
    return judge(play([{"kind": "run", "total_steps": total}, *rows]), RULE)


def test_a_fall_into_repetition_is_named(play, judge):
    """From its first sample, until it is better."""
    (finding,) = told(play, judge, [0.9, 0.4, 0.2, 0.2, 0.2, 0.8, 0.9, 0.8, 0.9])
    assert (finding.severity, finding.first_step, finding.state) == ("warning", 60, "active")
    (finding,) = told(play, judge, [0.9, 0.4, 0.2, 0.2, 0.2, 0.8, 0.9, 0.8, 0.9, 0.3, 0.2])
    assert (finding.last_step, finding.state) == (90, "over")


HEALTHY = {
    "a young model": ([0.9, 0.9, 0.8, 0.6, 0.4, 0.2, 0.2], 20.0),
    "a dip": ([0.2, 0.2, 0.2, 0.7, 0.2, 0.2, 0.6, 0.2], 20.0),
    "short answers": ([0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 2.0),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, play, judge):
    """Normal life."""
    assert told(play, judge, *HEALTHY[name]) == []


def test_what_never_was_better_is_an_info(play, judge):
    """From half of the run on."""
    assert [finding.severity for finding in told(play, judge, [0.8] * 12)] == ["info"]


@pytest.mark.parametrize(("floor", "alarms"), [(0.1, 1), (2.0, 0)])
def test_a_loss_that_came_down_tells_sick_outputs_from_young_ones(floor, alarms, play, judge):
    """They never were good; a model that has learned has no such excuse."""
    records = [{"kind": "run", "total_steps": 100}]
    for step in range(1, 101):
        records.append({"kind": "step", "step": step, "loss": floor + 3 * 0.9**step})
        if step % 10 == 0:
            records.append({"kind": "sample", "step": step, "quality/longest_run": 9, "quality/length_mean": 10})
    assert len([finding for finding in judge(play(records), "repetitive-outputs") if finding.rank]) == alarms


@pytest.mark.parametrize(
    ("text", "alarms"), [("and the the the the the the the", 1), ("a cat sat on the mat, and the rat", 0)]
)
def test_a_phrase_again_and_again(text, alarms, play, judge):
    """Whatever the loss: who knows a phrase is not young."""
    figures = {"quality/longest_run": 2, "quality/length_mean": len(text)}
    rows = [{"kind": "sample", "step": 10 * i, "outputs": [text] * 3, **figures} for i in range(1, 13)]
    found = judge(play([{"kind": "run", "total_steps": 120}, *rows]), RULE)
    assert [(one.severity, one.first_step) for one in found] == [("warning", 10)] * alarms


@pytest.mark.parametrize(("text", "alarms"), [("888000555111", 1), ("8051805180", 0)])
def test_what_was_just_said_is_said_again(text, alarms, play, judge):
    """Each token thrice, by a model that has learned."""
    records = [{"kind": "run", "total_steps": 100}]
    for step in range(1, 101):
        records.append({"kind": "step", "step": step, "loss": 0.1 + 3 * 0.9**step})
        if step % 10 == 0:
            quality = {"quality/longest_run": 3, "quality/length_mean": 12.0}
            records.append({"kind": "sample", "step": step, "outputs": [text] * 8, **quality})
    assert len([finding for finding in judge(play(records), RULE) if finding.rank]) == alarms


@pytest.mark.parametrize(
    ("others", "alarms"), [(["80518", "30251", "44612"] * 3, 0), (["88888", "33333", "44444"] * 3, 1)]
)
def test_the_longest_stretch_of_all_outputs_may_be_that_of_one(others, alarms, play, judge):
    """Numbers of five digits, by a model that has learned; the figure is the most of all of them."""
    records = [{"kind": "run", "total_steps": 100}]
    for step in range(1, 101):
        records.append({"kind": "step", "step": step, "loss": 0.1 + 3 * 0.9**step})
        if step % 10 == 0:
            quality = {"quality/longest_run": 5, "quality/length_mean": 5.0}
            records.append({"kind": "sample", "step": step, "outputs": [*others, "77777"], **quality})
    assert len([finding for finding in judge(play(records), RULE) if finding.rank]) == alarms


@pytest.mark.parametrize(
    ("outputs", "severities"), [(["1155.", "0249.", "3558.", "2447."], []), (["4444.", "7777."], ["info"])]
)
def test_two_alike_are_no_repetition(outputs, severities, play, judge):
    """Sorted digits: the longest stretch of all outputs is three of five tokens, that of most is two."""
    sample = {"kind": "sample", "quality/longest_run": 3, "quality/length_mean": 5.0, "outputs": outputs}
    run = play([{"kind": "run", "total_steps": 120}, *({**sample, "step": 10 * i} for i in range(1, 13))])
    assert [finding.severity for finding in judge(run, RULE)] == severities
