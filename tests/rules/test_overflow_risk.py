"""overflow-risk: near the largest number of the precision that is computed in, and not of another."""

import numpy as np

RULE = "overflow-risk"
N = 60
GROWING = 1000.0 * 1.07 ** np.arange(N)
HALF = {"dtypes": {"declared": "float16", "observed": "float16"}}


def test_logits_that_grow_towards_the_limit(make_run, judge):
    """By the declaration, or by the scaler at work."""
    first = int(np.argmax(GROWING > 32752)) + 1
    for header, extra in ((HALF, {}), ({}, {"amp/scale": np.full(N, 1024.0)})):
        (finding,) = judge(make_run({"absmax/logits": GROWING, **extra}, header=header), RULE)
        assert (finding.subject, finding.first_step, finding.severity) == ("module:logits", first, "warning")


def test_other_precisions_have_room(make_run, judge):
    for header in ({"dtypes": {"declared": "bfloat16"}}, {"dtypes": {"observed": "float32"}}, {}):
        assert judge(make_run({"absmax/logits": GROWING}, header=header), RULE) == []


def test_masks_and_single_rows_do_not_count(make_run, judge):
    """A fill value stands still; an outlier comes alone."""
    random = np.random.default_rng(0)
    outliers = np.where(np.arange(N) % 7 == 0, 50_000.0, 1e4 * random.random(N))
    for value in (np.full(N, 65504.0), np.full(N, 50_000.0), outliers):
        assert judge(make_run({"absmax/scores": value}, header=HALF), RULE) == []


def test_it_is_over_when_the_values_sink(make_run, judge):
    value = np.where(np.arange(N) < 30, 40_000.0 + np.arange(N), 100.0)
    (finding,) = judge(make_run({"absmax/scores": value}, header=HALF), RULE)
    assert (finding.state, finding.first_step, finding.last_step) == ("over", 1, 30)
