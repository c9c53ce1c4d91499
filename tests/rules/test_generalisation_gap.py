"""generalisation-gap: validation far above training, where both are the same quantity."""

import numpy as np
import pytest

RULE = "generalisation-gap"
STEPS = np.arange(1, 2001)
TRAIN = 0.05 + 2.2 * np.exp(-STEPS / 400)
NATS = {"components": {"a": {"unit": "nat"}}}


def evals(values, **more):
    return [
        {"step": 100 * (i + 1), "split": "valid", "loss": float(v)} | {k: float(w[i]) for k, w in more.items()}
        for i, v in enumerate(values)
    ]


def apart(end, seed=0):
    """20 evaluations that follow training at first and stop at ``end`` nat."""
    noise = 0.01 * np.random.default_rng(seed).standard_normal(20)
    return np.maximum(TRAIN[99::100] + 0.1, end) + noise


def test_more_than_a_nat_and_no_new_best(make_run, judge):
    """A warning where the unit is known, from the evaluation on that passed the bar of an info."""
    values = apart(1.4) + 0.01 * np.arange(20)
    (found,) = judge(make_run({"loss": TRAIN}, header=NATS, evals=evals(values)), RULE)
    assert (found.severity, found.subject, found.last_step) == ("warning", "split:valid", 2000)
    assert 300 <= found.first_step <= 700
    assert found.evidence["gap"] == pytest.approx(1.5, abs=0.1)


def test_a_component_has_its_own(make_run, judge):
    """A total of several is another quantity than an evaluated one; a component is the same."""
    columns = {"loss": 5 * TRAIN, "loss/a": TRAIN, "loss/b": TRAIN}
    assert judge(make_run(columns, header=NATS, evals=evals(apart(1.4) + 0.01 * np.arange(20))), RULE) == []
    parts = [{"loss/a" if k == "loss" else k: v for k, v in record.items()} for record in evals(apart(1.4))]
    (found,) = judge(make_run(columns, header=NATS, evals=parts), RULE)
    assert found.subject == "component:a"


def seen(records, times):
    """Each training sample so often, as the recorder's hashes tell from the second evaluation on."""
    counts = [{"overlap/drawn": 100.0 * i * times / 20, "overlap/distinct": 100.0} for i in range(1, len(records) + 1)]
    return [record | told for record, told in zip(records, counts, strict=True)]


def test_few_samples_known_by_heart(make_run, judge):
    """Half a nat is enough where all that is trained on came again and again, and nothing becomes better."""
    stands = evals(apart(0.9), **{"metric/f1": 0.4 - 0.2 * np.exp(-np.arange(20.0))})
    rises = evals(apart(0.9), **{"metric/f1": np.linspace(0.1, 0.5, 20)})
    (found,) = judge(make_run({"loss": TRAIN}, header=NATS, evals=seen(stands, 30)), RULE)
    assert (found.severity, found.evidence["times"]) == ("warning", 30)
    assert "30 times and more" in found.message
    for records in (seen(stands, 4), stands, seen(rises, 30), seen(evals(apart(0.2)), 30)):
        assert "warning" not in [
            one.severity for one in judge(make_run({"loss": TRAIN}, header=NATS, evals=records), RULE)
        ]


@pytest.mark.parametrize(("ramp", "severities"), [(1.0, ["warning"]), (0.5, [])])
def test_a_total_of_which_a_part_is_no_task(make_run, judge, ramp, severities):
    """By heart is by heart, whatever else is in the total; not where its weights changed, so that it means another."""
    header = {"components": {"a": {"role": "task"}, "b": {"role": "auxiliary"}}}
    table = {"loss": TRAIN, "loss/a": 0.9 * TRAIN, "loss/b": 0.2 * TRAIN, "weight/a": np.ones(len(STEPS))}
    table["weight/b"] = 0.5 * np.where(STEPS < 1000, 1.0, ramp)
    stands = evals(apart(0.9), **{"metric/f1": 0.4 - 0.2 * np.exp(-np.arange(20.0))})
    assert [one.severity for one in judge(make_run(table, header=header, evals=seen(stands, 30)), RULE)] == severities


@pytest.mark.parametrize("seed", range(10))
def test_what_is_no_alarm(make_run, judge, seed):
    """A figure that improves, half a nat, another unit, a validation that still falls: infos at most."""
    accuracy = {"metric/acc": 1 - 0.5 * np.exp(-np.arange(20) / 9)}
    rises = apart(1.4, seed) + 0.01 * np.arange(20)
    for records, header in (
        (evals(rises, **accuracy), NATS),
        (evals(apart(0.7, seed)), NATS),
        (evals(rises), {}),
        (evals(np.maximum(TRAIN[99::100] + 0.1, 1.4) - 0.01 * np.arange(20)), NATS),
    ):
        assert {f.severity for f in judge(make_run({"loss": TRAIN}, header=header, evals=records), RULE)} <= {"info"}


