"""mode-collapse: diverse outputs that become one; a short dip and few right answers are no alarm."""

import numpy as np
import pytest

RULE = "mode-collapse"


def told(play, judge, diversity, total=200, **others):
    """A sample every tenth step."""
    rows = [
        {"kind": "sample", "step": 10 * i, "quality/diversity": value, **{k: v[i - 1] for k, v in others.items()}}
        for i, value in enumerate(diversity, 1)
    ]
    return judge(play([{"kind": "run", "total_steps": total}, *rows]), RULE)


@pytest.mark.parametrize("seed", range(10))
def test_a_collapse_is_named_from_its_first_sample(seed, play, judge):
    """Nine samples of 48 outputs are diverse, then hardly any is."""
    random = np.random.default_rng(seed)
    values = np.concatenate([random.binomial(48, 0.9, 9), random.binomial(48, 0.2, 8)]) / 48
    (finding,) = told(play, judge, values)
    assert (finding.severity, finding.first_step, finding.last_step, finding.state) == ("warning", 100, 170, "active")


def test_one_answer_for_half_of_the_run_is_critical_and_over_when_it_passes(play, judge):
    """Two diverse samples end it."""
    (finding,) = told(play, judge, [0.9, 0.9] + [0.02] * 12)
    assert finding.severity == "critical"
    (finding,) = told(play, judge, [0.9, 0.9] + [0.02] * 12 + [0.8, 0.9])
    assert (finding.severity, finding.state, finding.last_step) == ("critical", "over", 140)


HEALTHY = {
    "the most common answer, in the beginning": [0.9, 0.1, 0.1, 0.1, 0.6, 0.8, 0.9, 0.9],
    "single dips": [0.9, 0.4, 0.8, 0.8, 0.4, 0.9, 0.45, 0.8],
    "two samples": [0.9, 0.1],
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, play, judge):
    """Not for long enough."""
    assert told(play, judge, HEALTHY[name]) == []


def test_few_right_answers_are_an_info_and_empty_ones_another_rule_s(play, judge):
    """It never was diverse; there is nothing to be diverse."""
    assert [f.severity for f in told(play, judge, [0.1] * 15)] == ["info"]
    assert told(play, judge, [0.9] + [0.02] * 15, **{"quality/length_mean": [9.0] + [0.0] * 15}) == []


@pytest.mark.parametrize(("names", "severity"), [(("generator", "critic"), "warning"), (("sequence", "mass"), "info")])
def test_what_is_drawn_from_noise_must_differ(names, severity, play, judge):
    """A generator that never was diverse has collapsed; few right answers are another thing."""
    rows = [{"kind": "sample", "step": 10 * i, "quality/diversity": 0.2} for i in range(1, 11)]
    header = {"kind": "run", "total_steps": 100, "components": {name: {"role": "task"} for name in names}}
    (finding,) = judge(play([header, *rows]), RULE)
    assert finding.severity == severity
    assert "checkpoint" not in finding.advice  # none was better


@pytest.mark.parametrize(("last", "severity"), [(1.2, "warning"), (0.55, "info")])
def test_outputs_that_never_were_diverse_while_validation_gets_worse(last, severity, play, judge):
    """Who finds the few right answers does not; one split's best is not another's."""
    rows = [{"kind": "run", "total_steps": 100}]
    for i in range(1, 11):
        loss = 0.6 if i < 4 else last
        rows += [
            {"kind": "eval", "step": 10 * i, "split": "validation", "loss": loss},
            {"kind": "eval", "step": 10 * i, "split": "train", "loss": 2.0 * i},
            {"kind": "sample", "step": 10 * i, "quality/diversity": 0.4 if i < 4 else 0.2},
        ]
    (finding,) = judge(play(rows), RULE)
    assert (finding.severity, finding.first_step) == (severity, 10)
