"""Constant, far from unit scale, with a single huge value; and what is healthy."""

import numpy as np
import pytest

from trainwatch.diagnosis import diagnose

RULE = "input-scale"


def columns(mean, std, absmax, rows=200, loss=2.3):
    ones = np.ones(rows)
    return {
        "data/input_mean": mean * ones,
        "data/input_std": std * ones,
        "data/input_absmax": absmax * ones,
        "loss": loss * ones,
    }


@pytest.mark.parametrize(
    ("seen", "severity", "words"),
    [
        ((0.0, 0.0, 0.0), "warning", "no spread"),
        ((1.0, 0.0, 1.0), "warning", "no spread"),
        ((500.0, 700.0, 2000.0), "warning", "not about 0 and 1"),
        ((120.0, 60.0, 255.0), "warning", "not about 0 and 1"),
        ((20.0, 9.0, 60.0), "info", "not about 0 and 1"),
        ((0.1, 40.0, 1e9), "warning", "reach 1e+09"),
    ],
)
def test_what_is_off(make_run, judge, seen, severity, words):
    """From the first step, in a long log and in one of ten rows."""
    for rows in (200, 10):
        found = judge(make_run(columns(*seen, rows=rows)), RULE)
        graver = max(found, key=lambda finding: finding.rank)
        assert (graver.severity, graver.first_step) == (severity, 1)
        assert any(words in finding.message for finding in found)


@pytest.mark.parametrize(
    "seen", [(0.0, 1.0, 5.0), (0.45, 0.26, 1.0), (0.0, 0.02, 0.4), (-2.0, 3.0, 40.0), (0.01, 0.1, 1.0)]
)
def test_standardised_data_pixels_audio_and_one_hot_are_healthy(make_run, judge, seen):
    """Whatever is within a factor of ten."""
    assert judge(make_run(columns(*seen)), RULE) == []


def test_a_model_that_copes(make_run, judge):
    """Raw pixels behind a BatchNorm: the loss halves, so it is an info."""
    loss = 2.3 * np.exp(-np.arange(200) / 60)
    (found,) = judge(make_run(columns(120.0, 60.0, 255.0, loss=loss)), RULE)
    assert found.severity == "info"
    assert "copes" in found.message


def test_one_blank_batch_in_a_block_is_nothing(make_run, judge):
    """A median is judged."""
    values = columns(0.0, 1.0, 4.0)
    values["data/input_std"][::20] = 0.0
    assert judge(make_run(values), RULE) == []


def test_it_ends(make_run, judge):
    """A stage whose data are scaled wrongly, and is left again."""
    values = columns(0.0, 1.0, 4.0)
    values["data/input_std"][60:120] = 900.0
    (found,) = judge(make_run(values), RULE)
    assert (found.first_step, found.state, found.last_step) == (61, "over", 120)


def test_inputs_that_are_next_to_nothing(make_run, judge):
    """Divided by far too much; not where the loss halves, nor where a few values among many are 1."""
    (found,) = judge(make_run(columns(1e-9, 1e-6, 2e-6)), RULE)
    assert (found.severity, found.first_step) == ("warning", 1)
    learns = columns(1e-9, 1e-6, 2e-6) | {"loss": np.exp(-np.arange(200) / 50)}
    assert [finding.severity for finding in judge(make_run(learns), RULE)] == ["info"]
    gone = columns(1e-9, 1e-6, 2e-6) | {"loss": np.exp(-np.arange(200) / 8)}  # the inputs' own squares
    assert [finding.severity for finding in judge(make_run(gone), RULE)] == ["warning"]
    assert judge(make_run(columns(1e-6, 5e-5, 1.0)), RULE) == []


@pytest.mark.parametrize(("norm", "severity"), [(5e4, "warning"), (1.3, "info")])
def test_a_loss_that_fell_from_where_the_inputs_had_thrown_it(norm, severity, make_run, judge):
    """Gradients as large as the inputs: nothing normalises them. Small ones: a BatchNorm does."""
    fall = {"loss": 2.3 + 300 * np.exp(-np.arange(200) / 9), "grad_norm": norm * np.exp(-np.arange(200) / 9)}
    assert [one.severity for one in judge(make_run(columns(500.0, 300.0, 2000.0) | fall), RULE)] == [severity]


@pytest.mark.parametrize(("later", "severity"), [(1.0, "warning"), (20.0, "info")])
def test_first_gradients_of_a_tenth_of_the_inputs(later, severity, make_run, judge):
    """The net masks what it hears, 16-bit integers: loss and gradient come down a thousandfold from there, or not."""
    away = np.exp(-np.arange(200) / 20)
    fall = {"loss": 1 + 1600 * away, "grad_norm": later + 1700 * away}
    (found,) = judge(make_run(columns(-20.0, 3100.0, 16000.0) | fall), RULE)
    assert found.severity == severity


@pytest.mark.parametrize(
    ("left", "most", "severities"), [(0.95, 0.003, ["warning"]), (0.3, 0.003, ["info"]), (0.3, 0.05, [])]
)
def test_pixels_that_are_divided_twice(left, most, severities, make_run, judge):
    """Nothing is learned; or it is a unit, with which the model copes; a twentieth here and there is something."""
    loss = left + (1 - left) * np.exp(-np.arange(200) / 8)
    loss /= np.median(loss[:20])
    seen = columns(-0.0015, 0.0009, most, loss=np.maximum(loss, left))
    for more in ({}, {"grad_norm": 0.5 + 0.5 * loss}):
        assert [one.severity for one in judge(make_run(seen | more), RULE)] == severities


