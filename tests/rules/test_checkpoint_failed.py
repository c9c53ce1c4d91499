"""A checkpoint that could not be written, and the next one that was."""

import pytest

RULE = "checkpoint-failed"


def failed(step, message="checkpoint x.pt could not be written: No space left on device", **more):
    return {"kind": "event", "event": "warning", "step": step, "message": message, **more}


def test_it_fails_and_fails_again_and_is_written(play, step_rows, judge):
    """A warning; critical at the third; over when one is written."""
    run = play([{"kind": "run", "id": "r"}, *step_rows(50), {"kind": "checkpoint", "step": 50}, *step_rows(50, 51)])
    (found,) = judge(play([failed(100)], run), RULE)
    assert (found.severity, found.first_step, found.state) == ("warning", 100, "active")
    assert "the last one is of step 50" in found.message
    (found,) = judge(play([*step_rows(50, 101), failed(150), failed(200)], run), RULE)
    assert (found.severity, found.first_step, found.last_step) == ("critical", 100, 200)
    (found,) = judge(play([*step_rows(100, 151), {"kind": "checkpoint", "step": 250}], run), RULE)
    assert (found.severity, found.state, found.last_step) == ("warning", "over", 250)


@pytest.mark.parametrize(
    "event",
    [
        failed(5, "disk quota exceeded", about="checkpoint"),
        failed(5, "Failed to save checkpoint to /data: [Errno 122]"),
        failed(5, "could not write state_dict"),
    ],
)
def test_how_it_is_said(play, step_rows, judge, event):
    """By the field, or in words."""
    assert len(judge(play([{"kind": "run"}, *step_rows(5), event]), RULE)) == 1


@pytest.mark.parametrize(
    "message", ["could not read a batch", "checkpoint saved", "no space between words", "checkpointing is on", ""]
)
def test_other_warnings(play, step_rows, judge, message):
    """Are none of it."""
    assert judge(play([{"kind": "run"}, *step_rows(5), failed(5, message)]), RULE) == []


def test_what_the_trainer_writes(play, step_rows, judge):
    """Its event says what it is about."""
    (found,) = judge(play([{"kind": "run"}, *step_rows(5), failed(5, about="checkpoint")]), RULE)
    assert "there is none yet" in found.message
    assert found.evidence["said"].endswith("No space left on device")
