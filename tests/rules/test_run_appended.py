"""Several runs in one file."""

from trainwatch.readers import read_all

RULE = "run-appended"


def test_a_second_run_behind_the_first(write_run, step_rows, judge):
    """It is said of the second, as an info."""
    end = {"kind": "end", "status": "finished"}
    path = write_run([{"kind": "run", "id": "a"}, *step_rows(20), end, {"kind": "run", "id": "b"}, *step_rows(30), end])
    first, second = read_all(path)
    assert judge(first, RULE) == []
    (found,) = judge(second, RULE)
    assert (found.severity, found.first_step) == ("info", 1)
    assert "run 2 of several that were written into run.jsonl" in found.message


def test_a_resume_and_another_attempt_are_one_run(write_run, step_rows, judge):
    """They say so."""
    again = {"kind": "run", "id": "a", "resumed_from": 20}
    path = write_run(
        [{"kind": "run", "id": "a"}, *step_rows(20), again, *step_rows(20, 21), {"kind": "run", "id": "a"}]
    )
    (run,) = read_all(path)
    assert judge(run, RULE) == []
