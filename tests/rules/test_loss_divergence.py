"""loss-divergence: down, and back up for good; what wanders, restarts or jumps by plan is none."""

import numpy as np
import pytest

RULE = "loss-divergence"


def descent(n, speed=8.0):
    return 0.3 + 2.0 * np.exp(-speed * np.arange(n) / n)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [100, 1500])
def test_a_rise_that_stays(make_run, judge, n, seed):
    """A jump is found at its row; all progress is gone, which is critical."""
    random = np.random.default_rng(seed)
    first = n // 2
    loss = np.where(np.arange(n) < first, descent(n), 4.0) * (1 + 0.05 * random.standard_normal(n))
    (found,) = judge(make_run({"loss": loss}), RULE)
    assert (found.severity, found.subject, found.state) == ("critical", "run", "active")
    assert abs(found.first_step - (first + 1)) <= 3
    assert found.last_step == n


@pytest.mark.parametrize("seed", range(10))
def test_a_slow_rise_begins_where_it_bends(make_run, judge, seed):
    """Not where it becomes an alarm."""
    random, n, first = np.random.default_rng(seed), 600, 300
    loss = descent(n) + np.maximum(0, np.arange(n) - first) * 0.01
    (found,) = judge(make_run({"loss": loss * (1 + 0.03 * random.standard_normal(n))}), RULE)
    assert abs(found.first_step - first) <= 20


def test_ten_epochs_and_half_of_the_progress(make_run, judge):
    """A short log, and a warning: not all is lost."""
    (found,) = judge(make_run({"loss": [2.3, 1.5, 1.2, 1.0, 0.95, 1.9, 2.0, 2.0, 1.9, 2.0]}), RULE)
    assert (found.severity, found.first_step) == ("warning", 6)


def test_a_loss_that_never_fell_needs_a_supervised_run(make_run, judge):
    """Doubling from the start is divergence where losses are evaluated; in a DQN it is life."""
    loss = np.exp(np.arange(200) / 100) + 0.01 * np.random.default_rng(0).standard_normal(200)
    assert judge(make_run({"loss": loss}), RULE) == []
    (found,) = judge(make_run({"loss": loss}, header={"classes": {"a": 5, "b": 5}}), RULE)
    assert found.severity == "warning"


@pytest.mark.parametrize(("height", "validation", "count"), [(1.8, 1.8, 1), (1.8, 1.0, 0), (1.3, 1.8, 0)])
def test_a_step_that_validation_shares(height, validation, count, make_run, judge):
    """Of a loss that had not fallen; where validation goes on as before, the data of training became harder."""
    rows = np.arange(200)
    loss = np.where(rows < 60, 1.0, height) + 0.03 * np.random.default_rng(0).standard_normal(200)
    evals = [{"step": step, "loss": 1.1 * (validation if step > 60 else 1)} for step in range(20, 201, 20)]
    assert len([one for one in judge(make_run({"loss": loss}, evals=evals), RULE) if one.rank]) == count


@pytest.mark.parametrize("seed", range(6))
def test_what_is_healthy(make_run, judge, seed):
    """Heavy tails, a flat floor, losses around 0, warm restarts, declared stages, rewards, the last noisy rows."""
    random = np.random.default_rng(seed)
    n = int(random.integers(10, 2000))
    t, noise = np.arange(n) / n, random.standard_normal(n)
    phase = t * 3 % 1
    rates = {"lr/main": 1e-3 * 0.5 * (1 + np.cos(np.pi * phase)) + 1e-8}
    stage = np.floor(t * 3)
    rising = {"loss": 0.5 + 1.5 * np.exp(-t * 9) + 3 * np.maximum(0, t - 0.5) + 0.05 * noise}
    weight = {"weight/b": np.maximum(0, t - 0.5), "loss/b": 3.0, "weight/a": 1.0, "loss/a": 1.0}
    for columns in (
        {"loss": descent(n) * np.exp(0.3 * random.standard_t(2.5, n).clip(-8, 8))},
        {"loss": 0.05 + 0.02 * noise},
        {"loss": 3 - 8 * (1 - np.exp(-6 * t)) + 0.3 * noise},
        {"loss": 0.02 * noise + 0.1 * np.sin(9 * t)},
        {"loss": 0.5 + np.exp(-6 * t) + 0.4 * (1 - phase) + 0.05 * noise, **rates},
        {"loss": 0.5 + 0.8 * stage + 1.5 * np.exp(-30 * (t - stage / 3)) + 0.05 * noise, "stage": stage},
        {"loss": rising["loss"], "loss/policy": rising["loss"]},
        {**rising, **weight},
    ):
        assert judge(make_run(columns), RULE) == []


