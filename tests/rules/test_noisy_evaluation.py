"""noisy-evaluation: the same weights, another loss."""

import numpy as np
import pytest

RULE = "noisy-evaluation"


def evals(apart, seed=0, marked=True):
    random = np.random.default_rng(seed)
    for state in range(6):
        base = 1 + np.exp(-state)
        for repeat in range(3):
            value = base * (1 + apart * random.standard_normal())
            mark = {"repeat": repeat, "weights_step": 100 * state} if marked else {}
            yield {"step": 100 * state + (0 if marked else repeat), "split": "valid", "loss": value, **mark}


@pytest.mark.parametrize("seed", range(5))
def test_far_apart_is_a_warning(make_run, judge, seed):
    """From the first repeat that differs."""
    (found,) = judge(make_run({"loss": np.ones(600)}, evals=evals(0.3, seed)), RULE)
    assert (found.severity, found.subject, found.first_step) == ("warning", "split:valid", 0)
    assert found.evidence["states"] == 6


def test_a_little_is_an_info_and_rounding_is_none(make_run, judge):
    """Nor is anything that is not marked as a repeat."""
    columns = {"loss": np.ones(600)}
    assert [f.severity for f in judge(make_run(columns, evals=evals(0.01)), RULE)] == ["info"]
    assert judge(make_run(columns, evals=evals(1e-5)), RULE) == []
    assert judge(make_run(columns, evals=evals(0.3, marked=False)), RULE) == []
    once = [{**record, "repeat": 0} for record in evals(0.3)]
    assert judge(make_run(columns, evals=once), RULE) == []


@pytest.mark.parametrize(("moves", "severity"), [(0.02, "warning"), (0.0, "info")])
def test_counted_answers_that_differ_are_no_noise_by_nature(moves, severity, make_run, judge):
    """A sampled loss differs a little in health; a classifier's accuracy does not."""
    records = [{**one, "metric/accuracy": 0.9 + moves * one["repeat"]} for one in evals(0.01)]
    assert [found.severity for found in judge(make_run({"loss": np.ones(600)}, evals=records), RULE)] == [severity]


@pytest.mark.parametrize("name", ["exact", "concordance", "c_index"])
def test_exact_matches_and_pairs_in_order_are_counted(make_run, judge, name):
    """A caption is right or wrong, word by word; two patients are in the right order or not."""
    records = [{**one, f"metric/{name}": 0.9 + 0.02 * one["repeat"]} for one in evals(0.01)]
    (found,) = judge(make_run({"loss": np.ones(600)}, evals=records), RULE)
    assert found.severity == "warning"


@pytest.mark.parametrize(
    ("name", "severity"),
    [("top_1", "warning"), ("cer", "warning"), ("recall_at_1", "info"), ("ndcg5", "info"), ("psnr", "info")],
)
def test_what_is_counted_and_what_grades_a_drawing(name, severity, make_run, judge):
    """A letter is wrong or not; candidates that are ranked may be drawn, and so is what a diffusion model draws."""
    records = [{**one, f"metric/{name}": 0.9 + 0.02 * one["repeat"]} for one in evals(0.01)]
    assert [found.severity for found in judge(make_run({"loss": np.ones(600)}, evals=records), RULE)] == [severity]
