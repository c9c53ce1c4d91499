"""lr-too-low: steps so small that nothing moves, and nothing is learned."""

import numpy as np
import pytest

RULE = "lr-too-low"
N = 400
ROW = np.arange(N)
SAMPLED = (ROW == 0) | ((ROW + 1) % 50 == 0)


def run_of(ratio, loss, rate=1e-6):
    ratio, rate = np.broadcast_to(ratio, N), np.broadcast_to(rate, N)
    return {"update_ratio/main": np.where(SAMPLED, ratio, np.nan), "lr/main": rate, "loss": loss}


def flat(seed=0):
    return 2.3 + 0.05 * np.random.default_rng(seed).standard_normal(N)


def test_weights_that_stay_where_they_were(make_run, judge):
    """An alarm if all planned steps together are less than rounding the weights would be; else an info."""
    (finding,) = judge(make_run(run_of(1e-9, flat())), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "run", 1)
    assert finding.evidence["path"] == pytest.approx(4e-7, rel=0.1)
    assert [f.severity for f in judge(make_run(run_of(1e-6, flat())), RULE)] == ["warning"]
    assert [f.severity for f in judge(make_run(run_of(5e-6, flat())), RULE)] == ["info"]
    longer = {"total_steps": 100_000}
    assert [f.severity for f in judge(make_run(run_of(1e-7, flat()), header=longer), RULE)] == ["info"]


def test_a_schedule_and_stages_are_no_excuse(make_run, judge):
    """Of a cosine with its warm-up less than half is at its height; a stage makes a loss rise that nothing moves."""
    cosine = np.minimum(ROW / 20, 1.0) * (1 + np.cos(np.pi * ROW / N)) / 2
    (finding,) = judge(make_run(run_of(1e-7 * cosine, flat(), 1e-6 * cosine)), RULE)
    assert finding.severity == "warning"
    stages = {"name": "two", "stages": [{"start": 0, "end": 200}, {"start": 200, "end": 400}]}
    rising = run_of(1e-7, flat() + 0.5 * (ROW >= 200))
    assert [f.severity for f in judge(make_run(rising, header={"curriculum": stages}), RULE)] == ["warning"]
    assert [f.severity for f in judge(make_run(rising), RULE)] == ["warning"]


def test_one_sample_at_the_height_of_a_short_run_is_enough(make_run, judge):
    """An update is proportional to its rate: what was sampled at the end of a cosine tells of the height, too."""
    rate = 1e-6 * np.minimum(ROW / 20, 1.0) * (1 + np.cos(np.pi * ROW / 120)) / 2
    short = {name: values[:120] for name, values in run_of(rate, flat(), rate).items()}
    (finding,) = judge(make_run(short), RULE)
    assert finding.severity == "warning"
    assert finding.evidence["update_ratio"] == pytest.approx(rate[:120].max(), rel=0.01)


def test_in_a_game_the_path_alone_tells(make_run, judge):
    """A goal that moves: whatever the loss does, weights that stay learn nothing."""
    for loss in (flat(), flat() * np.exp(-ROW / 100), flat() + ROW / 100):
        (finding,) = judge(make_run(run_of(1e-7, loss) | {"loss/actor": loss}), RULE)
        assert finding.severity == "warning"


@pytest.mark.parametrize("seed", range(10))
def test_small_steps_that_are_meant_are_healthy(seed, make_run, judge):
    """A loss that falls, fine-tuning at the floor, a warm-up, the end of a cosine, a resume, a goal that moves."""
    warm, cosine = 1e-6 * (1 + ROW), 1 + np.cos(np.pi * ROW / N)
    falls = run_of(1e-7, np.exp(-ROW / 100) * flat(seed))
    cases = (falls, run_of(3e-5, flat(seed)), run_of(1e-7 * warm, flat(seed), warm), run_of(1e-4 * cosine, flat(seed)))
    for columns in (*cases, run_of(5e-6, flat(seed)) | {"loss/actor": flat(seed)}):
        assert [f for f in judge(make_run(columns), RULE) if f.rank or columns is not cases[2]] == []
    assert judge(make_run(run_of(1e-7, flat(seed)), header={"resumed_from": 100}), RULE) == []
    assert judge(make_run({n: v[:60] for n, v in run_of(1e-7, flat(seed)).items()}), RULE) == []


def test_a_row_in_ten(make_run, judge):
    """Steps count, not rows: thirty of them tell of three hundred steps; twenty steps tell nothing."""
    columns = run_of(1e-9, flat()) | {"update_ratio/main": np.full(N, 1e-9)}
    few = {name: values[:30] for name, values in columns.items()}
    (finding,) = judge(make_run(few | {"step": np.arange(1, 31) * 10}), RULE)
    assert finding.severity == "warning"
    assert judge(make_run(few), RULE) == []


def test_one_sample_of_a_short_log_is_enough(make_run, judge):
    """Every tenth row of a run of 120 steps; not the sample of the first steps, which a momentum has not reached."""
    step, loss = np.arange(10, 121, 10), 2.3 + 0.05 * np.random.default_rng(0).standard_normal(12)
    for at, count in ((10, 1), (3, 0)):
        steps = np.append(at, step[1:])
        columns = {"step": steps, "loss": loss, "lr/main": np.full(12, 1e-8)}
        run = make_run(
            columns | {"update_ratio/main": np.where(steps == at, 1e-7, np.nan)}, header={"total_steps": 120}
        )
        assert len(judge(run, RULE)) == count


def test_a_group_that_begins_at_0_moves_nothing(make_run, judge):
    """Its ratio is large however small its rate."""
    begins = {"update_ratio/scale": np.where(SAMPLED, 0.02, np.nan), "lr/scale": np.full(N, 1e-6)}
    norms = {"weight_norm/main": np.where(SAMPLED, 20.0, np.nan), "weight_norm/scale": np.where(SAMPLED, 2e-4, np.nan)}
    (finding,) = judge(make_run(run_of(1e-7, flat()) | begins | norms), RULE)
    assert finding.severity == "warning"
