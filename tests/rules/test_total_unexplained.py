"""total-unexplained: a loss that is not the sum of its parts; roundings and running means are no gap."""

import numpy as np
import pytest

RULE = "total-unexplained"
N = 200
ROW = np.arange(N)


def losses(seed, noise=0.1):
    """Two components, noisy and falling."""
    random = np.random.default_rng(seed)
    return [(level + 2 * np.exp(-ROW / 40)) * np.exp(noise * random.standard_normal(N)) for level in (1.0, 0.3)]


def columns(loss, a, b, weight=0.5):
    return {"loss": loss, "loss/a": a, "loss/b": b, "weight/a": np.ones(N), "weight/b": np.full(N, weight)}


@pytest.mark.parametrize("seed", range(5))
def test_a_component_that_nobody_tracks_is_named_from_its_first_row(seed, make_run, judge):
    """It enters in the middle of a block."""
    a, b = losses(seed)
    (finding,) = judge(make_run(columns(a + 0.5 * b + 0.5 * (ROW >= 67), a, b)), RULE)
    assert (finding.severity, finding.subject, finding.first_step, finding.last_step) == ("warning", "run", 68, N)
    assert finding.evidence["gap"] == pytest.approx(0.5, rel=0.1)
    assert "of the loss is unexplained" in finding.message
    (finding,) = judge(make_run(columns((a + 0.5 * b) / 2, a, b)), RULE)
    assert "the components exceed the loss by 100.0%" in finding.message


def test_a_loss_divided_by_the_accumulation_is_named_as_such(make_run, judge):
    """Its ratio to the sum is exactly that."""
    a, b = losses(0)
    (finding,) = judge(make_run(columns((a + 0.5 * b) / 8, a, b), header={"horizon": {"accumulation": 8}}), RULE)
    assert "divided by the accumulation of 8" in finding.message


def test_it_is_over_when_the_parts_add_up_again(make_run, judge):
    """The finding keeps its last step."""
    a, b = losses(0)
    (finding,) = judge(make_run(columns(a + 0.5 * b + (ROW < 100), a, b)), RULE)
    assert (finding.first_step, finding.last_step, finding.state) == (1, 100, "over")


def averaged(values, width=20):
    return np.convolve(np.concatenate([np.full(width - 1, values[0]), values]), np.ones(width) / width, "valid")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["exact", "bfloat16", "means", "rounded", "no weights"])
def test_silent_on(kind, seed, make_run, judge):
    """Logs of every make."""
    a, b = losses(seed)
    table = columns(a + 0.5 * b, a, b)
    if kind == "bfloat16":
        table["loss"] = table["loss"] * (1 + 0.004 * np.sign(np.cos(ROW * 7)))
    elif kind == "means":
        table |= {"loss/a": averaged(a), "loss/b": averaged(b)}
    elif kind == "rounded":
        table = {name: np.round(values * (0.01 if "loss" in name else 1), 3) for name, values in table.items()}
    elif kind == "no weights":
        table = {name: values for name, values in table.items() if not name.startswith("weight/")}
        table["loss"] = a + 3 * b
    assert judge(make_run(table), RULE) == []


@pytest.mark.parametrize(("by", "alarms"), [(2.0, 1), (1.9, 0)])
def test_weights_of_one_digit_that_change_in_every_block(by, alarms, make_run, judge):
    """They may have been rounded, which does not hit the accumulation's ratio in every row."""
    a, b = losses(0)
    weight = np.where(ROW % 20 < 10, 0.1, 0.2)
    table = columns((0.01 * a + weight * b) / by, a, b, weight) | {"weight/a": np.full(N, 0.01)}
    assert len(judge(make_run(table, header={"horizon": {"accumulation": 2}}), RULE)) == alarms


def test_it_is_dated_where_the_gap_begins_not_where_it_is_certain(make_run, judge):
    """A hidden penalty that falls by more than the parts do says for long nothing of whether both are of one step."""
    a, b = losses(0)
    penalty = 60 + 200 * np.exp(-ROW / 30)
    (finding,) = judge(make_run(columns(a + 0.5 * b + penalty, a, b)), RULE)
    assert finding.first_step == 1
    late = np.where(ROW > 50, 60 + 200 * np.exp(-(ROW - 50) / 30), 0.0)
    (finding,) = judge(make_run(columns(a + 0.5 * b + late, a, b)), RULE)
    assert finding.first_step == 52  # row 51 is step 52


@pytest.mark.parametrize(
    ("weight", "header", "alarms"), [((0.5, 0.5), {}, 1), ((0.5, 0.4), {}, 0), ((0.5, 0.5), None, 0)]
)
def test_a_weight_of_one_digit(weight, header, alarms, make_run, judge):
    """One that stays is one half in a file of ours, which rounds nothing; elsewhere a digit may be all that is left."""
    random = np.random.default_rng(0)
    policy, halves = -2.5 - 0.001 * ROW + 0.02 * random.standard_normal(N), np.where(ROW % 2, *weight)
    critic = 0.3 * np.exp(0.1 * random.standard_normal(N))
    table = {"loss": halves * policy + 0.08 * critic + 0.05, "loss/a": policy, "loss/b": critic}
    table |= {"weight/a": halves, "weight/b": np.full(N, 0.08)}
    assert len(judge(make_run(table, header=header), RULE)) == alarms


def test_what_the_digits_explain_begins_nothing(make_run, judge):
    """Two digits are off by more than a hundredth in every row; the gap begins where something is missing."""
    a, b = losses(0)
    total = np.round(a + 0.5 * b, 1) + np.where(ROW >= 120, 3.0, 0.0)
    table = columns(total, np.round(a, 1), np.round(b, 1))
    (finding,) = judge(make_run(table), RULE)
    assert 115 <= finding.first_step <= 122
