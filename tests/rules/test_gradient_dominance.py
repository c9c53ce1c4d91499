"""gradient-dominance: one owns the gradient and another task falls back; a task that is solved is none."""

import numpy as np
import pytest

RULE = "gradient-dominance"
N = 300
ROW = np.arange(N)
ON = ROW >= 120


def columns(seed, back=1.0, share=0.985, names=("a", "b"), scale=1.0):
    """From row 120 on b owns the gradient, and a gives back what it had learned."""
    random = np.random.default_rng(seed)
    a = 0.5 + 2 * np.exp(-ROW / 30) + back * ON * (1 - np.exp(-np.maximum(ROW - 120, 0) / 50))
    b = scale * (2 + np.exp(-ROW / 100))
    owned = np.where(ON, share, 0.6) + 0.003 * random.standard_normal(N)
    first, second = names
    noise = [np.exp(0.08 * random.standard_normal(N)) for _ in names]
    return {
        f"loss/{first}": a * noise[0],
        f"loss/{second}": b * noise[1],
        "loss": a * noise[0] + b * noise[1],
        **{f"weight/{name}": np.ones(N) for name in names},
        f"grad_share/{first}": 1 - owned,
        f"grad_share/{second}": owned,
    }


@pytest.mark.parametrize("seed", range(8))
def test_it_is_named_from_where_it_took_over(seed, make_run, judge):
    """With what the other lost."""
    (finding,) = judge(make_run(columns(seed)), RULE)
    assert (finding.severity, finding.subject, finding.state) == ("warning", "component:b", "active")
    assert abs(finding.first_step - 121) <= 5
    assert finding.evidence["now"] > 2 * finding.evidence["best"]


def test_it_is_over_when_the_gradient_is_shared_again(make_run, judge):
    """The stretch is told as it was."""
    table = columns(0)
    again = np.where(ROW >= 230, 0.5, table["grad_share/b"])
    (finding,) = judge(make_run(table | {"grad_share/a": 1 - again, "grad_share/b": again}), RULE)
    assert (finding.severity, finding.state, abs(finding.last_step - 230) <= 5) == ("warning", "over", True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "case",
    [
        {"back": 0.0},
        {"back": 0.04},
        {"share": 0.9},
        {"names": ("kl", "b")},
        {"names": ("adv", "b")},
        {"scale": 100.0},
    ],
    ids=str,
)
def test_no_alarm_on(case, seed, make_run, judge):
    """Solved, traded for a little, led, by role, or said already."""
    assert [finding for finding in judge(make_run(columns(seed, **case)), RULE) if finding.rank] == []


def test_a_warm_restart_begins_anew(make_run, judge):
    """The losses rise with the rate."""
    rate = 1e-3 * (1 - (ROW % 200) / 200)
    table = columns(1, back=0.0) | {"lr/main": rate}
    table["loss/a"] = table["loss/a"] + 0.4 * (ROW >= 200)
    assert judge(make_run(table), RULE) == []


def test_others_that_never_moved_are_an_info(make_run, judge):
    """They may be at their floor."""
    table = columns(0, back=0.0) | {"loss/a": np.full(N, 0.7), "grad_share/b": np.full(N, 0.98)}
    assert [finding.severity for finding in judge(make_run(table), RULE)] == ["info"]


@pytest.mark.parametrize(
    ("share", "gain", "steps", "count"), [(0.997, 0, N, 1), (0.97, 0, N, 0), (0.997, 0.3, N, 0), (0.997, 0, 900, 0)]
)
def test_declared_tasks_that_starve_beside_one_that_learns(share, gain, steps, count, make_run, judge):
    """Beside a share of nearly all, for half of the plan; one that learns beside it does not starve."""
    columns = {"loss/a": 1.1 - gain * ROW / N, "loss/b": 3 * np.exp(-ROW / 200), "grad_share/b": np.full(N, share)}
    columns |= {"loss": columns["loss/a"] + columns["loss/b"], "grad_share/a": np.full(N, 1 - share)}
    header = {"components": {"a": {"role": "task"}, "b": {"role": "task"}}, "total_steps": steps}
    assert len([one for one in judge(make_run(columns, header=header), RULE) if one.rank]) == count


@pytest.mark.parametrize(("role", "count"), [("regulariser", 1), ("auxiliary", 0)])
def test_a_declared_regulariser_that_leads_is_named(role, count, make_run, judge):
    """Nothing is lost, and still it should not lead."""
    n = 300
    share = np.where(np.arange(n) < 100, 0.95, 0.6)
    columns = {"loss/task": 3 - np.arange(n) / 300, "loss/commitment": np.full(n, 2.0)}
    columns |= {"grad_share/commitment": share, "grad_share/task": 1 - share, "loss": columns["loss/task"] + 2}
    run = make_run(columns, header={"components": {"commitment": {"role": role}, "task": {"role": "task"}}})
    assert len([one for one in judge(run, "gradient-dominance") if one.rank]) == count


@pytest.mark.parametrize(("share", "count"), [(0.68, 1), (0.5, 0)])
def test_a_regulariser_that_owns_two_thirds_all_along(share, count, make_run, judge):
    """In balance both have a half."""
    columns = {"loss/task": 3 - ROW / (2 * N), "loss/commitment": np.full(N, 2.0)}
    columns |= {"grad_share/commitment": np.full(N, share), "grad_share/task": np.full(N, 1 - share)}
    header = {"components": {"commitment": {"role": "regulariser"}, "task": {"role": "task"}}}
    found = judge(make_run(columns | {"loss": columns["loss/task"] + 2}, header=header), "gradient-dominance")
    assert len([one for one in found if one.rank]) == count


@pytest.mark.parametrize(("level", "count"), [(2.0, 1), (0.0, 0)])
def test_a_regulariser_around_zero_owns_but_noise(level, count, make_run, judge):
    """An unbiased estimate of a divergence that is none: the gradient of its noise averages out."""
    noise = 0.02 * np.random.default_rng(0).standard_normal(N)
    columns = {"loss/counts": 3 - ROW / (2 * N), "loss/mmd": level + noise}
    columns |= {"grad_share/mmd": np.full(N, 0.7), "grad_share/counts": np.full(N, 0.3)}
    header = {"components": {"mmd": {"role": "regulariser"}, "counts": {"role": "task"}}}
    found = judge(make_run(columns | {"loss": columns["loss/counts"] + 2}, header=header), RULE)
    assert len([one for one in found if one.rank]) == count


@pytest.mark.parametrize(("share", "norm", "count"), [(0.97, 40.0, 1), (0.97, 0.05, 0), (0.8, 40.0, 0)])
def test_a_regulariser_that_drowns_a_surrogate(share, norm, count, make_run, judge):
    """The surrogate's value tells nothing; what is clipped does. A policy that is solved leaves no large gradient."""
    surrogate = 0.01 * np.random.default_rng(0).standard_normal(N)
    columns = {"loss/policy": surrogate, "loss/kl": np.full(N, 0.02), "weight/policy": np.ones(N)}
    columns |= {"weight/kl": np.full(N, 100.0), "loss": surrogate + 2.0, "grad_norm": np.full(N, norm)}
    columns |= {"grad_share/kl": np.full(N, share), "grad_share/policy": np.full(N, 1 - share)}
    header = {"components": {"policy": {"role": "task"}, "kl": {"role": "regulariser"}}, "max_grad_norm": 2.0}
    assert len([one for one in judge(make_run(columns, header=header), RULE) if one.rank]) == count
