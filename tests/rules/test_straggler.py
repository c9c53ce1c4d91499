"""straggler: the same rank, block after block; ranks that take turns are no stragglers."""

import numpy as np
import pytest

RULE = "straggler"
N = 400


@pytest.fixture
def ranked(make_run):
    """Runs of one world: what each rank waits for data, in steps that all share."""

    def build(*waits, **columns):
        step = 0.1 + np.max(waits, axis=0)
        runs = [
            make_run({"time/data": wait, "time/step": step, **columns}, header={"world_size": len(waits), "rank": rank})
            for rank, wait in enumerate(waits)
        ]
        runs[0].ranks = dict(enumerate(runs[1:], 1))
        return runs[0]

    return build


def waits(random, ranks, scale=0.005):
    return list(scale * random.lognormal(0, 1, (ranks, N)))


def test_the_slow_rank_is_named(ranked, judge):
    for ranks in (2, 4, 8):
        slow = waits(np.random.default_rng(ranks), ranks)
        slow[1] = slow[1] + np.where(np.arange(N) >= 200, 0.05, 0.0)
        (finding,) = judge(ranked(*slow), RULE)
        assert (finding.severity, finding.subject, finding.state) == ("warning", "rank:1", "active")
        assert abs(finding.first_step - 201) <= 20
        assert finding.evidence["share"] == pytest.approx(0.33, abs=0.1)


def test_it_is_over_when_the_rank_keeps_up_again(ranked, judge):
    slow = waits(np.random.default_rng(0), 4)
    slow[3] = slow[3] + np.where((np.arange(N) >= 100) & (np.arange(N) < 200), 0.05, 0.0)
    (finding,) = judge(ranked(*slow), RULE)
    assert (finding.state, finding.subject) == ("over", "rank:3")


def test_a_little_more_is_info(ranked, judge):
    slow = waits(np.random.default_rng(0), 4, 0.0005)
    slow[3] = slow[3] + 0.018
    (finding,) = judge(ranked(*slow), RULE)
    assert (finding.severity, finding.first_step) == ("info", 1)


def test_stutters_that_take_turns_are_healthy(ranked, judge):
    """Heavy tails: any rank may wait ten steps long, now and then."""
    for seed in range(40):
        random = np.random.default_rng(seed)
        healthy = waits(random, int(random.choice([2, 4, 8])))
        for wait in healthy:
            wait[random.random(N) < 0.05] += 1.0
        assert [f for f in judge(ranked(*healthy), RULE) if f.rank] == [], seed


@pytest.mark.parametrize(("times", "severity"), [(1.4, "info"), (4.0, "warning")])
def test_a_rank_that_computes_several_times_as_long(times, severity, make_run, judge):
    """Fifteen per cent of the step: like machines do not differ so much."""
    random = np.random.default_rng(0)
    slow = 0.018 / (times - 1) * times
    runs = [
        make_run(
            {
                "time/compute": (slow if rank == 1 else slow - 0.018) * np.exp(0.02 * random.standard_normal(N)),
                "time/step": np.full(N, 0.12),
            },
            header={"world_size": 3, "rank": rank},
        )
        for rank in range(3)
    ]
    runs[0].ranks = dict(enumerate(runs[1:], 1))
    (finding,) = judge(runs[0], RULE)
    assert (finding.severity, finding.subject) == (severity, "rank:1")


@pytest.mark.parametrize(("times", "count"), [(3.0, 1), (1.5, 0)])
def test_what_is_recorded_as_computing_may_be_a_small_part_of_the_step(times, count, make_run, judge):
    """Seven per cent of the step, by a rank that needs three times as long; by half more it is chance's."""
    random = np.random.default_rng(0)
    usual = 0.007 / (times - 1)
    runs = [
        make_run(
            {
                "time/compute": (times if rank == 1 else 1) * usual * np.exp(0.1 * random.standard_normal(N)),
                "time/step": np.full(N, 0.1),
            },
            header={"world_size": 2, "rank": rank},
        )
        for rank in range(2)
    ]
    runs[0].ranks = {1: runs[1]}
    assert [(f.severity, f.subject) for f in judge(runs[0], RULE)] == [("warning", "rank:1")] * count


def few(ranked, rows, share=1.0, seed=0):
    """Steps of two ranks, one of which waits longer in such a share of them."""
    random = np.random.default_rng(seed)
    own = list(0.02 * np.exp(0.1 * random.standard_normal((2, rows))))
    own[1] = own[1] * np.where(random.random(rows) < share, 3.0, 0.9)
    return ranked(*own)


def test_a_run_of_few_steps_is_judged_as_a_whole(ranked, judge):
    """From thirty steps on; not where only two steps of three are slow, nor the first half of the run."""
    assert judge(few(ranked, 29), RULE) == []
    for rows in (30, 45, 59):
        (finding,) = judge(few(ranked, rows), RULE)
        assert (finding.severity, finding.subject) == ("warning", "rank:1")
    for seed in range(20):
        assert judge(few(ranked, 50, 0.66, seed), RULE) == []
    warm = 0.02 + np.where(np.arange(50) < 25, 0.05, 0.0)
    assert judge(ranked(np.full(50, 0.02), warm), RULE) == []
