"""The arithmetic of a run's length: every sample once, no group dropped, shares that sum to one."""

from itertools import groupby

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