def test_a_later_stage_that_is_well_closes_it(make_run, judge):
    """What diverged in the first stage is over in the second."""
    loss = np.concatenate([np.where(np.arange(200) < 100, descent(200), 3.0), descent(200)])
    (found,) = judge(make_run({"loss": loss, "stage": np.arange(400) >= 200}), RULE)
    assert found.state == "over"
    assert 199 <= found.last_step <= 200


@pytest.mark.parametrize("seed", range(5))
def test_down_from_a_peak_to_where_it_began_is_no_recovery(make_run, judge, seed):
    """All is lost, and it stands there; while it still falls it is left alone."""
    random, n = np.random.default_rng(seed), 300
    row = np.arange(n)
    dead = np.where(row < 150, descent(n), 2.3 + 4 * np.exp(-(row - 150) / 4)) * (1 + 0.01 * random.standard_normal(n))
    (found,) = judge(make_run({"loss": dead}), RULE)
    assert abs(found.first_step - 151) <= 3
    heals = np.where(row < 150, descent(n), 0.4 + 4 * np.exp(-(row - 150) / 40))
    assert judge(make_run({"loss": heals}), RULE) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_few_bad_rows_at_the_end_of_a_skewed_noise_are_no_alarm(make_run, judge, seed):
    """Single rows of counts: the least of them is far below their level, and the last seven are high."""
    random, n = np.random.default_rng(seed), 800
    loss = 0.5 - 3 * np.exp(0.9 * random.standard_normal(n)) * np.minimum(np.arange(n) / 100, 1)
    loss[-7:] = 0.4
    assert [found.message for found in judge(make_run({"loss": loss}), RULE) if found.rank] == []


def test_what_has_just_begun_is_an_info(make_run, judge):
    """Seven rows of a hundred; in thirty all is lost."""
    for rows, severity in ((7, "info"), (30, "critical")):
        loss = np.where(np.arange(100) < 100 - rows, descent(100), 4.0)
        (found,) = judge(make_run({"loss": loss}), RULE)
        assert (found.severity, found.first_step) == (severity, 101 - rows)


@pytest.mark.parametrize("seed", range(5))
def test_a_fifth_is_enough_where_it_was_lost_at_once_and_stands(make_run, judge, seed):
    """It began where it broke. What heals, and what rises little by little, keeps the higher bar."""
    noise = 0.05 * np.random.default_rng(seed).standard_normal(400)
    rows = np.arange(400)
    down = 0.2 + 2 * np.exp(-rows / 30)
    broken = np.where(rows < 200, down, 0.7 + 3 * np.exp(-(rows - 200) / 10)) + noise
    (found,) = judge(make_run({"loss": broken}), RULE)
    assert (found.severity, found.state) == ("warning", "active")
    assert abs(found.first_step - 201) <= 10
    heals = np.where(rows < 200, down, 0.2 + 0.5 * np.exp(-(rows - 200) / 60)) + noise
    slowly = down + 0.5 * np.clip((rows - 150) / 150, 0, 1) + noise
    for healthy in (heals, slowly):
        assert judge(make_run({"loss": healthy}), RULE) == []


