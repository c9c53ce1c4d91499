"""From findings to a root cause."""

from trainwatch.diagnosis import root_cause
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


def test_an_info_is_never_what_a_run_died_of():
    """A run with infos alone is healthy."""
    assert root_cause([finding("overfitting", 10, "info")]) == (None, frozenset())
    assert root_cause([]) == (None, frozenset())


def test_two_findings_that_explain_each_other_still_give_a_root():
    """A cycle among the causes must not hide everything."""
    first, second = (
        finding("aggressive-ramp", 5, subject="component:a"),
        finding("aggressive-ramp", 5, subject="component:b"),
    )
    assert root_cause([first, second])[0] is not None


def test_what_ended_long_before_explains_nothing():
    """A step that was taken back at 20 is not why weights drift at 5,000."""
    reset = Finding("step-reset", "warning", "run", 20, 29, "over", "back")
    drift = finding("curriculum-weight-drift", 5000)
    assert root_cause([reset, drift])[0] == drift
