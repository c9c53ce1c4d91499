"""rank-missing: gone while the others were there; a file that lags and a job killed as a whole are none."""

import numpy as np
import pytest

RULE = "rank-missing"


@pytest.fixture
def ranked(make_run):
    """Ranks that took so many steps of half a second each, and how each of them ended."""

    def build(*steps, ends=None, size=None, beats=()):
        runs = []
        for rank, (count, end) in enumerate(zip(steps, ends or [None] * len(steps), strict=True)):
            elapsed = 0.5 * np.arange(1, count + 1)
            header = {"world_size": size or len(steps), "rank": rank}
            runs.append(make_run({"elapsed": elapsed, "time": 1e9 + elapsed}, header=header, end=end))
        for rank, seconds in dict(beats).items():
            runs[rank].heartbeat = {"kind": "heartbeat", "time": 1e9 + seconds, "elapsed": seconds}
        runs[0].ranks = dict(enumerate(runs[1:], 1))
        return runs[0]

    return build


def test_a_rank_that_died_while_the_others_wait(ranked, judge):
    """They beat on in their collective."""
    (finding,) = judge(ranked(400, 400, 399, 400, beats={0: 500, 1: 500, 3: 500}), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("critical", "rank:2", 399)
    assert finding.evidence["silent"] == pytest.approx(300.5)
    assert "wait for it" in finding.message
    (finding,) = judge(ranked(1000, 400), RULE)
    assert (finding.subject, finding.last_step) == ("rank:1", 1000)
    assert "went on to step 1,000" in finding.message


def test_healthy_ranks(ranked, judge):
    """A lag of seconds, an end in good order, a whole job killed, a rank that evaluates alone and beats."""
    assert judge(ranked(400, 380), RULE) == []
    assert judge(ranked(1000, 400, ends=("finished", "finished")), RULE) == []
    assert judge(ranked(400, 398, 395), RULE) == []
    assert judge(ranked(1000, 400, beats={1: 495}), RULE) == []
    assert judge(ranked(400), RULE) == []


def test_ranks_without_a_file_are_told_once(ranked, judge):
    """Where most others have one; rank 0 alone is a way to record."""
    (finding,) = judge(ranked(400, 400, 400, size=4), RULE)
    assert (finding.severity, finding.evidence) == ("info", {"absent": 1, "world_size": 4})
    assert judge(ranked(400, 400, size=16), RULE) == []


def test_a_rank_that_is_behind_when_all_others_ended(ranked, judge):
    """However fast they were; the last rows of a file that lags are none."""
    (finding,) = judge(ranked(100, 60, 100, ends=("finished", None, "finished")), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("critical", "rank:1", 60)
    assert judge(ranked(100, 90, 100, ends=("finished", None, "finished")), RULE) == []
    assert judge(ranked(100, 60, 100, ends=("finished", None, None)), RULE) == []