@pytest.mark.parametrize("seed", range(5))
def test_in_heavy_noise_levels_count(make_run, judge, seed):
    """A loss of single samples that doubles and stays is dated within its noise; one that wanders is none."""
    random = np.random.default_rng(seed)
    evals = [{"step": 400, "split": "valid", "loss": 1.0}]
    noisy = np.where(np.arange(400) < 200, 0.45, 1.1) + 0.35 * random.uniform(-1, 1, 400)
    (found,) = judge(make_run({"loss": noisy}, evals=evals), RULE)
    assert found.severity in ("warning", "critical")
    assert abs(found.first_step - 201) <= 20
    assert judge(make_run({"loss": 0.45 + 0.35 * random.uniform(-1, 1, 400)}, evals=evals), RULE) == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shift", [0.0, -3.0])
def test_a_rise_while_validation_gets_better_is_harder_work(make_run, judge, seed, shift):
    """A curriculum that the log does not tell of; the same rise with a validation that stays is one."""
    random = np.random.default_rng(seed)
    loss = np.concatenate([np.linspace(2.0, 0.5, 30), np.full(90, 3.0)]) + 0.02 * random.standard_normal(120)
    steps = np.arange(15, 121, 15)

    def measured(values):
        return [
            {"step": int(step), "split": "validation", "loss": value} for step, value in zip(steps, values, strict=True)
        ]

    falling = 3.5 * np.exp(-steps / 60) + shift
    assert judge(make_run({"loss": loss}, evals=measured(falling)), RULE) == []
    staying = 3.0 + shift + 0.02 * random.standard_normal(len(steps))
    assert judge(make_run({"loss": loss}, evals=measured(staying)), RULE)


def asked_for_more(seed):
    """A training loss that rises at once by 0.6, and the steps at which there are evaluations."""
    noise = 0.03 * np.random.default_rng(seed).standard_normal(200)
    rows = np.arange(200)
    return 0.5 + 2 * np.exp(-rows / 20) + 0.6 * (rows >= 120) + noise, np.arange(20, 201, 20)


@pytest.mark.parametrize(
    ("harm", "accuracy", "alarms"),
    [(0.0, None, False), (0.1, 0.9, False), (0.1, 0.7, True), (0.2, None, True), (0.3, 0.9, True)],
)
@pytest.mark.parametrize("seed", range(3))
def test_training_that_is_asked_for_more(harm, accuracy, alarms, seed, make_run, judge):
    """Augmentation, smoothed labels: validation has kept what it had learned, and so have the figures of merit."""
    loss, steps = asked_for_more(seed)
    costs = 0.6 + 2 * np.exp(-steps / 20) + harm * (steps > 120)
    merits = np.where(steps > 120, accuracy or 0.0, 0.9 - 0.5 * np.exp(-steps / 20))
    evals = [
        {"step": int(step), "loss": cost} | ({"metric/accuracy": merit} if accuracy else {})
        for step, cost, merit in zip(steps, costs, merits, strict=True)
    ]
    assert bool([one for one in judge(make_run({"loss": loss}, evals=evals), RULE) if one.rank]) == alarms


@pytest.mark.parametrize(("planned", "severity"), [(200, "info"), (16, "warning")])
def test_a_young_run_may_be_in_a_transient(planned, severity, make_run, judge):
    """What a tenth of the plan did is no divergence yet; in a log that short it is one."""
    loss = np.concatenate([np.linspace(60, 20, 10), np.linspace(40, 70, 5)])
    run = make_run({"loss": loss}, header={"total_steps": planned}, end=None)
    assert severity in [found.severity for found in judge(run, RULE)]


