"""data-break: the loss rose from one row to the next, and only validation tells that it was never made good."""

import numpy as np
import pytest

RULE = "data-break"
ROWS, FIRST = np.arange(200), 100
STEPS = np.arange(20, 201, 20)


def curve(seed, *, rise=1.0, time=15.0):
    """A loss that falls to 2, rises at row 100 and comes back: other labels are learned in their turn."""
    noise = 0.03 * np.random.default_rng(seed).standard_normal(200)
    again = np.where(ROWS < FIRST, 0.0, rise * np.exp(-(ROWS - FIRST) / time))
    return 2.0 + np.exp(-ROWS / 20) + again + noise


def validated(after):
    """Evaluations that come to 2.2 and stand at ``after`` times that from the break on."""
    return [{"step": int(step), "loss": 2.2 * (after if step > FIRST else 1)} for step in STEPS]


@pytest.mark.parametrize("seed", range(3))
def test_a_rise_that_was_made_good_in_training_only(seed, make_run, judge):
    """It is dated at its row, and says what validation had come to."""
    (found,) = judge(make_run({"loss": curve(seed)}, evals=validated(1.4)), RULE)
    assert (found.severity, found.subject, found.state) == ("warning", "run", "active")
    assert abs(found.first_step - (FIRST + 1)) <= 1
    assert found.evidence["validation_best"] == pytest.approx(2.2)
    assert "its labels first" in found.advice


