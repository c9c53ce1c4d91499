"""A replay of a run that has a value that is not finite: what made it, in which component, of which samples."""

import pytest
import torch

from trainer.__main__ import main
from trainer.commands import replay
from trainer.tasks.peptide import losses


@pytest.fixture
def replayed(settings, capfd):
    """``replayed(**changes)``: train and replay; the exit code of the latter, and its lines by their labels."""

    def run(*asked, **changes):
        assert main(settings(**changes)) == 0
        record = str(next(item for item in settings() if item.startswith("logs=")).removeprefix("logs=")) + "/run.jsonl"
        capfd.readouterr()
        code = main(["replay", record, *asked])
        said = capfd.readouterr().out
        lines = [line.partition(": ") for line in said.splitlines()]
        return code, {label.strip(): text.strip() for label, _, text in lines}, said

    return run


def test_a_blank_scan_is_named_with_its_sample(replayed):
    """The fault poisoned-batch at size tiny: step 6 of 20, from the checkpoint before it."""
    code, told, _ = replayed(fault="poisoned-batch", steps=20, checkpoint__every=0.2, checkpoint__keep=9)
    assert code == 0
    assert told["first not finite"].startswith("step 6 (bad/input, grad_norm")
    assert told["replayed from"] == "the checkpoint of step 4"
    assert told["up to there"].startswith("the same to the last bit through step 5 (1 steps): ")
    assert told["input"] == "24 values of height not finite, as the loader gave them"
    assert told["operation"] == "sqrt made nan (forward; it was given nan)"
    assert told["at"].startswith("in model.encoder.peaks, trainer/tasks/peptide/encodings.py:")
    assert told["component"] == "sequence (its value), spectrum (its value), precursor (its value), halt (its value)"
    assert told["samples"] == "10 (1 of the 2 in its batch, each by itself)"


def test_without_a_checkpoint_it_begins_at_the_start_and_takes_micro_batches(replayed):
    code, told, _ = replayed(fault="poisoned-batch", steps=6, accumulation=2, checkpoint__keep=1)
    assert code == 0
    assert told["replayed from"] == "the start: no checkpoint before it is left"
    assert told["samples"] == "4 (1 of the 2 in its batch, each by itself)"


def test_a_gradient_that_alone_is_not_finite(replayed, monkeypatch):
    """The root of an error of 0: its value is 0, its slope is not."""
    monkeypatch.setattr(losses.PrecursorMassLoss, "_measure", lambda _, error_B, __: torch.sqrt(error_B * 0))
    code, told, _ = replayed(steps=3, checkpoint__every=0.3)
    assert code == 0
    assert told["operation"] == "mul.Tensor in MulBackward0 made nan (backward; it was given inf)"
    assert told["at"].startswith("trainer/tasks/peptide/losses.py:")
    assert told["the inf is of"].startswith("div.Tensor in SqrtBackward0 (backward)")
    assert told["component"] == "precursor (its gradient)"


def test_a_value_that_overflows(replayed):
    code, told, _ = replayed(steps=2, loss__spectrum_scale=1e39)
    assert code == 0
    assert told["replayed from"] == "the start"
    assert told["the inf is of"].startswith("mul.Tensor (forward), trainer/tasks/peptide/losses.py:")
    assert told["component"] == "spectrum (its value)"


def test_weights_that_the_optimiser_broke(replayed):
    code, told, _ = replayed(steps=3, optimizer__lr=1e30, optimizer__warmup=0.0, checkpoint__every=0.3)
    assert code == 0
    assert told["first not finite"].startswith("step 2 (")
    assert "made nan (forward; it was given inf)" in told["operation"]


def test_asked_for_steps_are_compared_as_ever(replayed):
    code, _, said = replayed("--to", "2", fault="poisoned-batch", steps=6)
    assert code == 0  # NaN is the same as NaN
    assert "the same to the last bit through step 2 (2 steps)" in said


def test_a_run_that_comes_out_finite_this_time(replayed, monkeypatch):
    """As one would that was trained on other hardware."""
    monkeypatch.setattr(losses.PrecursorMassLoss, "_measure", lambda _, error_B, __: torch.sqrt(error_B * 0))
    explain = replay._explain

    def mended(*given):
        monkeypatch.setattr(losses.PrecursorMassLoss, "_measure", lambda _, error_B, __: error_B * 0)
        return explain(*given)

    monkeypatch.setattr(replay, "_explain", mended)
    code, told, _ = replayed(steps=2)
    assert code == 1
    assert told["this time"].startswith("finite; ")
