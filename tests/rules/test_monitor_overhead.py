"""What the recorder itself costs."""

import numpy as np
import pytest

RULE = "monitor-overhead"


@pytest.mark.parametrize(
    ("device", "step", "monitor", "severity"),
    [
        ("H100", 0.1, 0.0005, None),
        ("H100", 0.1, 0.003, "info"),
        ("H100", 0.1, 0.02, "warning"),
        ("cpu", 0.1, 0.002, None),
        ("cpu", 0.1, 0.005, "info"),
        ("cpu", 0.02, 0.004, "info"),
        ("cpu", 0.002, 0.001, None),
    ],
)
def test_the_share_of_a_step(make_run, judge, device, step, monitor, severity):
    """On a GPU and on a CPU; short steps are left alone."""
    random = np.random.default_rng(0)
    columns = {"time/step": step * np.exp(0.2 * random.standard_normal(300))}
    columns["time/monitor"] = monitor * np.exp(0.2 * random.standard_normal(300))
    found = judge(make_run(columns, header={"device": {"name": device}}), RULE)
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_since_when_and_until_when(make_run, judge):
    """Every hundredth step may cost more; a stretch of a hundred steps may not."""
    monitor = np.full(600, 0.0005)
    monitor[::100] = 0.05
    assert judge(make_run({"time/step": np.full(600, 0.1), "time/monitor": monitor}), RULE) == []
    monitor[200:400] = 0.03
    (found,) = judge(make_run({"time/step": np.full(600, 0.1), "time/monitor": monitor}), RULE)
    assert (found.first_step, found.last_step, found.state) == (201, 400, "over")


def test_one_busy_block_is_no_warning(make_run, judge):
    """The last twenty steps of a machine that was taken by others."""
    monitor = np.full(300, 0.003)
    monitor[-20:] = 0.05
    (found,) = judge(make_run({"time/step": np.full(300, 0.1), "time/monitor": monitor}), RULE)
    assert (found.severity, found.evidence["share"]) == ("info", pytest.approx(0.03))


def test_a_machine_that_others_take_is_not_the_recorders_doing(make_run, judge):
    """Most recordings are interrupted; a few are not, and tell what it really costs."""
    monitor = np.where(np.random.default_rng(0).random(400) < 0.7, 0.05, 0.0005)
    assert judge(make_run({"time/step": np.full(400, 0.3), "time/monitor": monitor}), RULE) == []