@pytest.mark.parametrize("after", [1.05, 1.0, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_validation_that_lost_nothing_is_the_witness_against_it(seed, after, make_run, judge):
    assert judge(make_run({"loss": curve(seed)}, evals=validated(after)), RULE) == []


def test_without_validation_nothing_is_said(make_run, judge):
    assert judge(make_run({"loss": curve(0)}), RULE) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_rise_that_stands_needs_a_second_witness(seed, make_run, judge):
    """A term that joins the total lifts both losses; a figure of merit that is worse tells it from that."""
    stands = curve(seed, time=1e9)
    assert judge(make_run({"loss": stands}, evals=validated(1.4)), RULE) == []
    merits = [{**row, "metric/accuracy": 0.5 if row["step"] > FIRST else 0.9} for row in validated(1.4)]
    assert len(judge(make_run({"loss": stands}, evals=merits), RULE)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_raised_weight_is_no_break(seed, make_run, judge):
    """The raw component goes on as before; it weighs more."""
    raw = 2.0 + np.exp(-ROWS / 20) + 0.03 * np.random.default_rng(seed).standard_normal(200)
    weight = np.where(ROWS < FIRST, 1.0, 1.5)
    columns = {"loss": weight * raw, "loss/a": raw, "weight/a": weight}
    assert judge(make_run(columns, evals=validated(1.5)), RULE) == []


@pytest.mark.parametrize("stage", [np.arange(200) >= FIRST, np.zeros(200)])
def test_a_declared_stage_is_no_break(stage, make_run, judge):
    found = judge(make_run({"loss": curve(0), "stage": stage}, evals=validated(1.4)), RULE)
    assert bool(found) == (not stage.any())


@pytest.mark.parametrize("seed", range(6))
def test_validation_that_rises_slowly_is_another_matter(seed, make_run, judge):
    """Overfitting has no row from which on everything is worse."""
    loss = 0.5 + 2 * np.exp(-ROWS / 40) + 0.05 * np.random.default_rng(seed).standard_normal(200)
    rows = [{"step": int(step), "loss": 1.0 + abs(step - 100) / 100} for step in STEPS]
    assert judge(make_run({"loss": loss}, evals=rows), RULE) == []


@pytest.mark.parametrize(("after", "count"), [(3.0, 1), (0.9, 0)])
def test_training_that_is_back_in_forty_rows(after, count, make_run, judge):
    """It has learned the other labels; or it was a moment, for validation as well."""
    loss = 1.0 + 0.05 * np.random.default_rng(0).standard_normal(800)
    loss[400:440] *= 5
    evals = [{"step": at, "loss": 2.0 - at / 400 if at <= 400 else after} for at in range(80, 801, 80)]
    assert len(judge(make_run({"loss": loss}, evals=evals), RULE)) == count


@pytest.mark.parametrize(("name", "merit", "count"), [("pixel", 12.0, 1), ("pixel", 17.5, 0), ("actor", 12.0, 0)])
def test_in_a_game_what_no_player_owns_is_judged(name, merit, count, make_run, judge):
    """A generator's distance from the truth follows no opponent; validation and its figure must say the same."""
    loss = curve(0)
    evals = [{**row, "metric/psnr": merit if row["step"] > FIRST else 17.0} for row in validated(1.4)]
    columns = {"loss": loss, f"loss/{name}": loss - 0.7, "loss/adversarial": np.full(200, 0.7)}
    assert len(judge(make_run(columns, evals=evals), RULE)) == count


@pytest.mark.parametrize(("first", "count"), [(1.0, 1), (1.2, 1)])
def test_at_the_first_evaluation_the_weights_may_still_be_the_old_ones(first, count, make_run, judge):
    evals = [{**row, "loss": 2.2 * first if row["step"] == 120 else row["loss"]} for row in validated(1.4)]
    assert len(judge(make_run({"loss": curve(0)}, evals=evals), RULE)) == count


@pytest.mark.parametrize(("accuracy", "count"), [(0.5, 1), (0.95, 0)])
def test_a_figure_of_merit_may_still_be_at_its_best_then(accuracy, count, make_run, judge):
    """Some new rows have not undone yet what the old ones taught."""
    rows = [{**row, "metric/accuracy": 0.8 if row["step"] <= FIRST else accuracy} for row in validated(1.4)]
    rows = [row | ({"loss": 2.2, "metric/accuracy": 0.85} if row["step"] == FIRST + 20 else {}) for row in rows]
    assert len(judge(make_run({"loss": curve(0, time=1e9)}, evals=rows), RULE)) == count


def test_a_steep_descent_before_is_no_noise(make_run, judge):
    """Six evaluations that halve the distance each time, and a rise by an eighth."""
    down = {int(step): 2.0 + 2.4 * 0.6**i for i, step in enumerate(STEPS)}
    evals = [{"step": step, "loss": value if step <= FIRST else 2.6} for step, value in down.items()]
    assert len(judge(make_run({"loss": curve(0)}, evals=evals), RULE)) == 1


@pytest.mark.parametrize(("after", "merit", "count"), [(2.55, 0.5, 1), (2.55, None, 1), (2.55, 0.9, 0), (2.3, 0.5, 0)])
@pytest.mark.parametrize("seed", range(3))
def test_a_small_rise_that_undoes_what_validation_had_learned(seed, after, merit, count, make_run, judge):
    """A fifth of the level, five times its noise; most of what was gained is gone, by every witness there is."""
    loss = 2.0 + np.exp(-ROWS / 20) + 0.4 * (ROWS >= FIRST) + 0.09 * np.random.default_rng(seed).standard_normal(200)
    rows = [{"step": int(step), "loss": 2.2 + 0.4 * np.exp(-(step - 20) / 10)} for step in STEPS if step <= FIRST]
    rows += [{"step": int(step), "loss": after} for step in STEPS if step > FIRST]
    rows = [row if merit is None else row | {"metric/accuracy": merit if row["step"] > FIRST else 0.9} for row in rows]
    assert len(judge(make_run({"loss": loss, "loss/a": loss}, evals=rows), RULE)) == count


def test_one_row_that_towers_above_what_stands_is_a_broken_batch(make_run, judge):
    """Other labels cost alike from row to row; a batch thirty times as dear leaves weights that are lost."""
    loss = np.where(ROWS[:50] < 25, 0.3 + 2 * np.exp(-ROWS[:50] / 6), 2.3)
    loss += 0.03 * np.random.default_rng(0).standard_normal(50)
    evals = [{"step": step, "loss": 0.4 if step <= 25 else 2.3} for step in range(5, 51, 5)]
    evals = [{**row, "metric/accuracy": 0.9 if row["step"] <= 25 else 0.1} for row in evals]
    assert len(judge(make_run({"loss": loss}, evals=evals), RULE)) == 1
    loss[25] = 60.0
    assert judge(make_run({"loss": loss}, evals=evals), RULE) == []


@pytest.mark.parametrize(("after", "count"), [(1.3, 1), (1.03, 0)])
@pytest.mark.parametrize("seed", range(5))
def test_a_short_log_that_came_down_in_the_twenty_rows_before(seed, after, count, make_run, judge):
    """What it rises to is lower than what the first of them were."""
    row = np.arange(60)
    loss = 1.2 + 2 * np.exp(-row / 10) + np.where(row < 30, 0.0, 0.5 * np.exp(-(row - 30) / 15))
    loss += 0.02 * np.random.default_rng(seed).standard_normal(60)
    evals = [{"step": s, "loss": 1.2 + 2 * np.exp(-s / 10) if s <= 30 else 1.3 * after} for s in range(5, 61, 5)]
    columns = {"step": row + 1, "loss": loss, "loss/a": loss}
    assert len(judge(make_run(columns, evals=evals), RULE)) == count


@pytest.mark.parametrize(("times", "after", "count"), [(6.0, 2.0, 1), (6.0, 1.05, 0), (1.7, 2.0, 0), (1.0, 1.0, 0)])
@pytest.mark.parametrize("seed", range(5))
def test_nine_rows_of_a_stage_show_a_loss_that_doubles(seed, times, after, count, make_run, judge):
    row = np.arange(54)
    loss = np.where(row < 18, 2.0, 0.8) * np.exp(-row / 60) + 0.03 * np.random.default_rng(seed).standard_normal(54)
    loss[18], broke = 1.3, row >= 27
    loss[broke] *= 1 + (times - 1) * np.exp(-(row[broke] - 27) / 20)
    evals = [{"step": s, "loss": (1.0 - s / 100) * (after if s > 27 else 1)} for s in range(3, 55, 3)]
    columns = {"step": row + 1, "stage": row // 18, "loss": loss, "loss/a": loss}
    assert len(judge(make_run(columns, evals=evals), RULE)) == count
