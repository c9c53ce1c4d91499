"""gradient-vanishing: next to no gradient and no learning; a solved task has small gradients too."""

import numpy as np
import pytest

from trainwatch.engine import Engine

RULE = "gradient-vanishing"
N = 300
ROW = np.arange(N)


def flat(seed=0):
    return 2.3 + 0.02 * np.random.default_rng(seed).standard_normal(N)


def test_a_gradient_that_is_nothing_from_the_start(make_run, judge):
    """Exactly zero, beside a loss that stands; in a log of forty rows."""
    (finding,) = judge(make_run({"grad_norm": np.zeros(40), "loss": flat()[:40], "step": 10 * ROW[:40] + 10}), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("critical", "run", 10)


def test_a_gradient_that_sinks_to_nothing_is_named_by_where_it_did(make_run, judge):
    """Within twenty rows."""
    norm = np.where(ROW < 100, 1.0, 1e-6) * (1 + 0.1 * np.sin(ROW))
    (finding,) = judge(make_run({"grad_norm": norm, "loss": flat()}), RULE)
    assert abs(finding.first_step - 101) <= 20


def test_the_first_module_gets_a_thousandth(make_run, judge):
    """Of what the last one gets, all along, and nothing is learned."""
    columns = {"grad_norm": np.ones(N), "grad_norm/stem": np.full(N, 1e-5), "grad_norm/body": np.full(N, 0.1)}
    columns |= {"grad_norm/head": np.ones(N), "loss": flat()}
    (finding,) = judge(make_run(columns), RULE)
    assert (finding.severity, finding.subject) == ("warning", "module:stem")
    fell = {"loss": 2.3 * np.exp(-ROW / 100)}
    assert judge(make_run(columns | fell), RULE) == []
    (finding,) = judge(make_run(columns | fell | {"grad_norm/stem": np.full(N, 1e-7)}), RULE)  # the head learned alone
    assert (finding.severity, "whatever the last modules learn" in finding.message) == ("warning", True)


@pytest.mark.parametrize("seed", range(20))
def test_small_gradients_of_a_solved_task_and_rounded_logs_are_healthy(seed, make_run, judge):
    """A loss that fell; one at 0; a norm that is logged as 0.000; a level loss with an ordinary norm."""
    noise = np.exp(0.1 * np.random.default_rng(seed).standard_normal(N))
    fell = {"grad_norm": np.exp(-ROW / 15) * noise, "loss": (0.3 + np.exp(-ROW / 50)) * noise}
    solved = {"grad_norm": np.full(N, 1e-9), "loss": 1e-6 * noise}
    rounded = {"grad_norm": np.zeros(N), "loss": 3 * np.exp(-ROW / 200) * noise}
    level = {"grad_norm": 0.3 * noise, "loss": flat(seed)}
    for columns in (fell, solved, rounded, level):
        assert judge(make_run(columns), RULE) == []


def test_a_norm_that_is_recorded_from_some_step_on(make_run):
    """Zeros of a module until then; the whole norm itself is not small."""
    run = make_run({"grad_norm/stem": np.zeros(130), "loss": flat()[:130]}, end=None)
    engine = Engine()
    engine.feed(run)
    make_run({"step": [131], "grad_norm": [0.007], "loss": flat()[130:131]}, end=None, onto=run)
    engine.feed(run)
    assert [found for found in engine.findings(run) if found.rule == RULE] == []
    assert engine.failed == {}


def test_a_hinge_whose_margins_are_kept_has_no_gradient(make_run, judge):
    """Single triplets, later three of five solved; a gradient that is gone where they are not is named."""
    solved = np.arange(50)[::-1] % 5 < np.where(np.arange(50) < 25, 1, 3)
    loss = np.where(solved, 0.0, np.random.default_rng(0).uniform(0.2, 2.5, 50))
    assert judge(make_run({"loss": loss, "grad_norm": np.where(solved, 0.0, 4.0)}), RULE) == []
    (finding,) = judge(make_run({"loss": loss, "grad_norm": np.zeros(50)}), RULE)
    assert finding.severity == "critical"
