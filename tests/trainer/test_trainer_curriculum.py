"""The two published tables, as ratios of a run, and how a stage's weights come in."""

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import Config
from trainer.curriculum import DEFAULT, EXTENDED, FACTORS, TABLES, curriculum
from trainer.faults import running
from trainer.loading import load
from trainwatch.header import Curriculum

names, lengths = st.sampled_from(sorted(TABLES)), st.integers(1, 300_000)
ablations = st.lists(st.sampled_from(FACTORS), unique=True)
FIELDS = {
    "length": ("shortest", "longest"),
    "noise": ("noise_peaks", "dropout", "ppm_error", "intensity_error"),
    "weights": ("sequence", "spectrum", "precursor"),
}


def numbers(stage):
    """All that a stage asks for, by name."""
    return {**asdict(stage.data), **stage.weights}


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


@given(names, st.sampled_from(["linear", "cosine"]), st.integers(1, 5000))
def test_a_ramp_reaches_its_stage_exactly(name, ramp, steps):
    plan = curriculum(name, steps, ramp)
    for stage in plan.stages:
        arrived = -(-(stage.start + stage.end) // 2)  # half-way through
        if arrived < stage.end:
            assert plan.weights(arrived) == plan.weights(stage.end - 1) == stage.weights


@given(names, ablations, lengths)
def test_only_the_factors_that_are_asked_for_change(name, factors, steps):
    plan, whole = curriculum(name, steps, "step", factors), curriculum(name, steps)
    held = {field for factor in FACTORS if factor not in factors for field in FIELDS[factor]}
    first, published = numbers(plan.stages[0]), [numbers(stage) for stage in whole.stages]
    assert [(s.start, s.end) for s in plan.stages] == [(s.start, s.end) for s in whole.stages]
    for stage, full in zip(plan.stages, published, strict=True):
        for field, value in numbers(stage).items():
            assert value == (first if field in held else full)[field]
    assert held | {field for factor in factors for field in FIELDS[factor]} == set(first)


@given(names, ablations)
def test_what_is_left_out_begins_as_published_and_is_another_curriculum(name, factors):
    plan, whole = curriculum(name, 1000, "step", factors), curriculum(name, 1000)
    assert numbers(plan.stages[0]) == numbers(whole.stages[0])
    assert (plan.sha256 == whole.sha256) == (len(factors) == len(FACTORS))


@pytest.mark.parametrize("factor", FACTORS)
def test_each_ablation_keeps_one_factor(factor):
    path = Path(__file__).parents[2] / "configs" / "ablations" / f"{factor}-only.yaml"
    config, _ = load([str(path)], ["curriculum=DEFAULT"])
    assert config.curriculum_factors == [factor]
    assert running(config) == curriculum("DEFAULT", config.horizon().total_steps, "step", [factor])


def test_all_factors_unless_asked():
    assert tuple(Config().curriculum_factors) == FACTORS


@given(names, st.integers(1, 200_000))
def test_absolute_steps_do_not_ask_how_long_the_run_is(name, steps):
    config = Config(steps=steps, curriculum=name, curriculum_steps=100_000)
    assert running(config) == curriculum(name, 100_000)
    assert running(config).index(200_000) == len(TABLES[name]) - 1


def test_trainwatch_reads_the_declaration():
    plan = curriculum("EXTENDED", 1000)
    read = Curriculum.parse(plan.declaration())
    assert read is not None
    assert (read.name, len(read.stages), read.ramp) == ("EXTENDED", 10, "step")
    assert all(dict(theirs.weights) == ours.weights for theirs, ours in zip(read.stages, plan.stages, strict=True))


@pytest.mark.parametrize("arguments", [("OTHER", 10), ("DEFAULT", 10, "sudden"), ("DEFAULT", 10, "step", ["lengths"])])
def test_an_unknown_name_says_what_exists(arguments):
    with pytest.raises(ValueError, match="does not exist; choose one of"):
        curriculum(*arguments)


def test_an_unknown_factor_names_the_nearest():
    with pytest.raises(ValueError, match=r"curriculum_factors 'weigths' does not exist; .* \(nearest: weights\)"):
        curriculum("DEFAULT", 10, "step", ["weigths"])
