"""What generation rules share: for how long outputs are bad, and what they were before."""

import pytest

from trainwatch.views.outputs import Decline


def pushed(values, good=0.9, bad=0.5):
    decline = Decline()
    for step, value in enumerate(values, 1):
        decline.push(10 * step, value >= good, value < bad)
    return decline


def test_the_first_bad_sample_is_the_onset_and_one_better_one_is_luck():
    """Two in a row end it."""
    decline = pushed([1, 1, 1, 0.1, 0.1, 0.7, 0.1])
    assert (decline.was_good, decline.first, decline.last, decline.rows) == (True, 40, 70, 3)
    assert pushed([1, 1, 1, 0.1, 0.1, 0.7, 0.7]).rows == 0


@pytest.mark.parametrize(("total", "lasts"), [(100, True), (1000, False), (None, False)])
def test_it_lasts_for_a_part_of_the_run(total, lasts):
    """Or for six samples where nobody knows how long the run is."""
    assert pushed([1, 0.1, 0.1, 0.1]).lasts(total, 0.2) is lasts
    assert pushed([0.1] * 6).lasts(None, 0.2)
