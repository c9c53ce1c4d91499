"""loss-spike: a jump that passes is worth knowing; a mark that stays, or many of them, is an alarm."""

import numpy as np
import pytest

RULE = "loss-spike"


def quiet(n, seed=0):
    return (0.5 + 1.5 * np.exp(-5 * np.arange(n) / n)) * (1 + 0.05 * np.random.default_rng(seed).standard_normal(n))


@pytest.mark.parametrize("seed", range(10))
def test_one_that_passes_is_an_info(make_run, judge, seed):
    """Its first row, its height, and when it was over."""
    loss = quiet(800, seed)
    loss[400:408] *= 5
    (found,) = judge(make_run({"loss": loss}), RULE)
    assert (found.severity, found.first_step, found.state) == ("info", 401, "over")
    assert found.last_step == 409
    assert found.evidence["peak"] == pytest.approx(loss[400:408].max())


def test_a_mark_that_stays_is_a_warning(make_run, judge):
    """The gradient jumped as well; the level is higher since, and does not heal."""
    loss, norm = quiet(900), np.ones(900)
    loss[500:510] += 4
    loss[510:] += 0.3
    norm[498:505] = 20
    (found,) = judge(make_run({"loss": loss, "grad_norm": norm}), RULE)
    assert (found.severity, found.first_step, found.state) == ("warning", 501, "active")
    assert found.evidence["gradient_rose"] == 20


def test_again_and_again_is_a_warning(make_run, judge):
    """Said once more beside the first, from the first on: the same finding."""
    loss = quiet(1500)
    for begin in (300, 600, 800, 1000, 1200):
        loss[begin : begin + 6] *= 5
    (found,) = judge(make_run({"loss": loss}), RULE)
    assert (found.severity, found.first_step) == ("warning", 301)
    assert found.evidence["spikes"] == 5
    game = make_run({"loss": loss, "loss/critic": loss})
    assert {finding.severity for finding in judge(game, RULE)} == {"info"}


@pytest.mark.parametrize("seed", range(8))
def test_what_is_healthy_raises_no_alarm(make_run, judge, seed):
    """Heavy tails have single rows; stages and restarts may jump; a hinge loss has no level."""
    random = np.random.default_rng(seed)
    n = int(random.integers(40, 3000))
    t = np.arange(n) / n
    heavy = {"loss": (0.3 + np.exp(-8 * t)) * np.exp(0.3 * random.standard_t(2.5, n).clip(-8, 8))}
    hinge = {"loss": np.maximum(0, 0.5 * np.exp(-5 * t) + 0.15 * random.standard_normal(n) - 0.05)}
    assert [f.message for columns in (heavy, hinge) for f in judge(make_run(columns), RULE) if f.rank] == []
    stages = {"loss": quiet(n, seed) * np.where(t < 0.5, 1, 5), "stage": t >= 0.5}
    rates = {"loss": quiet(n, seed) * np.where(t < 0.5, 1, 5), "lr/a": np.where(t < 0.5, 1e-4, 1e-3)}
    assert [
        f.message for columns in (stages, rates, {"loss": quiet(n, seed)}) for f in judge(make_run(columns), RULE)
    ] == []


@pytest.mark.parametrize("rows", [10, 80])
def test_a_blow_that_takes_long_to_heal(make_run, judge, rows):
    """A hundred times the level at once: an info if it passes, a warning after forty rows."""
    row = np.arange(400)
    loss = 0.5 + 1.5 * np.exp(-row / 20) + 0.02 * np.random.default_rng(rows).standard_normal(400)
    loss[200 : 200 + rows] += 3.0
    loss[200] = 60.0
    found = judge(make_run({"loss": loss, "grad_norm": np.where(row == 200, 100.0, 1.0)}), "loss-spike")
    assert (found[-1].severity, found[-1].first_step) == ("info" if rows == 10 else "warning", 201)


