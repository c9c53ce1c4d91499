"""validation-overlap: training samples that the recorder saw in a validation set."""

import pytest

RULE = "validation-overlap"


def row(step, found, *, hits=None, looked=1000, samples=200, copies=0, split="validation"):
    counts = {"samples": samples, "copies": copies, "looked": looked, "hits": found if hits is None else hits}
    return {"step": step, "split": split, "loss": 1.0, "overlap/found": found} | {
        f"overlap/{name}": count for name, count in counts.items()
    }


def judged(make_run, judge, *rows):
    return judge(make_run({"loss": [1.0] * 50}, evals=list(rows)), RULE)


def test_a_set_that_is_trained_on_is_told(make_run, judge):
    (found,) = judged(make_run, judge, row(10, 5, looked=40), row(20, 80, hits=100))
    assert (found.severity, found.subject, found.first_step) == ("warning", "split:validation", 10)
    assert found.message.startswith("80 of 200 samples of validation were trained on (40%, so far): 100 of 1,000")


def test_a_few_are_worth_knowing(make_run, judge):
    assert [one.severity for one in judged(make_run, judge, row(10, 60, looked=2000, samples=4000))] == ["info"]


@pytest.mark.parametrize(
    "rows",
    [
        [row(10, 0)],
        [row(10, 7, looked=40)],
        [row(10, 150, looked=1000, samples=300, copies=200)],  # equal by nature: the split has as many of its own
        [row(10, 100, split="train-subset")],
        [{"step": 10, "split": "validation", "loss": 1.0}],
    ],
)
def test_chance_and_nature_are_left_alone(make_run, judge, rows):
    assert judged(make_run, judge, *rows) == []


@pytest.mark.parametrize(
    ("drawn", "distinct", "copies", "alarms"),
    [
        (240, 205, 0, 1),  # what is trained on besides hardly comes twice
        (240, 120, 0, 0),  # it does: there are only so many samples
        (240, 205, 4, 0),  # the split has copies of its own, which tell
    ],
)
def test_a_small_split_is_told_by_the_repeats_of_training(drawn, distinct, copies, alarms, make_run, judge):
    """Two dozen users who come again and again; at the end of an epoch everybody does, and it stays told."""
    small = row(40, 22, hits=56, looked=240, samples=24, copies=copies)
    later = row(110, 24, hits=200, looked=800, samples=24, copies=copies)
    small |= {"overlap/drawn": drawn, "overlap/distinct": distinct}
    later |= {"overlap/drawn": 800, "overlap/distinct": 400}
    assert len(judged(make_run, judge, small, later)) == alarms


def test_a_process_that_resumed_counts_anew(make_run, judge):
    (found,) = judged(make_run, judge, row(10, 80), row(20, 2, looked=20))
    assert found.evidence["found"] == 80
