"""crashed: the exception, sorted by its cause."""

import numpy as np
import pytest

CASES = {
    "an interruption by hand": ("KeyboardInterrupt", ""),
    "the scheduler": ("SystemExit", "got SIGTERM"),
    "a setting of the wrong type": ("TypeError", "'<=' not supported between instances of 'float' and 'str'"),
    "device memory that ran out": ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB"),
    "host memory that ran out": ("RuntimeError", "DataLoader worker (pid 7) is killed by signal: Killed."),
    "a full disk": ("OSError", "[Errno 28] No space left on device: 'a.pt'"),
    "a missing module": ("ModuleNotFoundError", "No module named 'ms2pip'"),
    "a missing file": ("FileNotFoundError", "[Errno 2] No such file or directory: '/slurm/preempt/x.pt'"),
    "a checkpoint that does not fit the model": ("RuntimeError", "Error(s) in loading state_dict: size mismatch"),
    "shapes that do not fit": ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (4x5 and 6x7)"),
    "a CUDA error": ("RuntimeError", "CUDA error: device-side assert triggered"),
    "a collective that failed": ("DistBackendError", "NCCL error: unhandled cuda error"),
    "a missing setting or key": ("KeyError", "'optimizer'"),
    "a value that is no number": ("ValueError", "the loss is nan at step 5"),
    "an assertion": ("AssertionError", ""),
    "an exception": ("ZeroDivisionError", "division by zero"),
}


def ended(make_run, exception, status="failed", **header):
    run = make_run({"loss": np.ones(7)}, header=header, end=None)
    run.add_event({"kind": "end", "status": status, "exception": exception})
    return run


@pytest.mark.parametrize("cause", CASES)
def test_every_cause(make_run, judge, cause):
    """By type and message."""
    kind, message = CASES[cause]
    (found,) = judge(ended(make_run, {"type": kind, "message": message}), "crashed")
    assert found.evidence == {"step": 7, "exception": kind, "cause": cause}
    assert found.severity == ("info" if cause in ("an interruption by hand", "the scheduler") else "critical")
    assert message in found.message


def test_numbers_written_as_text_are_named_and_mended(make_run, judge):
    """Those whose name stands in the traceback, else all."""
    kind, message = CASES["a setting of the wrong type"]
    config = {"optimizer": {"lr": "5e-5", "betas": [0.9]}, "seed": "24", "name": "x1", "version": 2, "t": "nan"}
    (found,) = judge(ended(make_run, {"type": kind, "message": message}, config=config), "crashed")
    assert found.patch == {"optimizer.lr": 5e-5, "seed": 24}
    said = {"type": kind, "message": message, "traceback": 'if not 0.0 <= lr:\n    raise ValueError("lr")'}
    (found,) = judge(ended(make_run, said, config=config), "crashed")
    assert found.patch == {"optimizer.lr": 5e-5}
    assert "optimizer.lr (5e-05)" in found.message


def test_an_exception_that_was_survived_is_none(make_run, judge):
    """Steps followed; without them, and without an end, it was the last word."""
    oom = {"event": "oom", "step": 4, "message": "CUDA out of memory"}
    assert judge(make_run({"loss": np.ones(7)}, header={}, events=[oom], end=None), "crashed") == []
    (found,) = judge(make_run({"loss": np.ones(7)}, header={}, events=[{**oom, "step": 7}], end=None), "crashed")
    assert found.evidence["cause"] == "device memory that ran out"


def test_a_crash_that_a_resume_followed_is_over(make_run, judge):
    """The engine closes it."""
    run = ended(make_run, {"type": "ValueError", "message": "x"})
    make_run({"step": [6, 7, 8], "loss": np.ones(3)}, header={"resumed_from": 5}, onto=run)
    (found,) = judge(run, "crashed")
    assert (found.severity, found.state) == ("info", "over")


def test_finished_and_stopped_runs_did_not_crash(make_run, judge):
    """Whatever else they say."""
    assert judge(ended(make_run, None, "finished"), "crashed") == []
    assert judge(ended(make_run, None, "stopped"), "crashed") == []
