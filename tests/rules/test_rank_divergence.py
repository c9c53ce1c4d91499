"""rank-divergence: the first step that differs and the odd rank; what is each rank's own is no alarm."""

import numpy as np
import pytest

from trainwatch.engine import Engine

RULE = "rank-divergence"
N = 120


@pytest.fixture
def ranked(make_run):
    """``ranked(columns of each rank, header)``: one run of many ranks."""

    def build(*columns, **header):
        runs = [
            make_run(one, header={"world_size": len(columns), "rank": rank, **header})
            for rank, one in enumerate(columns)
        ]
        runs[0].ranks = dict(enumerate(runs[1:], 1))
        return runs[0]

    return build


def hashes(random, every=1):
    values = random.integers(0, 2**53, N).astype(float)
    return np.where(np.arange(N) % every == 0, values, np.nan)


def test_the_first_step_and_the_odd_rank(ranked, judge):
    same = hashes(np.random.default_rng(0), 10)
    odd = np.where(np.arange(N) >= 50, same + 1, same)
    (finding,) = judge(ranked(*({"param_hash": one} for one in (same, same, odd, same))), RULE)
    assert (finding.severity, finding.subject, finding.first_step, finding.state) == (
        "critical",
        "rank:2",
        51,
        "active",
    )
    assert "it was at step 41" in finding.message
    (finding,) = judge(ranked({"param_hash": same}, {"param_hash": odd}), RULE)
    assert (finding.subject, finding.first_step) == ("run", 51)


def test_between_two_hashes_the_norm_tells_the_step(ranked, judge):
    random = np.random.default_rng(0)
    same, norm = hashes(random, 40), 1 + 0.1 * random.random(N)
    odd, apart = np.where(np.arange(N) >= 60, same + 1, same), norm * np.where(np.arange(N) >= 60, 1.1, 1.0)
    run = ranked({"param_hash": same, "grad_norm": norm}, {"param_hash": odd, "grad_norm": apart})
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.first_step) == ("critical", 61)


def test_norms_alone_are_a_warning(ranked, judge):
    norm = 1 + 0.1 * np.random.default_rng(0).random(N)
    apart = norm * np.where(np.arange(N) >= 60, 1.1, 1.0)
    (finding,) = judge(ranked(*({"grad_norm": one} for one in (norm, norm, apart))), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "rank:2", 61)


def test_local_losses_and_norms_are_healthy(ranked, judge):
    """Each rank's own samples; parameters agree, or say nothing."""
    for seed in range(30):
        random = np.random.default_rng(seed)
        same = hashes(random, 10)
        ranks = [{"loss": 1 + random.random(N), "grad_norm": 1 + random.random(N)} for _ in range(4)]
        assert judge(ranked(*ranks), RULE) == []
        assert judge(ranked(*({**one, "param_hash": same} for one in ranks)), RULE) == []


def test_a_hash_that_agrees_clears_what_parted(ranked, judge):
    norm = np.ones(N)
    apart = np.where(np.arange(N) >= 60, 1.1, 1.0)
    same = hashes(np.random.default_rng(0), 40)
    run = ranked({"param_hash": same, "grad_norm": norm}, {"param_hash": same, "grad_norm": apart})
    assert [finding.severity for finding in judge(run, RULE)] == ["info"]


def test_a_broadcast_ends_it(ranked, judge):
    same = hashes(np.random.default_rng(0))
    odd = np.where((np.arange(N) >= 50) & (np.arange(N) < 70), same + 1, same)
    (finding,) = judge(ranked({"param_hash": same}, {"param_hash": odd}), RULE)
    assert (finding.state, finding.first_step, finding.last_step) == ("over", 51, 70)


def test_a_resume_begins_anew(ranked, judge, make_run):
    """What parted before it is history; after it the ranks agree."""
    same = hashes(np.random.default_rng(0))
    run = ranked({"param_hash": same}, {"param_hash": np.where(np.arange(N) >= 80, same + 1, same)})
    for rank, one in {0: run, **run.ranks}.items():
        step = np.arange(61, 61 + N)
        make_run({"param_hash": same, "step": step}, header={"rank": rank, "resumed_from": 60}, onto=one)
    assert [(f.severity, f.state) for f in judge(run, RULE)] == [("info", "over")]


def test_how_far_each_file_was_read_changes_nothing(ranked, judge, make_run):
    """Each rank's file lags by another number of rows."""
    random = np.random.default_rng(0)
    same, norm = hashes(random, 7), random.random(N)
    columns = [{"param_hash": same, "grad_norm": norm} for _ in range(3)]
    columns[1] = {"param_hash": np.where(np.arange(N) >= 70, same + 1, same), "grad_norm": norm * 1.1}
    whole = judge(ranked(*columns), RULE)
    empty = [{name: values[:0] for name, values in one.items()} for one in columns]
    run, engine, done = ranked(*empty), Engine(), [0, 0, 0]
    for one in (run, *run.ranks.values()):
        one.end = None
    while min(done) < N:
        rank = int(random.integers(3))
        until = min(done[rank] + int(random.integers(1, 12)), N)
        part = {name: values[done[rank] : until] for name, values in columns[rank].items()}
        onto = run if rank == 0 else run.ranks[rank]
        make_run({**part, "step": np.arange(done[rank] + 1, until + 1)}, onto=onto, end=None)
        done[rank] = until
        engine.feed(run)
    assert [f for f in engine.findings(run) if f.rule == RULE] == whole
    assert engine.failed == {}
    assert len(whole) == 1


@pytest.mark.parametrize("size", [12_345.678, 1.0, 1e-8])
def test_the_odd_rank_whatever_the_size_of_the_norm(size, ranked, judge):
    """The ranks' sums differ in their last digits."""
    norm = size * (1 + 0.1 * np.random.default_rng(0).random(N))
    near, apart = norm * (1 + 2e-7), norm * np.where(np.arange(N) >= 60, 1.1, 1.0)
    (finding,) = judge(ranked(*({"grad_norm": one} for one in (norm, near, apart))), RULE)
    assert (finding.subject, finding.first_step) == ("rank:2", 61)