def test_pixels_behind_a_normalisation_whose_run_has_converged(make_run, judge):
    """The loss comes down two-hundredfold, and the norm with it, from no more than 15."""
    away = np.exp(-np.arange(2000) / 200)
    fall = {"loss": 0.01 + 1.99 * away, "grad_norm": 0.05 + 15 * away}
    (found,) = judge(make_run(columns(120.0, 60.0, 255.0, rows=2000) | fall), RULE)
    assert found.severity == "info"


def test_a_negative_spread_is_none(make_run, judge):
    """A mistake of the log, not of the inputs."""
    assert judge(make_run(columns(0.1, -1.0, 3.0)), RULE) == []


def test_a_batch_that_dwarfs_all_before(make_run, judge):
    """A hundred times the largest so far; heavy tails, and the first rows of all, are healthy."""
    tails = np.exp(np.abs(np.random.default_rng(0).standard_t(4, 200)).clip(0, 3))
    burst = np.where(np.arange(200) == 140, 5000.0, 2.0)
    (found,) = judge(make_run(columns(0.0, 1.0, 1.0) | {"data/input_absmax": burst}), RULE)
    assert (found.severity, found.first_step, found.last_step) == ("warning", 141, 141)
    (found,) = judge(make_run(columns(0.0, 1.0, 1.0) | {"data/input_absmax": burst / 1e200 ** (burst < 10)}), RULE)
    assert "2.5e+203 times" in found.message
    early = np.where(np.arange(200) < 5, 0.001, 2.0)
    for healthy in (tails, early):
        assert judge(make_run(columns(0.0, 1.0, 1.0) | {"data/input_absmax": healthy}), RULE) == []


def test_a_loss_that_falls_excuses_no_game_and_nothing_beyond_measure(make_run, judge):
    """A loss of rewards proves no learning; 16-bit pixels are no matter of taste."""
    loss = 2.3 * np.exp(-np.arange(200) / 60)
    (found,) = judge(make_run(columns(0.0, 600.0, 4000.0, loss=loss) | {"loss/policy": loss}), RULE)
    assert found.severity == "warning"
    (found,) = judge(make_run(columns(5e4, 2e4, 6e4, loss=loss)), RULE)
    assert found.severity == "warning"


@pytest.mark.parametrize(("held_out", "severity"), [(2.4, "warning"), (1.5, "info")])
def test_who_copes_does_so_in_validation_too(held_out, severity, make_run, judge):
    """The training loss comes to a quarter either way."""
    seen = columns(500.0, 160.0, 2000.0, loss=np.linspace(2.4, 0.6, 200)) | {"grad_norm": np.full(200, 2.0)}
    evals = [{"step": step, "split": "valid", "loss": held_out} for step in range(20, 201, 20)]
    (found,) = judge(make_run(seen, evals=evals), RULE)
    assert found.severity == severity


@pytest.mark.parametrize(
    ("norm", "absmax", "severities"), [(1e4, 255.0, ["warning"]), (9.0, 255.0, ["info"]), (1e4, 9.0, [])]
)
def test_only_the_largest_value_is_known(make_run, judge, norm, absmax, severities):
    """Of one of several models, whose first gradients are as large, or not: one value may be far out."""
    told = {"data/input_absmax": np.full(200, absmax), "loss": np.geomspace(5e3, 20.0, 200)}
    found = judge(make_run(told | {"grad_norm/generator": np.full(200, norm)}), RULE)
    assert [one.severity for one in found] == severities


def test_a_burst_is_what_breaks_a_run(make_run):
    """Bytes among fractions in one batch throw the weights off for good: it is the input, and not labels."""
    random, after = np.random.default_rng(0), np.arange(200) >= 120
    loss = 0.02 * random.standard_normal(200) + np.where(after, 8.0, 2 + 3 * np.exp(-np.arange(200) / 20))
    seen = columns(0.0, 0.3, 0.8) | {
        "loss": loss,
        "loss/a": loss,
        "data/input_absmax": np.where(np.arange(200) == 120, 200.0, 0.8),
    }
    evals = [{"step": step, "split": "valid", "loss": loss[step - 1]} for step in range(10, 201, 10)]
    found = diagnose(make_run(seen, evals=evals))
    assert found.root_cause.rule == RULE
    assert "data-break" in {key[0] for key in found.explained}


def test_only_the_largest_value_is_known_and_it_is_next_to_nothing(make_run, judge):
    """No value can be larger: the spread needs not be told."""
    (found,) = judge(make_run({"data/input_absmax": np.full(200, 1e-6), "loss": np.full(200, 2.3)}), RULE)
    assert (found.severity, found.first_step) == ("warning", 1)
    assert judge(make_run({"data/input_absmax": np.full(200, 0.05), "loss": np.full(200, 2.3)}), RULE) == []


@pytest.mark.parametrize(
    ("first", "last", "left", "severity"),
    [
        (1.8, 1.73, 1.7, "warning"),  # only training came down, to where validation was all along
        (8.0, 1.73, 1.7, "info"),  # both came down
        (1.8, 0.9, 1.0, "info"),  # validation halves too
        (0.3, 0.28, 1.7, "info"),  # another quantity: training counts more than the task
    ],
)
def test_training_alone_was_thrown(first, last, left, severity, make_run, judge):
    """Of the inputs only the largest value is known, of the gradients nothing."""
    loss = np.maximum(left, np.geomspace(40.0, 0.01, 200))
    evals = [{"step": 10 * i, "split": "valid", "loss": first + (last - first) * min(1, i / 8)} for i in range(1, 21)]
    (found,) = judge(make_run({"data/input_absmax": np.full(200, 255.0), "loss": loss}, evals=evals), RULE)
    assert found.severity == severity
