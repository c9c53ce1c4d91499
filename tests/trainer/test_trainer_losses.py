"""Losses: zero at the truth, bounded where they say so, exact in parts; the model: its size and its blindness."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.curriculum import Corruption
from trainer.horizon import Micro
from trainer.tasks.peptide.chemistry import EOS, ION_TYPES, PAD, VOCABULARY, fragment_mz, neutral_mass
from trainer.tasks.peptide.data import Shape, Spectrum, collate, draw
from trainer.tasks.peptide.encodings import LadderEncoder, MassEncoding, SpectrumGraph, residue_masses
from trainer.tasks.peptide.losses import (
    SUPERVISION,
    UNITS,
    CombinedLoss,
    DeepSupervisionLoss,
    PrecursorMassLoss,
    SpectrumMatchingLoss,
    supervision_weights,
)
from trainer.tasks.peptide.model import SIZES, PeptideModel

SHAPE = Shape(peaks=64, positions=12)
residues = st.lists(st.integers(2, VOCABULARY - 1), min_size=4, max_size=11)


def truth(tokens_BS):
    """Logits that are sure of the truth, and of EOS everywhere after it."""
    said = tokens_BS.masked_fill(tokens_BS == PAD, EOS)
    return torch.nn.functional.one_hot(said, VOCABULARY).float() * 1e4


def batch_of(peptides, ions):
    spectra = []
    for peptide in peptides:
        tokens = np.array(peptide, dtype=np.uint8)
        mz = np.sort(fragment_mz(tokens, ions).ravel())
        heights = np.linspace(0.1, 1.0, mz.size).astype(np.float32)
        spectra.append(Spectrum(mz, heights, neutral_mass(tokens), 2, tokens, 0, np.zeros(0)))
    peaks = max(len(spectrum.mz) for spectrum in spectra)
    return collate(spectra, Shape(peaks, 12), Micro(0, len(spectra), 1, 1.0, True))


@pytest.mark.parametrize("sigma", [0.2, 2.0])
@pytest.mark.parametrize("ion", sorted(ION_TYPES))
@settings(max_examples=5, deadline=None)
@given(peptides=st.lists(residues, min_size=1, max_size=3))
def test_the_spectrum_loss_is_zero_at_the_truth(ion, sigma, peptides):
    batch = batch_of(peptides, [ION_TYPES[ion]])
    loss = SpectrumMatchingLoss(sigma, [ION_TYPES[ion]])(truth(batch.tokens_BS).softmax(-1), batch)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_the_spectrum_loss_sees_a_missing_first_residue():
    batch = batch_of([[5, 9, 3, 8, 4, 11]], [ION_TYPES["b"], ION_TYPES["y"]])
    wrong = batch.tokens_BS.roll(-1, dims=1)
    loss = SpectrumMatchingLoss(0.2, [ION_TYPES["b"], ION_TYPES["y"]])(truth(wrong).softmax(-1), batch)
    assert loss > 0.3


@pytest.mark.parametrize("unit", sorted(UNITS))
@settings(max_examples=10, deadline=None)
@given(peptides=st.lists(residues, min_size=1, max_size=3))
def test_the_precursor_loss_is_zero_at_the_truth(unit, peptides):
    batch = batch_of(peptides, [ION_TYPES["b"]])
    loss, error = PrecursorMassLoss(unit)(truth(batch.tokens_BS).softmax(-1), batch.mass_B)
    assert loss.item() == pytest.approx(0.0, abs=1e-4)
    assert error.abs().max().item() < 1e-6


def test_only_raw_ppm_explodes():
    batch = batch_of([[5, 9, 3, 8, 4, 11]], [ION_TYPES["b"]])
    probability = torch.full((1, 12, VOCABULARY), 1 / VOCABULARY)
    found = {unit: PrecursorMassLoss(unit)(probability, batch.mass_B)[0].item() for unit in UNITS}
    assert found["raw_ppm"] > 1e4
    assert found["clamp_ppm"] == 100
    assert found["huber_residue"] < 20
    assert found["log1p_ppm"] < 3


@pytest.mark.parametrize("kind", SUPERVISION)
def test_supervision_weights_sum_to_one(kind):
    weights = supervision_weights(kind, 8)
    assert weights.sum().item() == pytest.approx(1.0)
    assert weights[-1] == weights.max()
    if kind == "exponential":
        assert weights[-1].item() == pytest.approx(0.401, abs=0.001)


def test_cross_entropy_of_a_guess_is_the_vocabulary_and_pads_do_not_count():
    tokens = torch.tensor([[4, 5, EOS, PAD], [4, EOS, PAD, PAD]])
    logits = torch.zeros(3, 2, 4, VOCABULARY)
    loss, by_step = DeepSupervisionLoss("uniform", 3)(logits, tokens)
    assert loss.item() == pytest.approx(math.log(VOCABULARY))
    assert by_step.shape == (3,)
    logits[:, :, 3] = 1e3
    assert DeepSupervisionLoss("uniform", 3)(logits, tokens)[0].item() == pytest.approx(math.log(VOCABULARY))


def spectra_of(bank, count):
    return [draw(bank, "train", Corruption(7, 11), 0, index, SHAPE) for index in range(count)]


def test_micro_batches_add_up_to_the_large_batch(bank):
    torch.manual_seed(0)
    model, loss = PeptideModel(SIZES["tiny"]), CombinedLoss("linear", 4, "huber_residue", 2.0, {})
    spectra = spectra_of(bank, 5)

    def gradient(groups):
        model.zero_grad()
        for group in groups:
            batch = collate(group, SHAPE, Micro(0, len(group), 1, len(group) / 5, True))
            (sum(loss(model(batch), batch).components.values()) * batch.micro.share).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    whole, parts = gradient([spectra]), gradient([spectra[:2], spectra[2:4], spectra[4:]])
    assert (parts - whole).norm() < 1e-3 * whole.norm()


def test_the_model_never_sees_the_answer(bank):
    torch.manual_seed(0)
    model = PeptideModel(SIZES["tiny"])
    batch = collate(spectra_of(bank, 3), SHAPE, Micro(0, 3, 1, 1.0, True))
    with torch.no_grad():
        first = model(batch)
        batch.tokens_BS.fill_(EOS)
        assert torch.equal(model(batch), first)
    assert first.shape == (4, 3, 12, VOCABULARY)
    assert first.dtype == torch.float32


def test_masses_stay_exact_under_autocast(bank):
    batch = collate(spectra_of(bank, 3), SHAPE, Micro(0, 3, 1, 1.0, True))
    ladder = LadderEncoder(8)
    masses = torch.full((3, 12), 111.0371, dtype=torch.float64)
    graph = SpectrumGraph(batch.mz_BP, batch.present_BP, batch.mass_B, residue_masses())
    exact, sure = MassEncoding()(batch.mz_BP), ladder(graph, masses)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(MassEncoding()(batch.mz_BP), exact)
        assert torch.equal(ladder(graph, masses)[1], sure)
    assert exact.dtype == sure.dtype == torch.float32


@pytest.mark.parametrize(("size", "millions"), [("tiny", 1.07), ("small", 5.64), ("medium", 41.3), ("large", 103.9)])
def test_sizes_have_the_parameters_of_the_table(size, millions):
    with torch.device("meta"):
        model = PeptideModel(SIZES[size])
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.04)


@pytest.mark.parametrize("bptt", ["trm", "full"])
def test_gradients_reach_every_parameter(bank, bptt):
    torch.manual_seed(0)
    model = PeptideModel(SIZES["tiny"], bptt)
    with torch.no_grad():  # residual branches begin silent, which hides what is before them
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    batch = collate(spectra_of(bank, 2), SHAPE, Micro(0, 2, 1, 1.0, True))
    model(batch).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
