"""The two published tables, as ratios of a run, and how a stage's weights come in."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.curriculum import DEFAULT, EXTENDED, TABLES, curriculum
from trainwatch.header import Curriculum

names, lengths = st.sampled_from(sorted(TABLES)), st.integers(1, 300_000)


@given(names, lengths)
def test_stages_cover_the_run_without_gap_or_overlap(name, steps):
    stages = curriculum(name, steps).stages
    assert stages[0].start == 0
    assert stages[-1].end == steps
    assert all(before.end == after.start for before, after in pairwise(stages))
    assert all(stage.start < stage.end for stage in stages)


def test_the_published_numbers():
    plan = curriculum("DEFAULT", 100_000)
    assert [stage.start for stage in plan.stages] == [1000 * k for k in (0, 8, 16, 22, 28, 38, 50, 62, 76)]
    assert plan.weights(8_000) == {"sequence": 1.0, "spectrum": 0.2, "precursor": 0.2}
    assert plan.weights(7_999)["precursor"] == 0
    extended = curriculum("EXTENDED", 100_000)
    assert max(stage.weights["precursor"] for stage in extended.stages) == 0.08
    assert (plan.lengths(), extended.lengths()) == ((7, 30), (7, 18))


def test_both_begin_alike():
    first, second = (curriculum(name, 1000).stages[0] for name in ("DEFAULT", "EXTENDED"))
    assert (first.data, first.weights) == (second.data, second.weights)
    assert DEFAULT[0][2:] == EXTENDED[0][2:]


@given(names, st.integers(500, 5000))
def test_a_stage_holds_from_its_start_to_before_its_end(name, steps):
    plan = curriculum(name, steps)
    for index, stage in enumerate(plan.stages):
        assert plan.index(stage.start) == plan.index(stage.end - 1) == index
    assert plan.index(steps) == len(plan.stages) - 1


@given(st.sampled_from(["linear", "cosine"]), st.integers(1, 1000))
def test_a_ramp_stays_between_the_stages_and_arrives(ramp, applied):
    plan, sudden = curriculum("DEFAULT", 1000, ramp), curriculum("DEFAULT", 1000)
    index = plan.index(applied)
    before, after = sudden.stages[max(index - 1, 0)].weights, sudden.stages[index].weights
    for name, weight in plan.weights(applied).items():
        assert min(before[name], after[name]) - 1e-9 <= weight <= max(before[name], after[name]) + 1e-9
    assert plan.weights(plan.stages[index].end - 1) == pytest.approx(sudden.weights(plan.stages[index].end - 1))


def test_trainwatch_reads_the_declaration():
    plan = curriculum("EXTENDED", 1000)
    read = Curriculum.parse(plan.declaration())
    assert read is not None
    assert (read.name, len(read.stages), read.ramp) == ("EXTENDED", 10, "step")
    assert all(dict(theirs.weights) == ours.weights for theirs, ours in zip(read.stages, plan.stages, strict=True))


@pytest.mark.parametrize("arguments", [("OTHER", 10), ("DEFAULT", 10, "sudden")])
def test_an_unknown_name_says_what_exists(arguments):
    with pytest.raises(ValueError, match="does not exist; choose one of"):
        curriculum(*arguments)
