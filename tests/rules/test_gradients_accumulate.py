"""gradients-accumulate: a norm that grows as a sum of gradients does, and no other growth."""

import numpy as np
import pytest

RULE = "gradients-accumulate"


def train(zero, seed, rate, adam, rows=60, limit=np.inf):
    """A network of two layers learns a linear task by batches of 32: losses and gradient norms."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((400, 10))
    labels = (inputs @ random.standard_normal((10, 3))).argmax(1)
    weights = [random.standard_normal((10, 32)) / 10**0.5, random.standard_normal((32, 3)) / 32**0.5]
    gathered, first, second = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    losses, norms = [], []
    for step in range(1, rows + 1):
        batch = random.integers(0, 400, 32)
        hidden = np.maximum(inputs[batch] @ weights[0], 0)
        odds = np.exp(hidden @ weights[1])
        odds /= odds.sum(1, keepdims=True)
        losses.append(-np.log(odds[np.arange(32), labels[batch]]).mean())
        error = (odds - np.eye(3)[labels[batch]]) / 32
        fresh = [inputs[batch].T @ (error @ weights[1].T * (hidden > 0)), hidden.T @ error]
        gathered = [new if zero else old + new for old, new in zip(gathered, fresh, strict=True)]
        norms.append(sum((grad**2).sum() for grad in gathered) ** 0.5)
        gathered = [grad * min(1.0, limit / norms[-1]) for grad in gathered]
        for index, grad in enumerate(gathered):
            first[index] = 0.9 * first[index] + 0.1 * grad
            second[index] = 0.999 * second[index] + 0.001 * grad**2
            mean, scale = first[index] / (1 - 0.9**step), (second[index] / (1 - 0.999**step)) ** 0.5
            weights[index] -= rate * (mean / (scale + 1e-8) if adam else grad)
    return {"loss": losses, "grad_norm": norms}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("adam", "rate"), [(True, 1e-3), (False, 1e-2)])
def test_a_missing_zero_grad_is_named_from_its_first_step(seed, adam, rate, make_run, judge):
    """And the same training with it is not."""
    (finding,) = judge(make_run(train(False, seed, rate, adam)), RULE)
    assert (finding.rank > 0, finding.subject, finding.first_step) == (True, "run", 1)
    assert 0.45 < finding.evidence["power"] < 1.2
    assert judge(make_run(train(True, seed, rate, adam)), RULE) == []


@pytest.mark.parametrize("seed", range(5))
def test_under_a_limit_on_the_norm(seed, make_run, judge):
    """What is carried on is as long as the limit, at most."""
    for zero, count in ((False, 1), (True, 0)):
        run = make_run(train(zero, seed, 5e-3, True, 200, 2.0), header={"max_grad_norm": 2.0})
        assert len([found for found in judge(run, RULE) if found.rank]) == count


def test_it_is_graver_when_the_loss_is_lost(make_run, judge):
    """The law in the first rows, and a loss that ends above its beginning."""
    row = np.arange(1, 61)
    run = make_run({"grad_norm": row**0.9, "loss": np.where(row < 30, 2 - 0.01 * row, 0.1 * row)})
    assert [finding.severity for finding in judge(run, RULE)] == ["critical"]


def test_a_log_of_micro_batches_takes_it_back(make_run, judge):
    """Thirty micro-batches a step: the norm falls back at once."""
    run = make_run({"grad_norm": (np.arange(90) % 30 + 1.0), "loss": np.full(90, 2.0)})
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.state, finding.last_step) == ("info", "over", 31)


def test_it_needs_no_more_than_a_short_run(make_run, judge):
    """Twelve rows."""
    assert [f.confidence for f in judge(make_run({"grad_norm": np.arange(1, 13.0)}), RULE)] == [0.7]


@pytest.mark.parametrize("seed", range(20))
def test_healthy_beginnings(seed, make_run, judge):
    """Level, falling, an escape from a small start, a warm-up, a divergence."""
    random, row = np.random.default_rng(seed), np.arange(1, 41)
    noise = np.exp(0.15 * random.standard_normal(40))
    for norm in (noise, noise / row**0.5, noise * np.exp(row / 10), noise * (1 + row / 40), np.exp(row / 5.0)):
        assert judge(make_run({"grad_norm": norm, "loss": 2 - row / 100}), RULE) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_sum_that_has_no_line_is_known_by_its_smoothness(seed, make_run, judge):
    """Batches too unlike for a power law; the same level is healthy where the norm is rough, or comes back down."""
    random, row = np.random.default_rng(seed), np.arange(120)
    level = np.where(row < 3, 1.0, np.where(row < 20, 6.0, 8.0 + row / 40))
    smooth, rough = (np.exp(width * random.standard_normal(120)) for width in (0.01, 0.15))
    (finding,) = judge(make_run({"grad_norm": level * smooth, "loss": np.full(120, 0.1)}), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "run", 1)
    back = np.where((row > 25) & (row < 28), 1.2, level)
    for norm in (level * rough, back * smooth, 1.0 + 0 * row, np.where(row < 20, level, level[20]) * 1.1**row):
        assert judge(make_run({"grad_norm": norm, "loss": np.full(120, 0.1)}), RULE) == []


def clipped(zero, seed, limit=2.0, rows=120):
    """Norms of gradients that are clipped in place, and of the two components' at every tenth row."""
    random, gathered = np.random.default_rng(seed), np.zeros(50)
    norms, parts = [], np.full((3, rows), np.nan)
    for step in range(rows):
        one, other = 0.05 * random.standard_normal((2, 50)) / (1 + step / 40)
        gathered = one + other + (0 if zero else gathered)
        norms.append(np.linalg.norm(gathered))
        gathered = gathered * min(1.0, limit / norms[-1])
        sizes = np.linalg.norm(one), np.linalg.norm(other)
        if step % 10 == 0:
            parts[:, step] = *sizes, one @ other / (sizes[0] * sizes[1])
    names = ("param_grad/a", "param_grad/b", "param_cosine/a~b")
    return {"grad_norm": np.array(norms), "loss": np.full(rows, 2.0), **dict(zip(names, parts, strict=True))}