@pytest.mark.parametrize("seed", range(10))
def test_two_low_rows_are_no_fall(make_run, judge, seed):
    """Batches of two queries, one of which now and then has nothing to tell: losses of two heights."""
    loss = 2.48 + 0.04 * np.random.default_rng(seed).standard_normal(30)
    loss[[0, 4, 12, 13, 18, 25]] /= 2
    assert judge(make_run({"loss": loss}), RULE) == []


@pytest.mark.parametrize(("end", "alarms"), [(0.66, 0), (0.60, 1), (0.62, 1)])
def test_a_loss_whose_target_sharpens(end, alarms, make_run, judge):
    """Down and half of the way up again, in validation too, while a figure of merit is better than ever; not where it
    has only held what it was, nor where it has fallen since its best.
    """
    steps = np.arange(10, 121, 10)
    loss = np.interp(np.arange(1, 121), [1, 60, 66, 120], [4.5, 3.0, 3.6, 3.6])
    accuracy = np.interp(steps, [10, 50, 70, 120], [0.5, 0.6, 0.66 if end > 0.6 else 0.6, end])
    noise = 0.03 * np.random.default_rng(0).standard_normal(120)
    pairs = zip(steps.tolist(), accuracy.tolist(), strict=True)
    evals = [{"step": s, "loss": float(loss[s - 1]), "metric/knn_accuracy": right} for s, right in pairs]
    assert len(judge(make_run({"loss": loss + noise}, evals=evals), RULE)) == alarms


@pytest.mark.parametrize(("end", "top", "alarms"), [(0.6, 3.7, 0), (0.52, 3.7, 1), (0.6, 4.2, 1)])
def test_a_slow_rise_beside_a_figure_that_holds(end, top, alarms, make_run, judge):
    """Nearly half of the progress, some of it in validation too: a teacher that is less sure; not where the figure fell
    too, nor where most of the progress is gone.
    """
    steps = np.arange(10, 121, 10)
    loss = np.interp(np.arange(1, 121), [1, 40, 90, 120], [4.5, 3.0, top, top])
    accuracy = np.interp(steps, [10, 30, 40, 120], [0.5, 0.6, 0.6, end])
    held = loss - 0.7 * np.maximum(loss - 3.0, 0) * (np.arange(120) > 45)
    noise = 0.02 * np.random.default_rng(0).standard_normal(120)
    pairs = zip(steps.tolist(), accuracy.tolist(), strict=True)
    evals = [{"step": s, "loss": float(held[s - 1]), "metric/knn_accuracy": right} for s, right in pairs]
    assert len(judge(make_run({"loss": loss + noise}, evals=evals), RULE)) == alarms


@pytest.mark.parametrize("seed", range(5))
def test_a_gradual_rise_that_ends_below_the_start(make_run, judge, seed):
    """Nothing rose at once, and most of what was gained is gone; still falling again, it is left alone."""
    random = np.random.default_rng(seed)
    loss = np.concatenate([np.linspace(4.5, 3.0, 200), np.linspace(3.0, 4.3, 200)]) + 0.03 * random.standard_normal(400)
    (found,) = judge(make_run({"loss": loss}), RULE)
    assert found.severity == "warning"
    assert abs(found.first_step - 200) <= 20
    heals = np.concatenate([loss[:300], np.linspace(3.6, 3.2, 100)])
    assert judge(make_run({"loss": heals}), RULE) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_few_low_rows_of_a_wild_loss_are_no_best(make_run, judge, seed):
    """Losses of single pairs: half of them next to 0, half of them near 1."""
    random = np.random.default_rng(seed)
    for n in (30, 60, 120):
        loss = random.choice([0.05, 0.9], n) + 0.05 * random.standard_normal(n)
        assert [one for one in judge(make_run({"loss": loss}), RULE) if one.rank] == []


def rising(seed=0, n=240):
    """A loss that never falls, and doubles in the middle of the run."""
    level = 0.1 * (1.0 + 1.2 * np.clip((np.arange(n) - n / 4) / (n / 4), 0.0, 1.0))
    return level * (1 + 0.05 * np.random.default_rng(seed).standard_normal(n))