def test_what_is_none(make_run, judge):
    """No gap; a loss that training measures in other units; a training split."""
    assert judge(make_run({"loss": TRAIN}, header=NATS, evals=evals(TRAIN[99::100] + 0.2)), RULE) == []
    assert judge(make_run({"loss": TRAIN / 50}, header=NATS, evals=evals(apart(1.4))), RULE) == []
    train = [{**record, "split": "train"} for record in evals(apart(1.4))]
    assert judge(make_run({"loss": TRAIN}, header=NATS, evals=train), RULE) == []


@pytest.mark.parametrize(("right", "severity"), [(0.08, "warning"), (0.7, "info")])
def test_what_is_learnt_by_heart_is_named_though_validation_improves(right, severity, make_run, judge):
    """A training loss near 0 says that nearly every answer is right; of validation's, few are."""
    k = np.arange(20)
    values, accuracy = 1.1 + 0.3 * np.exp(-k / 3) - 1e-4 * k, {"metric/accuracy": right * (1 + k / 100)}
    train = 0.003 + 1.9 * np.exp(-STEPS / 100)
    (found,) = judge(make_run({"loss": train}, evals=evals(values, **accuracy)), RULE)
    assert found.severity == severity


@pytest.mark.parametrize(("end", "severities"), [(1.3, ["warning"]), (0.3, ["info"])])
def test_by_heart_in_another_unit(make_run, judge, end, severities):
    """Training is left with a fiftieth, validation with most of what there was; or with a little, as is usual."""
    values = np.maximum(TRAIN[99::100] + 0.1, end) + 0.003 * np.random.default_rng(0).standard_normal(20)
    train = TRAIN - 0.03
    for header, columns in (({"components": {"a": {"unit": "m"}}}, {"loss": train}), (
        {"components": {name: {"unit": "", "role": "task"} for name in "ab"}},
        {"loss": train, "loss/a": train / 2, "loss/b": train / 2},
    )):  # fmt: skip
        found = judge(make_run(columns, header=header, evals=evals(values)), RULE)
        assert [one.severity for one in found] == severities


@pytest.mark.parametrize(("exact", "severity"), [(0.2, "warning"), (0.6, "info"), (None, "info")])
def test_answers_that_are_known_by_heart(exact, severity, make_run, judge):
    """Training makes few mistakes and validation's answers are wrong, though its loss still creeps down."""
    grows = np.linspace(0, 0.2, 20)  # to the end
    best = grows if exact is None else exact * np.minimum(np.arange(20) / 10, 1)
    loss = 0.03 + 2.2 * np.exp(-STEPS / 100)
    values = np.maximum(2.2 * np.exp(-STEPS[99::100] / 100), 1.4) - 0.01 * np.arange(20)
    records = evals(values, **{"metric/exact_match": best})
    (found,) = judge(make_run({"loss": loss}, header=NATS, evals=records), RULE)
    assert found.severity == severity


@pytest.mark.parametrize(
    ("begun", "end", "curriculum", "severities"),
    [
        (0.56, 0.6, None, ["warning"]),  # the same few questions again and again
        (0.56, 0.98, None, []),  # greedy answers stay ahead of drawn ones
        (0.56, 0.75, None, []),  # it carries over, in part
        (0.3, 0.32, None, []),  # another task from the beginning
        (0.56, 0.6, {"name": "c", "stages": [{"start": 0, "name": "easy"}]}, []),
    ],
)
def test_a_reward_that_is_not_earned_in_validation(begun, end, curriculum, severities, make_run, judge):
    """The training reward rises from 0.4 to 0.9; a policy's loss says nothing."""
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(STEPS))
    reward = 0.4 + 0.5 * (1 - np.exp(-STEPS / 400)) + noise
    surrogate = 0.01 * np.sin(STEPS)
    earned = begun + (end - begun) * np.sin(np.linspace(0, 2.5, 20))
    evaluated = [
        {"kind": "eval", "step": 100 * i, "split": "validation", "metric/reward": value}
        for i, value in enumerate(earned.tolist(), 1)
    ]
    header = {"curriculum": curriculum} if curriculum else {}
    columns = {"loss": surrogate, "loss/policy": surrogate, "reward": reward}
    found = judge(make_run(columns, header=header, evals=evaluated), RULE)
    assert [one.severity for one in found] == severities
