"""component-divergence: one task is unlearned while the total falls; opponents and trade-offs are none."""

import re

import numpy as np
import pytest

RULE = "component-divergence"
N = 400
ROW = np.arange(N)


def noise(seed, scale=0.08):
    return np.exp(scale * np.random.default_rng(seed).standard_normal(N))


def columns(a, b, name="a", **others):
    return {f"loss/{name}": a, "loss/b": b, "loss": a + b, **others}


def unlearned(seed):
    """Falls, and from row 160 on rises again, under a total that falls."""
    a = (0.5 + np.exp(-ROW / 40) + np.maximum(ROW - 160, 0) / 250) * noise(seed)
    return a, (1 + 8 * np.exp(-ROW / 150)) * noise(seed + 100)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_named_within_twenty_rows(seed, make_run, judge):
    """The total is the plain sum: no weight explains it."""
    (finding,) = judge(make_run(columns(*unlearned(seed))), RULE)
    assert (finding.severity, finding.subject, finding.state) == ("warning", "component:a", "active")
    assert abs(finding.first_step - 161) <= 20


def test_where_weights_may_have_been_annealed_it_is_an_info(make_run, judge):
    """None is recorded, and the total is no plain sum."""
    a, b = unlearned(0)
    assert [f.severity for f in judge(make_run(columns(a, b) | {"loss": 0.1 * a + b}), RULE)] == ["info"]


def test_recorded_weights_that_move_explain_it(make_run, judge):
    """By plan."""
    a, b = unlearned(0)
    weights = {"weight/a": np.maximum(1 - ROW / 300, 0.1), "weight/b": np.ones(N)}
    assert judge(make_run(columns(a, b, **weights)), RULE) == []


def healthy(kind, seed):
    random, (a, b) = np.random.default_rng(seed), unlearned(seed)
    wave = 0.3 * np.sin(ROW / random.uniform(10, 60) + random.uniform(0, 6))
    return {
        "opponent": columns(a, b, "gen"),
        "critic": columns(a, b, "critic"),
        "kl": columns(25 * (1 - np.exp(-ROW / 60)) * noise(seed), 500 * b, "latent"),
        "small trade": columns((0.5 + np.exp(-ROW / 40) + 0.0002 * ROW) * noise(seed), b),
        "stages": columns(a, b, stage=(ROW >= 170).astype(float) + (ROW >= 260)),
        "wave": columns((1 + wave) * noise(seed), b),
        "all rise": columns(a, b[::-1]),
    }[kind]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["opponent", "critic", "kl", "small trade", "wave", "all rise"])
def test_silent_on(kind, seed, make_run, judge):
    """Growth that is meant, or too small to tell."""
    assert judge(make_run(healthy(kind, seed)), RULE) == []


def test_a_new_stage_begins_anew(make_run, judge):
    """What rises at a boundary only, rises with the data."""
    a = np.where(ROW < 200, 0.5, 0.9) * noise(3) + np.exp(-ROW / 20)
    assert judge(make_run(columns(a, unlearned(3)[1], stage=(ROW >= 200).astype(float))), RULE) == []


@pytest.mark.parametrize(
    ("name", "count"),
    [("smooth", 0), ("smoothness_loss", 0), ("flow_tv", 0), ("total_variation", 0), ("load_balancing", 0),
     ("sparsity", 0), ("smooth_l1", 1), ("sparse_ce", 1), ("balanced_bce", 1)],
)  # fmt: skip
def test_a_smoothness_grows_as_the_model_learns_what_is_rough(name, count, make_run, judge):
    """By its name, where no role was declared: a flow of nothing is the smoothest."""
    assert len(judge(make_run(columns(*unlearned(0), name)), RULE)) == count


@pytest.mark.parametrize(("weight", "count"), [(1.0, 1), (-1.0, 0)])
def test_what_is_maximised_is_meant_to_rise(weight, count, make_run, judge):
    """Though it fell at first, while nothing was learned yet."""
    weights = {"weight/digit": np.full(N, weight), "weight/other": np.ones(N)}
    a, b = unlearned(1)
    assert len(judge(make_run(columns(a, b, "digit") | weights), RULE)) == count


def test_a_total_that_is_logged_no_more_proves_nothing(make_run, judge):
    """The component rises again where the total is unknown."""
    a, b = unlearned(0)
    assert judge(make_run(columns(a, b) | {"loss": np.where(ROW < 80, a + b, np.nan)}), RULE) == []


@pytest.mark.parametrize(("began", "count"), [(0.7, 0), (0.105, 1)])
def test_what_was_gained_before_a_resume_is_gained(began, count, make_run, judge):
    """Two tasks share one table: a few hundredths of what one learned go to the other, whoever asks since when."""
    rows = np.arange(60)
    a = np.interp(rows, [0, 25, 60], [0.105, 0.0825, 0.115]) * noise(1, 0.002)[:60]
    b = np.linspace(0.8, 0.5, 60)
    weights = {"weight/a": np.full(60, 0.5), "weight/b": np.full(60, 0.5)}
    early = {"loss/a": np.linspace(began, 0.105, 60), "loss/b": np.full(60, 0.8), **weights}
    run = make_run(early | {"loss": (early["loss/a"] + 0.8) / 2}, header={"total_steps": 120}, end=None)
    late = {"loss/a": a, "loss/b": b, "loss": (a + b) / 2, "step": 61 + rows, **weights}
    run = make_run(late, header={"total_steps": 120, "resumed_from": 60}, onto=run)
    assert len(judge(run, RULE)) == count


@pytest.mark.parametrize(
    ("blow", "told"),
    [(0.0, r"while the total fell to [\d.]+$"), (60.0, r"the total fell to [\d.]+, having been")],
)
def test_how_the_total_went_is_told_as_it_went(blow, told, make_run, judge):
    """A blow throws all components up; this one stays there while the total comes down, though not to where it was."""
    a, b = unlearned(0)
    late = np.maximum(ROW - 160, 0)
    a, b = (a + 4 * (late > 0), b + blow * (late > 0) * (0.1 + 0.9 * np.exp(-late / 20))) if blow else (a, b)
    assert re.search(told, judge(make_run(columns(a, b)), RULE)[0].message.rstrip("."))
