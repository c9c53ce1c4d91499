"""The arithmetic of a run's length: every sample once, no group dropped, shares that sum to one."""

from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.horizon import Horizon

horizons = st.builds(
    Horizon, st.integers(1, 3), st.integers(8, 60), st.integers(1, 8), st.integers(1, 4), st.booleans()
)


@given(horizons)
def test_every_sample_is_seen_once_and_every_step_is_whole(horizon):
    micros = [horizon.micro(index) for index in range(horizon.micros)]
    seen = [number for micro in micros for number in range(micro.first, micro.first + micro.size)]
    usable = horizon.batches * horizon.batch_size if horizon.drop_last else horizon.samples
    assert seen == [e * horizon.samples + n for e in range(horizon.epochs) for n in range(usable)]
    groups = [list(group) for _, group in groupby(micros, lambda micro: micro.step)]
    assert [group[0].step for group in groups] == list(range(1, horizon.total_steps + 1))
    for group in groups:
        assert abs(sum(micro.share for micro in group) - 1) < 1e-9
        assert [micro.closes for micro in group] == [False] * (len(group) - 1) + [True]


@given(horizons, st.data())
def test_a_resume_begins_where_the_step_ended(horizon, data):
    done = data.draw(st.integers(0, horizon.total_steps - 1))
    assert horizon.micro(horizon.first_micro(done)).step == done + 1


def test_steps_are_epochs_of_whole_groups():
    assert Horizon(2, 10, 2, 2).total_steps == 6  # 5 batches, 3 groups an epoch: not 10 batches in 5 groups
    assert Horizon(1, 9, 2, 1, drop_last=True).total_steps == 4
    assert Horizon.of_steps(7, 4, 3).total_steps == 7


@given(horizons, st.integers(1, 5))
def test_ranks_split_a_batch_into_slices(horizon, processes):
    split = replace(horizon, processes=processes)
    for index in range(horizon.micros):
        whole, parts = horizon.micro(index), [split.micro(index, rank) for rank in range(processes)]
        seen = [number for part in parts for number in range(part.first, part.first + part.size)]
        assert seen == list(range(whole.first, whole.first + whole.size))
        assert sum(part.share for part in parts) == pytest.approx(whole.share, abs=1e-12)
        assert max(part.size for part in parts) - min(part.size for part in parts) <= 1
        for part in parts:
            assert (part.step, part.closes, part.seen) == (whole.step, whole.closes, whole.first + whole.size)
            assert whole.first <= part.first < whole.first + whole.size  # what an empty part computes on is of it
            assert (part.share == 0) == (part.size == 0)


@given(horizons)
def test_one_process_has_the_whole_batch(horizon):
    for index in range(horizon.micros):
        micro = horizon.micro(index)
        usable = min(horizon.batch_size, micro.seen - micro.first)
        assert (micro.size, micro.seen) == (usable, micro.first + micro.size)
