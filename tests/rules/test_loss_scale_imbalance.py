"""loss-scale-imbalance: 3,256,742 beside 3.75 is named, a small term that is meant is not."""

import numpy as np
import pytest

RULE = "loss-scale-imbalance"
N = 200
FALL = np.exp(-np.arange(N) / 60)


def test_the_published_case_is_named_with_its_ratio(make_run, judge):
    """PeakAmp beside Signal, without weights or gradients in the log."""
    run = make_run({"loss/PeakAmp": 3_256_742.75 * (0.5 + FALL), "loss/Signal": np.full(N, 3.75)})
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("critical", "component:PeakAmp", 1)
    assert finding.evidence["ratio"] > 100_000
    assert "no weights are recorded" in finding.message
    assert finding.confidence < 0.7


def test_the_gradient_share_proves_it_at_once(make_run, judge):
    """From the step at which it began, though the others still fall."""
    big = np.where(np.arange(N) < 90, 1.0, 5e4)
    share = np.where(np.arange(N) < 90, 0.5, 0.9999)
    run = make_run({"loss/a": 1 + FALL, "loss/b": big, "grad_share/a": 1 - share, "grad_share/b": share})
    (finding,) = judge(run, RULE)
    assert (finding.subject, finding.first_step, finding.state) == ("component:b", 91, "active")
    assert finding.evidence["gradient_share"] == pytest.approx(0.9999)


def test_it_is_over_when_the_others_weigh_again(make_run, judge):
    """The finding stays with its last step."""
    big = np.where((np.arange(N) >= 40) & (np.arange(N) < 100), 5e4, 1.0)
    share = np.where(big > 1, 0.999, 0.5)
    run = make_run({"loss/a": np.ones(N), "loss/b": big, "grad_share/b": share, "grad_share/a": 1 - share})
    (finding,) = judge(run, RULE)
    assert (finding.first_step, finding.last_step, finding.state) == (41, 100, "over")


HEALTHY = {
    "a KL term that grows from nothing": {"loss/recon": 540 * (0.2 + FALL), "loss/kl": 25 * (1 - FALL) + 1e-3},
    "a z-loss": {"loss/ce": 2 + FALL, "loss/z_loss": np.full(N, 50.0), "weight/z_loss": np.full(N, 1e-4)},
    "a term with a tiny weight": {"loss/ce": 2 + FALL, "loss/extra": np.full(N, 5.0), "weight/extra": np.full(N, 1e-4)},
    "a component that is solved": {"loss/box": 1 + 0 * FALL, "loss/cls": 0.7 * np.exp(-np.arange(N) / 15) + 1e-3},
    "a component of weight 0": {"loss/a": 1 + FALL, "loss/b": np.full(N, 1e6), "weight/b": np.zeros(N)},
    "value loss beside policy loss": {"loss/value": 300 * (1 + FALL), "loss/policy": 0.02 * np.cos(np.arange(N))},
    "two scales that both fall": {"loss/a": 30 * (0.1 + FALL), "loss/b": 1.2 * (0.1 + FALL)},
    "one loss alone": {"loss/a": 1e9 * FALL},
    "exact zeros by design": {"loss/a": 1 + FALL, "loss/margin": np.zeros(N)},
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, make_run, judge):
    """Normal life."""
    assert judge(make_run(HEALTHY[name]), RULE) == []


def test_a_declared_role_silences_it(make_run, judge):
    """Whoever says `auxiliary` means small."""
    header = {"components": {"tiny": {"role": "auxiliary"}}}
    columns = {"loss/main": np.full(N, 100.0), "loss/tiny": np.full(N, 0.1)}
    assert judge(make_run(columns, header=header), RULE) == []
    assert judge(make_run(columns), RULE) != []
