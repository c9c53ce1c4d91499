"""curriculum-shock: a stage that undoes what was learned before it."""

import numpy as np
import pytest

STEPS = np.arange(1, 801)


def head(weights=({"a": 1.0}, {"a": 1.0}), **more):
    stages = [{"start": 400 * i, "name": f"s{i}", "weights": weights[i]} for i in range(2)]
    return {"total_steps": 800, "curriculum": {"name": "P", "stages": stages}, **more}


def falling(seed, jump, decay, noise=0.1, heavy=False):
    """A loss that falls from 3 to 0.5, and jumps at step 400."""
    random = np.random.default_rng(seed)
    spread = random.standard_t(2.5, 800) if heavy else random.standard_normal(800)
    since = np.maximum(STEPS - 400, 0)
    return 0.5 + 2.5 * np.exp(-STEPS / 60) + (STEPS >= 400) * jump * np.exp(-since * decay) + noise * spread


@pytest.mark.parametrize("seed", range(5))
def test_a_jump_that_stays(make_run, judge, seed):
    """Told from half of the stage on, with the step of its boundary."""
    run = make_run({"loss/a": falling(seed, 2.2, 0.0005)}, header=head())
    (found,) = judge(run, "curriculum-shock")
    assert (found.subject, found.severity, found.first_step, found.state) == ("component:a", "warning", 400, "active")
    early = make_run({"loss/a": falling(seed, 2.2, 0.0005)[:590]}, header=head(), end=None)
    assert judge(early, "curriculum-shock") == []


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_harder_stages_are_healthy(make_run, judge, seed, heavy):
    """A jump that is made good, a lasting one that costs less than was learned, none at all; noise with heavy tails."""
    for jump, decay in ((2.5, 0.02), (1.0, 0.0), (0.0, 0.0)):
        columns = {"loss/a": falling(seed, jump, decay, heavy=heavy)}
        assert judge(make_run(columns, header=head()), "curriculum-shock") == []


@pytest.mark.parametrize("seed", range(20))
def test_rewards_that_wander(make_run, judge, seed):
    """Nothing was learned that could be lost."""
    random = np.random.default_rng(seed)
    loss = np.cumsum(random.standard_normal(800)) * 0.05 + random.standard_normal(800)
    assert judge(make_run({"loss": loss}, header=head()), "curriculum-shock") == []


def test_what_means_something_else_is_not_compared(make_run, judge):
    """A total under other weights, a component that enters, an auxiliary one."""
    loss = falling(0, 2.2, 0.0)
    changed = head(({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 1.0}))
    assert judge(make_run({"loss": loss}, header=changed), "curriculum-shock") == []
    assert judge(make_run({"loss/b": loss}, header=changed), "curriculum-shock") == []
    aside = head(components={"a": {"role": "auxiliary"}})
    assert judge(make_run({"loss/a": loss}, header=aside), "curriculum-shock") == []


def test_a_norm_ten_times_as_large(make_run, judge):
    """At the boundary, and still at half of the stage."""
    norm = np.where(STEPS < 400, 1.0, 30.0) * np.exp(0.3 * np.random.default_rng(0).standard_normal(800))
    (found,) = judge(make_run({"grad_norm": norm, "loss": np.ones(800)}, header=head()), "curriculum-shock")
    assert (found.subject, found.first_step) == ("run", 400)


def test_it_can_be_over(make_run, judge):
    """Made good in a third stage."""
    loss = np.concatenate([falling(0, 2.2, 0.0005), 0.5 + 0.1 * np.random.default_rng(1).standard_normal(800)])
    plan = head()
    plan["total_steps"] = 1600
    plan["curriculum"]["stages"].append({"start": 800, "weights": {"a": 1.0}})
    (found,) = judge(make_run({"loss/a": loss}, header=plan), "curriculum-shock")
    assert (found.first_step, found.state) == (400, "over")


def test_a_regulariser_without_a_role_may_jump(make_run, judge):
    """It is known by its name, declared or not."""
    weights = ({"kl": 1.0}, {"kl": 1.0})
    run = make_run({"loss/kl": falling(0, 2.2, 0.0005)}, header=head(weights, components={"kl": {"unit": "nat"}}))
    assert judge(run, "curriculum-shock") == []


@pytest.mark.parametrize(("jump", "alarms"), [(0.8, 1), (0.3, 0)])
def test_a_start_that_is_undone_within_the_noise_of_a_row(jump, alarms, make_run, judge):
    """The medians tell what no row does: all that was learned is lost, and as much again; not where less is."""
    step = np.arange(1, 121)
    noise = 0.09 * np.random.default_rng(0).standard_normal(120)
    loss = 0.3 + 0.6 * np.exp(-step / 12) + (step > 60) * jump + noise
    plan = head()
    plan["total_steps"], plan["curriculum"]["stages"][1]["start"] = 120, 60
    found = judge(make_run({"loss/a": loss}, header=plan), "curriculum-shock")
    assert [(one.severity, one.first_step) for one in found] == [("warning", 60)] * alarms


@pytest.mark.parametrize(
    ("first", "after", "severity"),
    [(2.0, 0.95, "info"), (2.0, 2.0, "warning"), (1.1, 0.95, "info"), (1.0, 0.95, "warning")],
)
def test_a_harder_stage_that_costs_validation_nothing(make_run, judge, first, after, severity):
    """Its loss is of other data; what was learned is still there. Unless validation never showed it."""
    values = [*np.linspace(first, 1.0, 8), *[after] * 8]
    evals = [{"step": 50 * i, "split": "valid", "loss": value} for i, value in enumerate(values, 1)]
    run = make_run({"loss/a": falling(0, 2.2, 0.0005)}, header=head(), evals=evals)
    assert [found.severity for found in judge(run, "curriculum-shock")] == [severity]