@pytest.mark.parametrize("seed", range(5))
def test_a_clipped_sum_is_told_by_the_components(seed, make_run, judge):
    """The limit holds the norm down, which is still far beyond what one step's gradients come to."""
    header = {"max_grad_norm": 2.0}
    (found,) = judge(make_run(clipped(False, seed), header=header), RULE)
    assert (found.severity, found.first_step, found.state) == ("warning", 1, "active")
    assert judge(make_run(clipped(True, seed), header=header), RULE) == []


def test_a_part_of_the_parameters_is_no_sum(make_run, judge):
    """Components' gradients over the trunk alone, which had most of the gradient at first."""
    columns, random = clipped(True, 0), np.random.default_rng(1)
    heads = np.where(np.arange(120) < 5, 0.4, 3 + random.random(120))
    columns["grad_norm"] *= (1 + heads**2) ** 0.5
    assert judge(make_run(columns), RULE) == []


@pytest.mark.parametrize("n", [4, 30])
def test_what_the_recorder_saw_is_proof(n, make_run, judge):
    """Under any limit, in few rows, whatever the norm does; and a gradient that was dropped proves the contrary."""
    norm = np.where(np.arange(n) % 2, 5.0, 1.0)
    seen = np.where(np.arange(n) > 0, 1.0, np.nan)
    (found,) = judge(make_run({"grad_norm": norm, "loss": np.ones(n), "grad_carried": seen}), RULE)
    assert (found.severity, found.first_step, found.state) == ("warning", 2, "active")
    sums = np.sqrt(np.arange(1, n + 1))
    dropped = np.where(np.arange(n) == 1, 0.0, np.nan)
    assert judge(make_run({"grad_norm": sums, "loss": np.ones(n), "grad_carried": dropped}), RULE) == []
    assert judge(make_run({"grad_norm": norm, "grad_carried": np.where(np.arange(n) == 2, 1.0, np.nan)}), RULE) == []


def test_a_norm_that_rises_faster_than_any_sum_is_of_larger_gradients(make_run, judge):
    """Hundredfold in twenty rows, level and smooth since: as a component that explodes beside one that falls."""
    row, loss = np.arange(60), 9e6 * np.exp(-np.arange(60) / 60)
    for times, count in ((96, 0), (20, 1)):
        norm = 6800 * np.interp(row, [0, 3, 19, 60], [1, times / 12, times, 1.5 * times])
        assert len(judge(make_run({"grad_norm": norm, "loss": loss}), RULE)) == count
