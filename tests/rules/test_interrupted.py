"""Stopped before its end; nothing is broken."""

import pytest

RULE = "interrupted"


def ended(play, step_rows, reason, *, steps=60, checkpoint=50, total=100):
    records = [{"kind": "run", "id": "r", "total_steps": total}, *step_rows(steps)]
    if checkpoint:
        records.append({"kind": "checkpoint", "step": checkpoint, "path": "x.pt"})
    return play([*records, {"kind": "end", "status": "stopped", "reason": reason, "step": steps}])


@pytest.mark.parametrize(
    ("reason", "who"),
    [
        ("KeyboardInterrupt", "by hand"),
        ("SIGINT", "by hand"),
        ("SIGTERM", "by the scheduler"),
        ("SIGHUP", "as its terminal was closed"),
        ("stop file", "by a stop file"),
        ("the program ended at step 60 of 100", "as the program ended"),
    ],
)
def test_who_stopped_it_and_what_is_lost(play, step_rows, judge, reason, who):
    """An info, and where to go on."""
    (found,) = judge(ended(play, step_rows, reason), RULE)
    assert (found.severity, found.first_step) == ("info", 60)
    assert found.message == (
        f"The run was stopped {who} at step 60 of 100; the last checkpoint is of step 50: 10 steps are lost."
    )


def test_nothing_or_all_of_it_is_lost(play, step_rows, judge):
    """By the last checkpoint."""
    (found,) = judge(ended(play, step_rows, "SIGTERM", checkpoint=60), RULE)
    assert "nothing is lost" in found.message
    (found,) = judge(ended(play, step_rows, "SIGTERM", checkpoint=None), RULE)
    assert "no checkpoint was recorded: 60 steps are lost" in found.message


@pytest.mark.parametrize(
    "reason", ["early stopping: 3 evaluations without a better loss", "asked to end at step 60", ""]
)
def test_an_end_by_plan_is_none(play, step_rows, judge, reason):
    """Early stopping, a limit."""
    assert judge(ended(play, step_rows, reason), RULE) == []


def test_at_its_last_step_nothing_is_interrupted(play, step_rows, judge):
    """Nor before its first one: that is never-started."""
    assert judge(ended(play, step_rows, "SIGTERM", steps=100), RULE) == []
    assert judge(ended(play, step_rows, "SIGTERM", steps=0, checkpoint=None), RULE) == []


def test_a_resume_makes_it_history(play, step_rows, judge):
    """The run goes on."""
    run = ended(play, step_rows, "SIGTERM")
    play([{"kind": "run", "id": "r", "resumed_from": 50, "total_steps": 100}, *step_rows(50, first=51)], run)
    (found,) = judge(play([{"kind": "end", "status": "finished"}], run), RULE)
    assert found.state == "over"


ASKED = {"kind": "event", "event": "intervention", "action": "stop", "by": "trainwatch watch --stop-on critical"}


def test_who_wrote_the_stop_file_and_why(play, step_rows, judge):
    """And no checkpoint is praised that came after what it was stopped for."""
    head, *rows = [{"kind": "run", "id": "r", "total_steps": 100}, *step_rows(60)]
    asked = ASKED | {"why": "The loss became NaN at step 40.", "first_step": 40}
    end = {"kind": "end", "status": "stopped", "reason": "stop file", "step": 60}
    (found,) = judge(play([head, *rows, asked, {"kind": "checkpoint", "step": 60, "path": "x.pt"}, end]), RULE)
    assert found.severity == "info"
    assert found.message == (
        "The run was stopped by trainwatch watch --stop-on critical at step 60 of 100; the last checkpoint is of "
        "step 60: nothing is lost. The reason given: The loss became NaN at step 40."
    )
    assert found.advice == "Resume it from a checkpoint before step 40, once the reason is mended."
