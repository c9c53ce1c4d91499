"""gradient-conflict: two tasks pull against each other, and one loses; at a minimum all gradients cancel."""

import numpy as np
import pytest

RULE = "gradient-conflict"
N = 300
ROW = np.arange(N)
ON = ROW >= 120


def columns(seed, rise=1.5, cosine=-0.4, names=("a", "b"), size=0.4):
    """From row 120 on the gradients oppose each other, and a rises."""
    random = np.random.default_rng(seed)
    a = 0.5 + 2 * np.exp(-ROW / 30) + rise * np.maximum(ROW - 120, 0) / N
    b = 1 + np.exp(-ROW / 100)
    noise = [np.exp(0.08 * random.standard_normal(N)) for _ in range(4)]
    first, second = names
    return {
        f"loss/{first}": a * noise[0],
        f"loss/{second}": b * noise[1],
        "loss": a * noise[0] + b * noise[1],
        **{f"weight/{name}": np.ones(N) for name in names},
        f"grad_share/{first}": size * noise[2],
        f"grad_share/{second}": (1 - size) * noise[3],
        f"grad_cosine/{first}~{second}": np.where(ON, cosine, 0.1) + 0.2 * random.standard_normal(N),
    }


@pytest.mark.parametrize("seed", range(8))
def test_the_loser_is_named_within_twenty_rows(seed, make_run, judge):
    """And who takes it."""
    (finding,) = judge(make_run(columns(seed)), RULE)
    assert (finding.severity, finding.subject, finding.state) == ("warning", "component:a~b", "active")
    assert abs(finding.first_step - 121) <= 20
    assert finding.evidence["cosine"] == pytest.approx(-0.4, abs=0.1)


def test_without_a_loser_and_without_progress_one_info(make_run, judge):
    """A converged run, whose gradients cancel."""
    flat = {"loss/a": np.ones(N), "loss/b": np.ones(N), "loss": np.full(N, 2.0)}
    assert [finding.severity for finding in judge(make_run(columns(0) | flat), RULE)] == ["info"]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "case",
    [
        {"rise": 0.0, "cosine": -0.2},
        {"rise": 0.03},
        {"cosine": 0.0},
        {"cosine": -0.05},
        {"names": ("kl", "recon")},
        {"names": ("adv", "l1")},
        {"size": 0.02},
    ],
    ids=str,
)
def test_no_alarm_on(case, seed, make_run, judge):
    """Chance, a small trade, opponents, and norms that are no match."""
    assert [finding for finding in judge(make_run(columns(seed, **case)), RULE) if finding.rank] == []


def test_a_rise_by_plan_is_none(make_run, judge):
    """The rival's weight was raised."""
    table = columns(0) | {"weight/b": np.where(ON, 3.0, 1.0)}
    assert [finding for finding in judge(make_run(table), RULE) if finding.rank] == []


@pytest.mark.parametrize(("late", "severity"), [(1.0, "warning"), (0.2, None)])
def test_two_that_ask_for_opposite_things_are_named(late, severity, make_run, judge):
    """From the first row on, and one is not learned; two solved tasks that balance each other are healthy."""
    n = 300
    fall = np.exp(-np.arange(n) / 30) * np.exp(0.02 * np.cos(np.arange(n) ** 2))
    columns = {"loss/a": 0.2 + 3 * fall, "loss/b": late + (1 - late) * fall, "grad_cosine/a~b": np.full(n, -0.99)}
    columns |= {"loss": columns["loss/a"] + columns["loss/b"], "grad_share/a": np.full(n, 0.5)}
    found = [
        one for one in judge(make_run(columns | {"grad_share/b": np.full(n, 0.5)}), "gradient-conflict") if one.rank
    ]
    assert [one.severity for one in found] == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("mirror", "begin", "steps", "count"), [(1, 0.5, N, 1), (0, 0.5, N, 0), (1, 0.0, N, 0), (1, 0.5, 900, 0)]
)
def test_losses_that_mirror_each_other_tell_without_a_cosine(mirror, begin, steps, count, make_run, judge):
    """For half of the plan; a task that an untrained net solves has to rise, and so may one that is traded."""
    noise = 0.02 * np.random.default_rng(0).standard_normal((2, N))
    fall = 1 - np.exp(-ROW / 60)
    columns = {"loss/a": 2 - fall + noise[0], "loss/b": begin + fall - (noise[0] if mirror else noise[1])}
    header = {"components": {"a": {"role": "task"}, "b": {"role": "task"}}, "total_steps": steps}
    run = make_run(columns | {"loss": columns["loss/a"] + columns["loss/b"]}, header=header)
    assert [one.severity for one in judge(run, RULE)] == ["warning"] * count


