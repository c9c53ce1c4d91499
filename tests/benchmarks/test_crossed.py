"""Mistakes in programs that do not list them: what is drawn, trained, and counted."""

from __future__ import annotations

import pytest

from benchmarks.diagnosis import corpus
from benchmarks.diagnosis.corpus import Case
from benchmarks.diagnosis.crossed import FRESH, STRENGTHS, Draw, crossed, drawn, heard, show_sound, sound
from benchmarks.diagnosis.mistakes import MISTAKES


def test_a_draw_is_repeatable_and_never_a_training_that_the_corpus_has() -> None:
    draws = drawn(120, 5, [], [])
    assert draws == drawn(120, 5, [], [])
    assert draws != drawn(120, 6, [], [])
    for draw in draws:
        program = corpus.found()[draw.program]
        assert not program.HELD_OUT
        assert draw.kind not in program.SICK
        assert draw.variant in program.HEALTHY


def test_kinds_and_programs_can_be_chosen() -> None:
    draws = drawn(50, 0, ["killed"], ["vae", "pinn"])
    assert {(draw.kind, draw.program) for draw in draws} <= {("killed", "vae"), ("killed", "pinn")}


def test_strengths_are_of_mistakes_that_take_them() -> None:
    for kind, tried in STRENGTHS.items():
        for strength in tried:
            names = MISTAKES[kind].__code__.co_varnames[: MISTAKES[kind].__code__.co_argcount]  # type: ignore[attr-defined]
            assert {*strength} <= {*names}, kind


@pytest.mark.parametrize("program", ["pinn"])
def test_a_mistake_is_trained_judged_and_its_harm_measured(program: str) -> None:
    found = crossed(Draw("rate-zero", program, "plain", (), 0))
    assert found is not None
    assert found.counts
    assert found.harm == pytest.approx(1, abs=0.3)  # nothing at all was learned
    assert found.verdict.root == "lr-zero"


def test_a_program_without_a_place_for_a_mistake_has_none() -> None:
    assert crossed(Draw("skips-counted", "survival", "plain", (), 0)) is None  # it has no scaler


def test_healthy_ones_are_drawn_from_seeds_that_no_stored_training_has() -> None:
    cases = sound(40, 3, [])
    assert cases == sound(40, 3, [])
    assert min(case.seed for case in cases) >= FRESH
    assert all(case.healthy and case.name in corpus.found()[case.program].HEALTHY for case in cases)


def test_a_healthy_one_is_heard_at_its_end_and_while_it_ran(capsys: pytest.CaptureFixture[str]) -> None:
    told = heard(Case("pinn", "plain", 1234, healthy=True))
    assert told.healthy
    show_sound([told])
    assert "1 healthy trainings from fresh seeds: 0 alarmed at their end, 0 while they ran" in capsys.readouterr().out
