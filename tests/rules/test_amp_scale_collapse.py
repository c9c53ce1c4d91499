"""amp-scale-collapse: halving without end; a scaler's search and its single tries are its life."""

import numpy as np

RULE = "amp-scale-collapse"


def scaler(limits, interval=2000, scale=65536.0):
    """(scale, skipped) of torch's scaler where a step overflows above a limit."""
    scales, skipped, since = [], [], 0
    for limit in limits:
        scales.append(scale)
        skipped.append(float(scale > limit))
        since = 0 if scale > limit else since + 1
        scale = scale / 2 if scale > limit else scale * 2 if since == interval else scale
        since = 0 if since == interval else since
    return np.array(scales), np.array(skipped)


def channels(limits, **settings):
    scale, skipped = scaler(limits, **settings)
    return {"amp/scale": scale, "amp/skipped": skipped, "loss": np.ones(len(scale))}


def test_a_scale_that_falls_to_nothing(make_run, judge):
    """By the flag, and by the scale alone."""
    columns = channels(np.where(np.arange(120) < 30, 1e6, 0.3))
    for part in (columns, {"amp/scale": columns["amp/scale"]}):
        (finding,) = judge(make_run(part), RULE)
        assert abs(finding.first_step - 31) <= 1
        assert (finding.severity, finding.state, finding.evidence["scale"]) == ("warning", "active", 0.25)


def test_a_gradient_that_is_never_finite_is_critical(make_run, judge):
    (finding,) = judge(make_run(channels(np.zeros(60))), RULE)
    assert (finding.severity, finding.state) == ("critical", "active")


def test_too_many_skips(make_run, judge):
    """One step in five, and then no more."""
    flags = np.where((np.arange(900) % 5 == 0) & (np.arange(900) >= 200) & (np.arange(900) < 500), 1.0, 0.0)
    (finding,) = judge(make_run({"amp/skipped": flags[:450]}), RULE)
    assert (finding.severity, finding.state, finding.first_step) == ("warning", "active", 201)
    (finding,) = judge(make_run({"amp/skipped": flags}), RULE)
    assert finding.state == "over"


def test_a_healthy_scaler(make_run, judge):
    """It searches, from a gradient that grows through the warm-up; it tries a larger scale every 100 steps."""
    for seed in range(60):
        random = np.random.default_rng(seed)
        drift = np.exp(np.cumsum(0.02 * random.standard_normal(1500)) + 0.5 * random.standard_normal(1500))
        warm = np.minimum(1.0, np.arange(1500) / 100) + 0.01
        settings = {"interval": int(random.choice([100, 500, 2000])), "scale": 2.0 ** int(random.choice([16, 24, 32]))}
        columns = channels(2.0 ** random.uniform(0, 16) / (warm * drift), **settings)
        assert judge(make_run(columns), RULE) == [], seed


def test_no_scaler_at_work(make_run, judge):
    assert judge(make_run({"amp/scale": np.ones(50), "amp/skipped": np.zeros(50)}), RULE) == []
