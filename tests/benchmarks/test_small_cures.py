"""Cures of the small programs: a patch is trained with, and what it is worth is the arithmetic that it says it is."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from small_cures import Cured, again

from benchmarks.diagnosis import corpus, patched
from benchmarks.diagnosis.corpus import Case

QUICK = 10  # steps of a trial
CASE = Case("codebook", "rate-too-high", 0, healthy=False)


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(corpus.found()["codebook"], "STEPS", QUICK)


@pytest.mark.usefixtures("brief")
def test_a_patch_is_in_the_config_and_in_the_training():
    """The rate of the mistake, the limit and the weights that were, and what the patch makes of the first and last."""
    told = patched.config(CASE)
    run = again(CASE, {"lr": told["lr"] / 100, "weight_commitment": told["weight_commitment"] / 2})
    assert run.header.config["lr"] == pytest.approx(0.006)
    assert np.nanmax(run.train["lr/0"]) == pytest.approx(0.006)
    assert run.train["weight/commitment"] == pytest.approx(run.header.config["weight_commitment"])
    assert run.header.config["weight_commitment"] == told["weight_commitment"] / 2
    assert again(CASE, {}).header.config == told


@pytest.mark.usefixtures("brief")
def test_what_the_program_has_no_place_for_is_said():
    for path in ("momentum", "curriculum.stages"):
        with pytest.raises(patched.CannotApplyError, match=path):
            again(CASE, {path: 1})


def test_a_plan_takes_the_patch_for_its_own_case_alone():
    program, case = corpus.found()["digits_cnn"], Case("digits_cnn", "rate-too-high", 0, healthy=False)
    before = dict(program.CASES)
    with patched.patched(case, {"lr": 0.1, "clip": 2.0}):
        assert before | {"rate-too-high": {"rate": 0.1, "clip": 2.0}} == program.CASES
    assert before == program.CASES
    with pytest.raises(patched.CannotApplyError, match="batch"), patched.patched(case, {"batch": 4}):
        pass


def test_cured_is_healthy_and_near_the_twin():
    """The twin comes down from 3 to 1: a tenth of that is 0.2, a twentieth 0.1."""
    well, broken = SimpleNamespace(worst=None, status="finished"), SimpleNamespace(worst=None, status="failed")
    one = Cured(CASE, well, well, (2.5, 1.19, 1.0), 3.0)
    assert one.cured
    assert one.missing == pytest.approx(0.095)
    assert not replace(one, levels=(2.5, 1.3, 1.0)).cured
    assert not replace(one, after=broken).cured
    assert replace(one, levels=(2.5, 2.7, 1.0)).worse
    assert not replace(one, levels=(2.5, 2.59, 1.0)).worse
    assert not replace(one, levels=(np.inf, np.inf, 1.0)).worse
