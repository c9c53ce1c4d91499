"""codebook-collapse: few codes in use while nothing else is learned."""

import numpy as np
import pytest

from trainwatch.engine import Engine

RULE = "codebook-collapse"
N = 300
ROW = np.arange(N)


def noise(seed=0):
    return np.exp(0.1 * np.random.default_rng(seed).standard_normal(N))


STUCK = 0.9 * np.ones(N)


def test_a_perplexity_that_falls_to_one(make_run, judge):
    """An alarm while the reconstruction stands, an info while it improves."""
    perplexity = 1.02 + 60 * np.exp(-ROW / 8)
    (finding,) = judge(make_run({"codebook/perplexity": perplexity, "loss/recon": STUCK * noise()}), RULE)
    assert finding.severity == "warning"
    assert 30 <= finding.first_step <= 50
    falls = 3 * np.exp(-ROW / 100) * noise()
    assert [f.severity for f in judge(make_run({"codebook/perplexity": perplexity, "loss/recon": falls}), RULE)] == [
        "info"
    ]


def test_a_share_of_the_codes(make_run, judge):
    """Three in a hundred are used."""
    assert len(judge(make_run({"codebook/used": np.full(N, 0.03), "loss/recon": STUCK}), RULE)) == 1


def test_a_commitment_loss_at_its_floor(make_run, judge):
    """Without any usage in the log: the others never came down."""
    run = make_run({"loss/commitment": np.exp(-ROW / 8) * noise() + 1e-6, "loss/recon": STUCK * noise(1)})
    assert [(f.severity, f.subject) for f in judge(run, RULE)] == [("warning", "component:commitment")]


@pytest.mark.parametrize("seed", range(20))
def test_codebooks_at_work_are_healthy(seed, make_run, judge):
    """Usage that rises from little; a commitment loss that falls with the reconstruction; other models."""
    recon = (0.1 + np.exp(-ROW / 60)) * noise(seed)
    rising = {"codebook/perplexity": (2 + 100 * (1 - np.exp(-ROW / 40))) * noise(seed), "loss/recon": recon}
    falling = {"loss/vq": 1e-4 + np.exp(-ROW / 8), "loss/recon": recon}
    other = {"loss/kl": 1e-9 * noise(seed), "loss/recon": STUCK}
    for columns in (rising, falling, other):
        assert judge(make_run(columns), RULE) == []


def test_a_usage_that_is_recorded_late(make_run, judge):
    """The rows before count for a live run as they do afterwards."""
    perplexity = np.where(ROW < N // 2, np.nan, 1.02)
    columns = {"codebook/perplexity": perplexity, "loss/recon": (1 + np.maximum(0, N / 2 - ROW) / N) * noise()}
    (after,) = judge(make_run(columns), RULE)
    run, engine = make_run({"loss/recon": columns["loss/recon"][: N // 2]}, end=None), Engine()
    engine.feed(run)
    make_run({"step": 1 + ROW[N // 2 :], **{name: values[N // 2 :] for name, values in columns.items()}}, onto=run)
    engine.feed(run)
    assert [finding for finding in engine.findings(run) if finding.rule == RULE] == [after]


def test_codes_that_are_counted(make_run, judge):
    """Under a name of one's own: one code is a collapse, twenty are none."""
    for codes, alarms in ((1.0, 1), (20.0, 0)):
        run = make_run({"codes_used": np.full(N, codes), "loss/recon": STUCK * noise()})
        assert len([finding for finding in judge(run, RULE) if finding.rank]) == alarms


@pytest.mark.parametrize(("rows", "every", "codes", "alarms"), [(24, 5, 1.0, 1), (24, 2, 1.0, 0), (24, 5, 2.5, 0)])
def test_one_code_in_a_log_of_few_rows(rows, every, codes, alarms, make_run, judge):
    """Once sixty steps are done; usage of a few codes needs more rows to be believed."""
    columns = {"codebook/perplexity": np.full(rows, codes), "loss/recon": STUCK[:rows] * noise()[:rows]}
    columns["codebook/perplexity"][0] = 60
    run = make_run(columns | {"step": every * (1 + ROW[:rows])})
    assert [finding.severity for finding in judge(run, RULE)] == ["warning"] * alarms


@pytest.mark.parametrize(("usage", "alarms"), [(0.8, 0), (0.03, 1)])
def test_a_share_under_the_name_of_a_number(usage, alarms, make_run, judge):
    """Nobody uses a part of a code: what stands between 0 and 1 is a share."""
    run = make_run({"codes_used": np.full(N, usage), "loss/recon": STUCK * noise()})
    assert len([finding for finding in judge(run, RULE) if finding.rank]) == alarms