def test_a_blow_that_came_in_three_rows_after_another_that_healed(make_run, judge):
    """As full batches have them: no noise, each step larger than the last. The info tells of both as they are."""
    loss = 0.02 + 0.6 * np.exp(-np.arange(700) / 60)
    loss[250:262] += 0.1
    loss[520:] += 0.12
    loss[520:524] = 0.06, 0.5, 19.0, 2.0
    info, warning = judge(make_run({"loss": loss}), RULE)
    assert (info.severity, warning.severity, warning.first_step) == ("info", "warning", 521)
    assert info.message.endswith("; and once more, at step 521, and stands at 0.14 since.")


@pytest.mark.parametrize(
    ("hurt", "gains", "turns", "told"),
    [
        (0.3, 0.1, 0, "warning"),
        (0.3, 0.5, 0, "info"),  # as good again
        (0.3, 0.1, 1, "info"),  # a stage changes what is asked
        (0.03, -0.3, 0, "info"),  # it overfits from then on
        (0.0, 0.0, 0, "info"),  # it had converged
    ],
)
def test_a_blow_after_which_validation_gains_nothing(make_run, judge, hurt, gains, turns, told):
    """Training is back at once, but validation jumped and never is."""
    row = np.arange(300)
    loss = quiet(300)
    loss[65] = 400.0
    valid = [
        3 - at / 60 if at < 66 else 2.0 + hurt + 0.001 * np.sin(at) - gains * (at - 66) / 234
        for at in range(20, 300, 20)
    ]
    run = make_run(
        {"loss": loss, "stage": turns * (row > 150)},
        evals=[{"step": 20 * number, "split": "valid", "loss": one} for number, one in enumerate(valid, 1)],
    )
    assert [(found.severity, found.first_step) for found in judge(run, RULE)][-1] == (told, 66)


def test_a_gradient_of_exactly_zero_before_is_no_measure(make_run, judge):
    """Nor is a level of 0; the rule goes by the loss then, and does not break."""
    loss, norm = quiet(400), np.where(np.arange(400) < 200, 0.0, 1.0)
    loss[205:210] *= 5
    (found,) = judge(make_run({"loss": loss, "grad_norm": norm}), RULE)
    assert (found.severity, "gradient_rose" in found.evidence) == ("info", False)


def test_a_jump_on_the_floor_of_what_is_learned_is_not_told(make_run, judge):
    """Ten times next to nothing; the first that is told is the first that counts."""
    loss = 2 * np.exp(-np.arange(900) / 40) + 1e-3 * (1 + 0.02 * np.random.default_rng(0).standard_normal(900))
    loss[600:604] *= 10
    assert judge(make_run({"loss": loss}), RULE) == []
    loss[800:804] *= 500
    (found,) = judge(make_run({"loss": loss}), RULE)
    assert (found.severity, found.first_step, found.evidence["spikes"]) == ("info", 801, 1)


@pytest.mark.parametrize("seed", range(5))
def test_tiny_batches_whose_losses_spread_over_powers_of_ten(make_run, judge, seed):
    """Episodes of a few samples: nearly all are answered rightly, and one costs a hundred times the others."""
    random = np.random.default_rng(seed)
    loss = np.exp(random.normal(-2.5, 1.8, 240)).clip(max=4.0)
    assert all(found.severity == "info" for found in judge(make_run({"loss": loss}), RULE))


def test_what_has_been_there_before_is_no_blow(make_run, judge):
    """Twenty times the level, and forty of the first rows', but not ten of the highest row so far."""
    random = np.random.default_rng(0)
    loss = 0.1 * np.exp(random.normal(0.0, 0.2, 200))
    loss[[30, 45]] = 1.5
    loss[105:170] = 0.3
    loss[105] = 4.0
    assert all(found.severity == "info" for found in judge(make_run({"loss": loss}), RULE))
    loss[[30, 45]] = 0.1
    assert [found.severity for found in judge(make_run({"loss": loss}), RULE)] == ["warning"]


@pytest.mark.parametrize("first", [1.0, 200.0])
def test_a_first_batch_that_is_far_off_hides_no_blow(make_run, judge, first):
    """One row of the first twenty."""
    loss = quiet(2000)
    loss[0] *= first
    loss[900:1100] = 30.0
    assert [found.severity for found in judge(make_run({"loss": loss}), RULE)] == ["warning"]
