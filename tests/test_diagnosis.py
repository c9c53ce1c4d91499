"""From findings to a root cause."""

import numpy as np
import pytest

from trainwatch.diagnosis import diagnose, root_cause
from trainwatch.engine import Engine
from trainwatch.schema import Finding


def finding(rule: str, step: int, severity: str = "critical", subject: str = "run") -> Finding:
    return Finding(rule, severity, subject, step, step, "active", f"{rule} at {step}")


def test_what_explains_the_rest_is_the_root():
    """Not the gravest or the loudest: the one that the others follow from."""
    mismatch, ramp, nan = (
        finding("curriculum-mismatch", 0),
        finding("aggressive-ramp", 80),
        finding("non-finite-loss", 90),
    )
    root, explained = root_cause([nan, ramp, mismatch])
    assert root == mismatch
    assert explained == {ramp.key, nan.key}


def test_an_effect_cannot_come_before_its_cause():
    """A ramp at step 80 does not explain a NaN at step 5."""
    ramp, nan = finding("aggressive-ramp", 80, "warning"), finding("non-finite-loss", 5)
    root, explained = root_cause([ramp, nan])
    assert root == nan
    assert ramp.key not in explained


def test_effects_of_effects_are_explained():
    """mismatch -> imbalance -> NaN, where mismatch itself need not name NaN."""
    chain = [
        finding("aggressive-ramp", 1, "warning"),
        finding("loss-scale-imbalance", 2),
        finding("non-finite-loss", 3),
    ]
    root, explained = root_cause(chain)
    assert root == chain[0]
    assert len(explained) == 2


@pytest.mark.parametrize("cause", ["non-finite-loss", "non-finite-weights", "component-sign", "lr-too-high"])
def test_broken_outputs_follow_from_what_broke_the_weights(cause):
    """Sampled at the very step at which the loss became NaN; alone, they explain each other."""
    outputs = [finding(what, 60) for what in ("mode-collapse", "repetitive-outputs", "invalid-outputs")]
    outputs.append(finding("length-collapse", 60, "warning"))
    root, explained = root_cause([*outputs, finding(cause, 60)])
    assert (root, explained) == (finding(cause, 60), {one.key for one in outputs})


def test_what_stands_follows_from_the_gradient_that_is_not_there():
    """Low-rank adapters of which both matrices begin at zero: all three are seen, and one is why."""
    unchanged, stuck = finding("evaluation-unchanged", 1), finding("loss-stuck", 1, "warning")
    vanished = finding("gradient-vanishing", 1)
    assert root_cause([unchanged, stuck, vanished]) == (vanished, frozenset({unchanged.key, stuck.key}))


def test_an_info_is_never_what_a_run_died_of():
    """A run with infos alone is healthy."""
    assert root_cause([finding("overfitting", 10, "info")]) == (None, frozenset())
    assert root_cause([]) == (None, frozenset())


def test_an_info_is_explained_and_weighs_nothing():
    """A plateau follows from a rate of 0; three of them do not make the rate the root of what is graver."""
    rate, plateau = finding("lr-zero", 5, "warning"), finding("loss-plateau", 50, "info")
    assert root_cause([rate, plateau]) == (rate, frozenset({plateau.key}))
    stale = finding("stale-data", 1, "warning")
    infos = [finding("loss-plateau", step, "info", f"component:{step}") for step in (50, 60, 70)]
    assert root_cause([stale, rate, *infos]) == (stale, frozenset())


def test_an_info_explains_nothing():
    """What is only worth knowing is no link of a chain."""
    chain = [finding("aggressive-ramp", 1, "warning"), finding("loss-spike", 2, "info"), finding("weight-growth", 3)]
    root, explained = root_cause(chain)
    assert root == chain[2]
    assert explained == frozenset()


def test_two_findings_that_explain_each_other_still_give_a_root():
    """A cycle among the causes must not hide everything."""
    first, second = (
        finding("aggressive-ramp", 5, subject="component:a"),
        finding("aggressive-ramp", 5, subject="component:b"),
    )
    assert root_cause([first, second])[0] is not None


def test_an_effect_may_be_dated_a_little_early():
    """By the boundary it came with; a hundredth of the run, no more."""
    ramp, shock = finding("aggressive-ramp", 213, "warning"), finding("curriculum-shock", 212, "warning")
    assert root_cause([shock, ramp])[0] == ramp
    late = finding("aggressive-ramp", 250, "warning")
    assert root_cause([shock, late])[0] == shock


def test_what_ended_long_before_explains_nothing():
    """A step that was taken back at 20 is not why weights drift at 5,000."""
    reset = Finding("step-reset", "warning", "run", 20, 29, "over", "back")
    drift = finding("curriculum-weight-drift", 5000)
    assert root_cause([reset, drift])[0] == drift


def test_an_outcome_is_the_root_only_where_nothing_else_is_as_grave():
    """Overfitting says where a run went; what it explains does not count, nor that it came first."""
    over, gap = finding("overfitting", 10, "warning"), finding("generalisation-gap", 60, "warning", "split:validation")
    scale = finding("input-scale", 40, "warning")
    assert root_cause([over, gap, scale])[0] == scale
    assert root_cause([over, gap])[0] == over
    assert root_cause([finding("overfitting", 10), scale])[0] == finding("overfitting", 10)


def test_what_is_grave_stands_before_what_is_worth_knowing(make_run, monkeypatch):
    """Root, its effects, the rest: in each the infos last, though they began earlier."""
    rate, other = finding("lr-zero", 5), finding("stale-data", 40, "warning")
    plateau, stuck = finding("loss-plateau", 6, "info"), finding("loss-stuck", 30, "warning")
    aside = finding("confounded-stage", 1, "info")
    told = [aside, rate, plateau, stuck, other]
    monkeypatch.setattr(Engine, "findings", lambda *_: told)
    assert diagnose(make_run({"loss": [1.0]})).findings == (rate, stuck, plateau, other, aside)


@pytest.mark.parametrize(("ratio", "rule"), [(0.0, "frozen-weights"), (3.0, "lr-too-high")])
def test_a_cause_that_is_seen_in_samples_explains_what_every_row_shows(ratio, rule, make_run):
    """The first sample comes at step 50, and the loss stands still from step 1 on."""
    row = np.arange(400)
    noise = np.random.default_rng(0).standard_normal(400)
    columns = {"loss": np.log(10) + 0.01 * noise, "lr/main": np.full(400, 1e-3), "grad_norm": np.exp(0.1 * noise)}
    columns["update_ratio/main"] = np.where((row + 1) % 50 == 0, ratio, np.nan)
    header = {"total_steps": 400, "classes": dict.fromkeys("abcdefghij", 9)}
    found = diagnose(make_run(columns, header=header))
    assert found.root_cause is not None
    assert (found.root_cause.rule, found.root_cause.first_step) == (rule, 1)
    assert "loss-stuck" in {finding.rule for finding in found.findings if finding.key in found.explained}


def test_a_boundary_lies_a_step_before_what_comes_with_it():
    """However short the run is: the stage begins at step 52, its weight is seen in row 53."""
    ramp, shock = finding("aggressive-ramp", 53, "warning"), finding("curriculum-shock", 52, "warning")
    assert root_cause([shock, ramp]) == (ramp, frozenset({shock.key}))
