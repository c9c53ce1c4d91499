"""Batches that come again while others are still new, in one process and across ranks."""

import numpy as np
import pytest

RULE = "duplicate-batches"
ROWS = 600


def prints(random, count):
    return random.integers(0, 2**32, count).astype(float)


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_workers_that_read_the_same_stream(make_run, judge, workers):
    """From the first row on; the number of copies is told."""
    batches = np.repeat(prints(np.random.default_rng(workers), ROWS), workers)[:ROWS]
    (found,) = judge(make_run({"data/fingerprint": batches}), RULE)
    assert (found.severity, found.first_step, found.state) == ("warning", 1, "active")
    assert found.evidence["copies"] == pytest.approx(workers, rel=0.3)


def test_from_some_step_on_and_no_more(make_run, judge):
    """The onset, and the end."""
    random = np.random.default_rng(0)
    batches = prints(random, ROWS)
    batches[200:400] = np.repeat(batches[200:250], 4)
    (found,) = judge(make_run({"data/fingerprint": batches}), RULE)
    assert abs(found.first_step - 201) <= 20
    assert (found.state, found.last_step) == ("over", 400)


HEALTHY = {
    "shuffled": lambda random: prints(random, ROWS),
    "fixed order": lambda random: np.tile(prints(random, random.integers(1, 200)), ROWS)[:ROWS],
    "fixed batches in any order": lambda random: np.concatenate(
        [random.permutation(batches) for batches in [prints(random, random.integers(2, 200))] * ROWS]
    )[:ROWS],
    "beside a small set": lambda random: np.stack(
        [prints(random, ROWS), np.tile(prints(random, random.integers(6, 30)), ROWS)[:ROWS]], axis=1
    ).ravel(),
    "one stray repeat in ten": lambda random: np.where(random.random(ROWS) < 0.1, 5.0, prints(random, ROWS)),
}


@pytest.mark.parametrize("kind", HEALTHY)
def test_epochs_and_small_sets_are_healthy(make_run, judge, kind):
    """Thirty seeds of each."""
    for seed in range(30):
        batches = HEALTHY[kind](np.random.default_rng(seed))
        assert judge(make_run({"data/fingerprint": batches}), RULE) == []


@pytest.mark.parametrize(("processes", "severity"), [(2, "warning"), (1, "info"), (None, "info")])
def test_ranks_that_read_the_same(make_run, judge, processes, severity):
    """Data parallel: a warning. Where it may be one replica on many cards: worth knowing."""
    batches = prints(np.random.default_rng(0), 100)
    run = make_run({"data/fingerprint": batches}, header={"horizon": {"processes": processes}})
    run.ranks[1] = make_run({"data/fingerprint": batches})
    run.ranks[2] = make_run({"data/fingerprint": batches[::-1]})
    (found,) = judge(run, RULE)
    assert (found.severity, found.subject) == (severity, "rank:1")


LARGE = {"horizon": {"samples": 1408, "batch_size": 32}}
SMALL = {"horizon": {"samples": 96, "batch_size": 32}}


@pytest.mark.parametrize(
    ("count", "header", "alarms"),
    [(3, LARGE, 1), (1, LARGE, 1), (3, None, 1), (3, SMALL, 0), (1, None, 0), (8, None, 0)],
)
def test_a_few_batches_for_ever(count, header, alarms, make_run, judge):
    """Where the set is larger, or where two to four come in one order; not a small set, nor all of it at once."""
    batches = np.tile(prints(np.random.default_rng(0), count), ROWS)[:ROWS]
    found = judge(make_run({"data/fingerprint": batches}, header=header), RULE)
    assert [one.first_step for one in found] == [count + 1] * alarms


def test_a_small_set_that_is_shuffled(make_run, judge):
    """Three batches, in another order each time."""
    random = np.random.default_rng(1)
    batches = np.concatenate([random.permutation([1.0, 2.0, 3.0]) for _ in range(200)])
    assert judge(make_run({"data/fingerprint": batches}), RULE) == []


@pytest.mark.parametrize(("hashes", "severity"), [((7.0, 7.0), "warning"), ((7.0, 8.0), "info")])
def test_ranks_that_hold_the_whole_model_each(hashes, severity, make_run, judge):
    """They are replicas by the hash of their parameters; with parts of one model they may share a batch."""
    batches, row = prints(np.random.default_rng(0), 100), np.arange(100)
    mine, other = ({"data/fingerprint": batches, "param_hash": one + row} for one in hashes)
    run = make_run(mine)
    run.ranks[1] = make_run(other)
    assert [found.severity for found in judge(run, RULE)] == [severity]


@pytest.mark.parametrize(("rows", "alarms"), [(24, 1), (1, 0)])
def test_one_batch_where_whole_epochs_are_counted(rows, alarms, make_run, judge):
    """An epoch of 24 rows has more than one batch; an epoch a row is the whole set at once."""
    epoch = (np.arange(ROWS) // rows).astype(float)
    assert len(judge(make_run({"data/fingerprint": np.full(ROWS, 5.0), "epoch": epoch}), RULE)) == alarms


@pytest.mark.parametrize(("accumulation", "alarms"), [(2, 0), (1, 1)])
def test_a_row_shows_one_micro_batch_of_its_step(accumulation, alarms, make_run, judge):
    """Eight batches, two a step: only four of them can be seen, and two are too near to that."""
    batches = np.tile(prints(np.random.default_rng(0), 2), ROWS)[:ROWS]
    header = {"horizon": {"samples": 256, "batch_size": 32, "accumulation": accumulation}}
    assert len(judge(make_run({"data/fingerprint": batches}, header=header), RULE)) == alarms


def test_few_of_many(make_run, judge):
    """Eight batches of a set of forty-four, eight times over; each fourth step of a set that comes in one order."""
    batches = np.tile(prints(np.random.default_rng(0), 8), ROWS)[:80]
    (found,) = judge(make_run({"data/fingerprint": batches}, header=LARGE), RULE)
    assert (found.severity, found.first_step, found.evidence["batches"]) == ("warning", 9, 8)
    seldom = {"data/fingerprint": batches, "step": np.arange(1, 81) * 4}
    assert judge(make_run(seldom, header=LARGE), RULE) == []


def test_one_batch_that_cannot_be_all(make_run, judge):
    """Others came before; or what a policy goes through, of which a part is overwritten at times."""
    random = np.random.default_rng(0)
    before = np.concatenate([prints(random, 60), np.full(140, 7.0)])
    (found,) = judge(make_run({"data/fingerprint": before}), RULE)
    assert (found.severity, found.first_step) == ("warning", 62)
    batches = np.full(200, 7.0)
    batches[60:69], batches[69:] = prints(random, 9), 8.0
    game = {"data/fingerprint": batches, "reward/return": np.zeros(200)}
    (found,) = judge(make_run(game), RULE)
    assert (found.severity, found.first_step) == ("warning", 2)
    assert judge(make_run({"data/fingerprint": np.full(200, 7.0)}), RULE) == []
