"""evaluation-unchanged: the same loss to the last digit, evaluation after evaluation."""

import numpy as np
import pytest

RULE = "evaluation-unchanged"
ROWS = 200


def evals(values, every=20, **more):
    return [{"step": every * (i + 1), "split": "val", "loss": float(value), **more} for i, value in enumerate(values)]


def training(falls=0.0, seed=0):
    return 2 - falls * np.linspace(0, 1, ROWS) + 0.05 * np.random.default_rng(seed).standard_normal(ROWS)


def test_equal_from_the_first_one_while_training_stands_says_that_no_weight_moves(make_run, judge):
    (found,) = judge(make_run({"loss": training()}, evals=evals([2.30519] * 9)), RULE)
    assert (found.severity, found.subject, found.first_step) == ("critical", "run", 1)
    assert "no weight moves" in found.message
    (found,) = judge(make_run({"loss": training()}, evals=evals([2.30519] * 5)), RULE)
    assert found.severity == "warning"


def test_while_training_falls_it_is_another_model_that_is_evaluated(make_run, judge):
    (found,) = judge(make_run({"loss": training(falls=1.0)}, evals=evals([2.30519] * 9)), RULE)
    assert "what is evaluated is not what is trained" in found.message


def test_what_begins_later_may_have_converged(make_run, judge):
    """It is an alarm while the training loss falls, at a rate that is logged; and dated where the last change was."""
    values, rate = [2.30519, 2.10711, 1.98123, *[1.91237] * 6], np.full(ROWS, 1e-3)
    (found,) = judge(make_run({"loss": training(falls=1.0), "lr/0": rate}, evals=evals(values)), RULE)
    assert (found.severity, found.first_step) == ("warning", 80)
    for columns in ({"loss": training(falls=1.0)}, {"loss": training(), "lr/0": rate}):
        (found,) = judge(make_run(columns, evals=evals(values)), RULE)
        assert found.severity == "info"


def test_three_figures_of_four_digits_are_as_good_as_one_of_five(make_run, judge):
    """But three metrics of a converged model may stay where they came to."""
    four = [{**one, "loss": 2.305, "loss/a": 1.237, "metric/f1": 0.1234} for one in evals([0.0] * 9)]
    assert len(judge(make_run({"loss": training()}, evals=four), RULE)) == 1
    assert judge(make_run({"loss": training()}, evals=[{**four[0], "loss": 2.307}, *four[1:]]), RULE) == []


@pytest.mark.parametrize(
    "values",
    [
        [2.30519] * 4,  # three that are equal to the one before
        [2.3] * 9,  # two digits
        [0.0] * 9,
        [2.296875] * 9,  # all that half precision holds
        [*np.linspace(2.1, 1.2, 30) + 1e-5, *[1.19999] * 6],  # a few at the end of many
        np.repeat([2.30519, 2.10711, 1.98123, 1.91237], 8),  # the last one is repeated until there is another
        [2.30519 + 1e-5 * i for i in range(9)],
    ],
)
def test_few_digits_and_few_evaluations_are_left_alone(make_run, judge, values):
    assert judge(make_run({"loss": training()}, evals=evals(values, every=ROWS // len(values))), RULE) == []


def test_a_log_that_repeats_the_last_evaluation_in_every_row_is_left_alone(make_run, judge):
    for falls in (0.0, 1.0):
        run = make_run({"loss": training(falls=falls)}, evals=evals([2.30519] * ROWS, every=1))
        assert judge(run, RULE) == []


def test_so_are_one_state_of_the_weights_a_baseline_and_the_end_of_a_schedule(make_run, judge):
    same = evals([2.30519] * 9)
    assert judge(make_run({"loss": training()}, evals=[{**one, "weights_step": 20} for one in same]), RULE) == []
    other = [{**one, "split": "test", "loss": 2.1 / (1 + i)} for i, one in enumerate(same)]
    both = [record for pair in zip(same, other, strict=True) for record in pair]
    assert judge(make_run({"loss": training()}, evals=both), RULE) == []
    rate = np.where(np.arange(ROWS) < 20, 1e-3, 1e-9)
    assert judge(make_run({"loss": training(), "lr/0": rate}, evals=same), RULE) == []


def test_a_metric_that_changes_shows_that_the_weights_move(make_run, judge):
    moving = [{**one, "metric/error": 0.3 / (1 + i)} for i, one in enumerate(evals([2.30519] * 9))]
    assert judge(make_run({"loss": training()}, evals=moving), RULE) == []


def test_metrics_alone_are_counted_and_may_stay(make_run, judge):
    metrics = [{"step": one["step"], "split": "val", "metric/mrr": 0.01103} for one in evals([0.0] * 10)]
    assert judge(make_run({"loss": training()}, evals=metrics), RULE) == []


@pytest.mark.parametrize("standing", [False, True])
def test_metrics_in_rows_of_their_own(make_run, judge, standing):
    """Beside a loss that falls they are no evaluations that are equal to each other."""
    losses = np.full(12, 2.30519) if standing else 2.30519 * 0.8 ** np.arange(12)
    rows = [[{"step": 15 * i + 1, "metric/acc": 0.5127}, {"step": 15 * i + 2, "loss": v}] for i, v in enumerate(losses)]
    run = make_run({"loss": training()}, evals=[{**one, "split": "val"} for pair in rows for one in pair])
    assert len(judge(run, RULE)) == standing


def test_a_loss_that_is_none_is_equal_to_nothing(make_run, judge):
    """Metrics of NaN weights stand as well: what became NaN is the root. Of any split, and one absent loss is none."""
    standing = evals([2.30519] * 9, **{"metric/auc": 0.53127})
    for broken in ([{**one, "loss": float("nan")} for one in standing], [*standing, *evals([float("inf")] * 10)[9:]]):
        assert judge(make_run({"loss": training()}, evals=broken), RULE) == []
        other = [{**one, "split": "test"} for one in standing]
        assert judge(make_run({"loss": training()}, evals=[*broken, *other]), RULE) == []
    apart = [{name: value for name, value in one.items() if name != "loss"} for one in standing]
    assert len(judge(make_run({"loss": training()}, evals=[*standing[:3], *apart[3:5], *standing[5:]]), RULE)) == 1