def test_a_share_over_the_parameters_counts_where_there_is_no_other(make_run, judge):
    """Fifty times as large is dominance, no conflict."""
    wide = {name.replace("grad_share", "param_share"): values for name, values in columns(0, size=0.02).items()}
    assert judge(make_run(wide), RULE) == []


@pytest.mark.parametrize(
    ("role", "level", "count"), [("auxiliary", 1.4, 1), ("regulariser", 1.4, 0), ("task", None, 0)]
)
def test_a_task_that_another_holds_where_it_is(role, level, count, make_run, judge):
    """It is not learned though the run learns; an auxiliary may be the one that holds it, a regulariser should."""
    random = np.random.default_rng(0)
    noise = np.exp(0.3 * random.standard_normal((3, N)))
    fall = 0.3 + np.exp(-ROW / 40)
    table = {"loss/size": (fall if level is None else level) * noise[0], "loss/taught": (1.5 + 5 * fall) * noise[1]}
    table |= {"loss/other": fall * noise[2], "grad_share/size": np.full(N, 0.4), "grad_share/taught": np.full(N, 0.5)}
    table |= {"grad_cosine/size~taught": -0.75 + 0.1 * random.standard_normal(N)}
    header = {"components": {"size": {"role": "task"}, "taught": {"role": role}, "other": {"role": "task"}}}
    table["loss"] = table["loss/size"] + table["loss/taught"] + table["loss/other"]
    assert len([one for one in judge(make_run(table, header=header), RULE) if one.rank]) == count


def test_one_that_rises_at_first_and_comes_back_has_learned_nothing(make_run, judge):
    """Its first tenth stands above what it was untrained."""
    n = 300
    fall = np.exp(-np.arange(n) / 30)
    columns = {"loss/a": 0.2 + 3 * fall, "loss/b": 0.9 + np.where(np.arange(n) < 15, 0.1, 1.5 * fall)}
    columns |= {"loss": columns["loss/a"] + columns["loss/b"], "grad_cosine/a~b": np.full(n, -0.8)}
    columns |= {"grad_share/a": np.full(n, 0.5), "grad_share/b": np.full(n, 0.5)}
    assert [one.severity for one in judge(make_run(columns), RULE) if one.rank] == ["warning"]


@pytest.mark.parametrize(
    ("task", "penalty", "roles", "count"),
    [
        ((2.6, 2.0, 2.5), (3.0, 0.5), ("task", "regulariser"), 1),
        ((2.6, 2.0, 2.3), (3.0, 0.5), ("task", "regulariser"), 0),  # planned sparsity: a part of the gain is its price
        ((2.6, 2.0, 1.5), (3.0, 0.5), ("task", "regulariser"), 0),  # learned in the end
        ((2.6, 2.6, 2.6), (3.0, 0.5), ("task", "regulariser"), 0),  # never began to be learned: fine-tuned, pruned
        ((2.6, 2.0, 2.5), (0.5, 3.0), ("task", "regulariser"), 0),  # it pays for the task
        ((2.6, 2.0, 2.5), (3.0, 0.5), ("regulariser", "regulariser"), 0),
    ],
)
def test_a_penalty_that_overrules_its_task(task, penalty, roles, count, make_run, judge):
    """It is met, and the task it should serve goes back to where it began."""
    noise = np.exp(0.02 * np.cos(ROW**2))
    a, b = np.interp(ROW, [0, 25, 120], task) * noise, np.interp(ROW, [0, 60], penalty) * noise
    table = {"loss": a + b, "loss/a": a, "loss/b": b, "grad_cosine/a~b": np.full(N, -0.6)}
    table |= {name: np.full(N, 0.5) for name in ("grad_share/a", "grad_share/b")}
    header = {"components": {name: {"role": role} for name, role in zip("ab", roles, strict=True)}}
    found = [one for one in judge(make_run(table, header=header), RULE) if one.rank]
    assert [one.subject for one in found] == count * ["component:a~b"]
    assert all("The penalty b overrules the task a" in one.message for one in found)
    scheduled = table | {"weight/a": np.ones(N), "weight/b": np.linspace(0.9, 1.0, N)}
    assert not any(one.rank for one in judge(make_run(scheduled, header=header), RULE))
