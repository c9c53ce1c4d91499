"""outputs-cut: generation that never ends is worth a word, and no alarm."""

import numpy as np
import pytest

RULE = "outputs-cut"


def shares(until, last=60):
    """Comes to 1 by and by, with an output here and there that ends."""
    share = np.minimum(0.5 + 0.5 * np.arange(last) / until, 1.0)
    share[last - 10] = 0.9
    return share


@pytest.mark.parametrize(
    "name", ["completions_clipped_ratio", "response_length_clip_ratio", "generation_truncated_frac"]
)
def test_outputs_that_all_reach_the_limit(name, make_run, judge):
    """Since when, and how many rows tell it."""
    (found,) = judge(make_run({"loss": np.ones(60), f"logged/{name}": shares(20)}), RULE)
    assert (found.severity, found.first_step, found.evidence["rows"]) == ("info", 19, 42)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("clip_ratio_high_mean", shares(20)),  # PPO's, of the policy's ratio
        ("completions_clipped_ratio", shares(50)),  # not for long yet
        ("completions_clipped_ratio", shares(20)[::-1]),  # a young policy that learned to end
        ("completions_clipped_ratio", np.full(60, 0.8)),
        ("completions_clipped_ratio", np.where(np.arange(60) < 12, 1.0, np.nan)),
    ],
)
def test_what_is_said_of_none(name, share, make_run, judge):
    """Another ratio, few rows, or outputs that end."""
    assert judge(make_run({"loss": np.ones(60), f"logged/{name}": share}), RULE) == []