@pytest.mark.parametrize(("before", "late", "severity"), [(0.6, 0.7, "info"), (0.6, 0.59, "warning")])
@pytest.mark.parametrize("moving", [True, False])
def test_a_figure_of_merit_that_is_better_than_ever(before, late, severity, moving, make_run, judge):
    """What validation asks for became harder, too; but not if the figure had told nothing before the stage."""
    accuracy = [*np.linspace(0.4 if moving else before, before, 8), *[late] * 8]
    losses = [*np.linspace(2.0, 1.0, 8), *[2.0] * 8]
    pairs = zip(losses, accuracy, strict=True)
    evals = [{"step": 50 * i, "loss": v, "metric/accuracy": right} for i, (v, right) in enumerate(pairs, 1)]
    run = make_run({"loss/a": falling(0, 2.2, 0.0005)}, header=head(), evals=evals)
    assert [found.severity for found in judge(run, "curriculum-shock")] == [severity if moving else "warning"]


@pytest.mark.parametrize(
    ("aside", "grows", "severity"), [(0.0, 0.0, "info"), (0.8, 0.0, "warning"), (0.0, 1.5, "warning")]
)
def test_validation_on_the_data_of_its_stage(aside, grows, severity, make_run, judge):
    """As high as training on both sides, and no worse than the weights of before were: harder data, nothing lost. Not
    if validation is of other data, nor if the weights got worse at the new ones.
    """
    since = np.clip((STEPS - 400) / 100, 0, 1) * grows
    loss = 0.5 + 2.5 * np.exp(-STEPS / 60) + (STEPS > 400) * (2.2 - grows + since)
    noise = 0.02 * np.random.default_rng(0).standard_normal(800)
    evals = [{"step": int(s), "loss": float(loss[s - 1]) + aside} for s in range(50, 801, 50)]
    run = make_run({"loss": loss + noise, "loss/a": loss + noise}, header=head(), evals=evals)
    assert [found.severity for found in judge(run, "curriculum-shock")] == [severity]


@pytest.mark.parametrize(
    ("held", "count"),
    [
        ((0.50, 0.50), 1),
        ((0.46, 0.46), 0),  # a third of what was learned
        ((0.50, 0.44), 0),  # it comes back
        ((0.56, 0.50), 0),  # it is on its way
        ((0.70, 0.75), 0),  # of the stage's own data
    ],
)
def test_validation_that_is_set_back_for_good(held, count, make_run, judge):
    """What training had come down from is not to be seen in so short a stage."""
    step = np.arange(1, 121)
    loss = np.where(step > 60, 0.75, 0.38 + 0.3 * np.exp(-step / 4)) + 0.01 * np.cos(step**2)
    plan = head()
    plan["total_steps"], plan["curriculum"]["stages"][1]["start"] = 120, 60
    values = [*np.linspace(0.5, 0.43, 6), *np.linspace(*held, 6)]
    evals = [{"step": 10 * i, "loss": value} for i, value in enumerate(values, 1)]
    found = judge(make_run({"loss": loss}, header=plan, evals=evals), "curriculum-shock")
    assert [(one.severity, one.first_step) for one in found] == count * [("warning", 60)]


def staged(begins, steps, loss, every):
    """A log of each so many-th step of a run of several stages."""
    stages = [{"start": start, "name": f"s{start}", "weights": {"a": 1.0}} for start in begins]
    step = np.arange(every, steps + 1, every)
    return {"step": step, "loss/a": loss(step)}, {"total_steps": steps, "curriculum": {"name": "P", "stages": stages}}


@pytest.mark.parametrize(("low", "alarms"), [(2.0, 1), (0.3, 0)])
@pytest.mark.parametrize("seed", range(10))
def test_three_rows_a_quarter_that_all_stand_high(seed, low, alarms, make_run, judge):
    """Twice what was learned is lost, in every row of the third stage; not where one row of a quarter comes near."""
    noise = 0.03 * np.random.default_rng(seed).standard_normal(181)

    def lost(step):
        high = np.where(step % 12 == 0, low, 2.0)
        return np.where(step > 120, high, 0.1 + 0.8 * np.exp(-step / 60)) + noise[step]

    columns, plan = staged((0, 60, 120), 180, lost, 4)
    found = judge(make_run(columns, header=plan), "curriculum-shock")
    assert [(one.severity, one.first_step) for one in found] == [("warning", 120)] * alarms


@pytest.mark.parametrize("seed", range(10))
def test_a_harder_stage_of_a_short_log_with_validation_of_its_own(seed, make_run, judge):
    """The last twenty rows before are the way there: validation stands where training came to, on both sides."""
    noise = 0.01 * np.random.default_rng(seed).standard_normal(121)

    def loss(step):
        return 0.2 + np.exp(-step / 40) + (step > 60) * (0.6 + np.exp(-1.5) - np.exp(-step / 40))

    columns, plan = staged((0, 60), 120, lambda step: loss(step) + noise[step], 2)
    evals = [{"step": int(s), "loss": float(loss(s))} for s in range(10, 121, 10)]
    found = judge(make_run({**columns, "loss": columns["loss/a"]}, header=plan, evals=evals), "curriculum-shock")
    assert [one.severity for one in found] == ["info"]