@pytest.mark.parametrize(("last", "alarms"), [(0.22, 0), (0.36, 1)])
@pytest.mark.parametrize("stop", [150, 240])
def test_a_helping_hand_that_is_withdrawn(last, alarms, stop, make_run, judge):
    """The true frames that are given are fewer and fewer: validation, which never had them, tells what it is."""
    values = np.linspace(0.32, last, 10)
    evals = [{"step": 24 * (n + 1), "split": "validation", "loss": float(values[n])} for n in range(stop // 24)]
    run = make_run({"loss": rising()[:stop]}, evals=evals, end="finished" if stop == 240 else None)
    assert len([found for found in judge(run, RULE) if found.severity != "info"]) == alarms


@pytest.mark.parametrize(("end", "alarms"), [(0.0, 0), (1.0, 1)])
def test_nothing_is_evaluated_and_a_schedule_moves(end, alarms, make_run, judge):
    """A teacher that lets go, as it is scheduled; one that stays explains nothing."""
    columns = {"loss": rising(), "schedule/teacher": np.linspace(1.0, end, 240)}
    header = {"components": {"words": {"unit": "nat", "role": "task"}}}
    assert len([found for found in judge(make_run(columns, header=header), RULE) if found.severity != "info"]) == alarms


@pytest.mark.parametrize("seed", range(3))
def test_an_explosion_is_dated_where_it_began(make_run, judge, seed):
    """On whatever scale it goes on, and whatever the loss may be of: at a thousand times its beginning."""
    random, rows = np.random.default_rng(seed), np.arange(120)
    loss = 0.5 * np.exp(np.maximum(rows - 25, 0) / 4.5) * (1 + 0.1 * random.standard_normal(120))
    (found,) = judge(make_run({"loss": loss}), RULE)
    assert found.severity == "critical"
    assert abs(found.first_step - 26) <= 12
    assert judge(make_run({"loss": 1e-9 * loss}), RULE) == []  # a distance to a copy begins at 0


def test_a_loss_that_leaves_all_bounds_in_a_few_rows(make_run, judge):
    """And is not finite from there on: too short for a curve."""
    loss = np.array([0.17, 0.14, 2e18, 5e22, 2e29, *[np.nan] * 100])
    (found,) = judge(make_run({"loss": np.where(np.isnan(loss), np.inf, loss)}), RULE)
    assert (found.severity, found.first_step) == ("critical", 3)
    calm = np.array([0.17, 0.14, 0.12, 0.13, 0.12, *[np.inf] * 100])
    assert judge(make_run({"loss": calm}), RULE) == []


def test_a_rise_that_goes_on_is_not_mending(make_run, judge):
    """Its highest point is the last one, in a log of twelve rows."""
    loss = [1.45, 0.56, 0.25, 0.27, 0.14, 0.31, 0.27, 0.26, 0.77, 0.88, 1.6]
    (found,) = judge(make_run({"loss": loss}), RULE)
    assert found.severity == "warning"


@pytest.mark.parametrize("seed", range(40))
def test_twenty_rows_of_a_skewed_loss_that_stands(seed, make_run, judge):
    """A rare class: the eighths of a few rows that begin calm look doubled by chance."""
    loss = np.array([0.63, 0.38, 0.48, 0.75, 0.81, 0.49, 0.57, 0.74, 0.61, 1.04, 0.38, 0.57, 0.58, 0.99, 0.72, 0.53])
    loss = np.append(loss, [1.8, 0.73, 1.63, 0.59]) * np.exp(0.05 * np.random.default_rng(seed).standard_normal(20))
    evals = [{"step": step, "loss": 0.77} for step in (10, 20)]
    assert [one for one in judge(make_run({"loss": loss}, evals=evals, end=None), RULE) if one.rank] == []


@pytest.mark.parametrize(("last", "alarms"), [(0.25, 0), (0.4, 1)])
def test_validation_that_began_after_the_lowest_loss(last, alarms, make_run, judge):
    """The first few batches were easy ones: whether anything was lost is told by whether validation is at its best."""
    noise = np.random.default_rng(0).standard_normal(80)
    loss = np.interp(np.arange(80), [0, 5, 30, 50, 79], [0.15, 0.08, 0.1, 0.17, 0.17]) + 0.003 * noise
    evals = [{"step": 12 * i, "loss": 0.32 + (last - 0.32) * i / 6} for i in range(1, 7)]
    assert len([one for one in judge(make_run({"loss": loss}, evals=evals), RULE) if one.rank]) == alarms


def thrown(peak, floor, rows=60):
    """A loss of about 2 that is thrown to a peak in its third row, and comes down again to a floor."""
    row = np.arange(rows)
    up = np.where((row >= 2) & (row < 10), peak * np.exp(-np.maximum(row - 3, 0) / 2), 0.0)
    return (floor + (2 - floor) * np.exp(-row / 15) + up) * np.exp(
        0.05 * np.random.default_rng(0).standard_normal(rows)
    )


@pytest.mark.parametrize(
    ("peak", "floor", "found"),
    [(2.5e4, 1.6, 1), (2.5e4, 0.5, 0), (100.0, 1.6, 0), (2.5e4, 20.0, 0), (200.0, 2.6, 1), (20.0, 2.6, 0)],
    ids=["to its beginning", "and learned after all", "a transient", "from nothing to a level", "above it", "a little"],
)
def test_what_was_thrown_beyond_measure_and_came_back_to_its_beginning(peak, floor, found, make_run, judge):
    """In sixty rows, whatever the run is evaluated by."""
    loss = thrown(peak, floor)
    found_here = [one for one in judge(make_run({"loss": loss}), RULE) if "came back" in one.message]
    assert [(one.severity, one.first_step <= 4) for one in found_here] == [("warning", True)] * found


def test_a_transient_of_a_long_run_is_not_told_and_a_game_is_thrown_higher(make_run, judge):
    """The first sixty of many thousand steps; a value loss that swings a thousandfold."""
    told = lambda columns, **more: [x for x in judge(make_run(columns, **more), RULE) if "came back" in x.message]  # noqa: E731
    assert told({"loss": thrown(2.5e4, 1.6)}, header={"total_steps": 5000}) == []
    for peak, count in ((2.5e4, 0), (2.5e7, 1)):
        loss = thrown(peak, 1.6)
        assert len(told({"loss": loss, "loss/value": loss})) == count


def test_a_few_such_rows_or_a_small_unit_throw_nothing(make_run, judge):
    """Two rows of sixty; and a loss of a ten-thousandth."""
    two = np.full(60, 2.0)
    two[[10, 11]] = 1e5
    assert judge(make_run({"loss": two}), RULE) == []
    assert judge(make_run({"loss": 1e-4 * thrown(2.5e4, 1.6)}), RULE) == []


@pytest.mark.parametrize(("grown", "told"), [(10.0, ["info"]), (2.0, [])])
def test_a_loss_that_creeps_up_with_its_gradient(make_run, judge, grown, told):
    """From 4 to 0.1 at once, and to 0.6 by and by, in a run of which nobody knows whether it is supervised."""
    row = np.arange(400)
    late = np.maximum(row - 60, 0) / 340
    noise = np.random.default_rng(0).standard_normal((2, 400))
    loss = (0.1 + 4 * np.exp(-row / 6) + 0.5 * late) * np.exp(0.1 * noise[0])
    norm = 0.5 * grown**late * np.exp(0.2 * noise[1])
    assert [found.severity for found in judge(make_run({"loss": loss, "grad_norm": norm}), "loss-divergence")] == told
    assert judge(make_run({"loss": loss}), "loss-divergence") == []
