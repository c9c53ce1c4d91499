"""rank-skew: ranks that took other steps than the rest."""

import numpy as np
import pytest

RULE = "rank-skew"


@pytest.fixture
def ranked(make_run):
    """Two ranks."""

    def build(zero, one, ends=("finished", "finished")):
        runs = [
            make_run(columns, header={"world_size": 2, "rank": rank}, end=end)
            for rank, (columns, end) in enumerate(zip((zero, one), ends, strict=True))
        ]
        runs[0].ranks = {1: runs[1]}
        return runs[0]

    return build


def counted(skips, n=100):
    skipped = np.isin(np.arange(1, n + 1), skips).astype(float)
    return {"amp/skipped": skipped, "applied": np.cumsum(1 - skipped)}


def test_a_step_that_one_rank_skipped(ranked, judge):
    (finding,) = judge(ranked(counted([3, 40]), counted([3])), RULE)
    assert (finding.severity, finding.first_step, finding.evidence["rank"]) == ("warning", 40, 0)


def test_skips_that_all_take_are_healthy(ranked, judge):
    """And a count without a flag is not known to be one."""
    assert judge(ranked(counted([3, 40]), counted([3, 40])), RULE) == []
    blind = {"applied": np.arange(1.0, 101)}
    assert judge(ranked(counted([3, 40]), blind), RULE) == []


def test_ranks_that_end_apart(ranked, judge):
    """A batch more or less is an uneven division; rows in flight are lost when a job is killed."""
    long, short, near = ({"loss": np.ones(n)} for n in (1000, 900, 995))
    (finding,) = judge(ranked(long, short), RULE)
    assert (finding.subject, finding.first_step, finding.last_step) == ("rank:1", 900, 1000)
    assert judge(ranked(long, near), RULE) == []
    for ends in ((None, None), ("failed", "finished"), ("stopped", "stopped")):
        assert judge(ranked(long, short, ends), RULE) == []
