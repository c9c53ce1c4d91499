"""Losses: zero at the truth, bounded where they say so, exact in parts, and wrong where a mistake is switched on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config import UsageError
from trainer.curriculum import Corruption
from trainer.horizon import Micro
from trainer.loading import load
from trainer.run import build
from trainer.tasks.peptide.chemistry import (
    EOS,
    FIRST_RESIDUE,
    ION_TYPES,
    PAD,
    RESIDUE_MASS,
    VOCABULARY,
    fragment_mz,
    neutral_mass,
)
from trainer.tasks.peptide.data import Shape, Spectrum, collate, draw
from trainer.tasks.peptide.encodings import LadderEncoder, MassEncoding, SpectrumGraph, residue_masses
from trainer.tasks.peptide.losses import (
    SUPERVISION,
    UNITS,
    CombinedLoss,
    DeepSupervisionLoss,
    PrecursorMassLoss,
    SpectrumMatchingLoss,
    halting_loss,
    living,
    merged_details,
    right,
    supervision_weights,
)
from trainer.tasks.peptide.model import Answers
from trainer.tasks.peptide.spectra import SERIES

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
        spectra.append(Spectrum(mz, heights, neutral_mass(tokens), 2, tokens, 0, np.zeros(0), np.ones(len(tokens))))
    peaks = max(len(spectrum.mz) for spectrum in spectra)
    return collate(spectra, Shape(peaks, 12), Micro(0, len(spectra), 1, 1.0, True))


ion_types = st.lists(st.sampled_from(sorted(ION_TYPES)), min_size=1, max_size=6, unique=True)


@pytest.mark.parametrize("sigma", [0.2, 2.0])
@settings(max_examples=60, deadline=None)
@given(names=ion_types, peptides=st.lists(residues, min_size=1, max_size=3))
def test_the_spectrum_loss_is_zero_at_the_truth(sigma, names, peptides):
    ions = [ION_TYPES[name] for name in names]
    batch = batch_of(peptides, ions)
    loss = SpectrumMatchingLoss(sigma, ions)(truth(batch.tokens_BS).softmax(-1), batch)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("ion", sorted(ION_TYPES))
def test_every_ion_type_is_looked_for(ion):
    batch = batch_of([[5, 9, 3, 8, 4, 11]], [ION_TYPES[ion]])
    others = [other for name, other in ION_TYPES.items() if name != ion]
    assert SpectrumMatchingLoss(0.01, others)(truth(batch.tokens_BS).softmax(-1), batch) > 0.5


@pytest.mark.parametrize("sigma", [0.2, 2.0])
@settings(max_examples=20, deadline=None)
@given(peptides=st.lists(st.lists(st.integers(2, VOCABULARY - 1), min_size=7, max_size=11), min_size=1, max_size=3))
def test_a_dropped_first_residue_costs_even_at_the_truth(sigma, peptides):
    batch = batch_of(peptides, SERIES)
    probability = truth(batch.tokens_BS).softmax(-1)
    assert SpectrumMatchingLoss(sigma, first=1)(probability, batch) > 0.1
    assert SpectrumMatchingLoss(sigma)(probability, batch).item() == pytest.approx(0.0, abs=1e-6)


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


def gradients(unit, logits, batch):
    """Norms at the logits of the precursor's gradient and of the cross-entropy's."""
    logits = logits.clone().requires_grad_()
    precursor, _ = PrecursorMassLoss(unit)(logits.softmax(-1), batch.mass_B)
    sequence, _ = DeepSupervisionLoss("uniform", 1)(logits[None], batch.tokens_BS)
    return [torch.autograd.grad(loss, logits, retain_graph=True)[0].norm().item() for loss in (precursor, sequence)]


@pytest.mark.parametrize("sureness", [0.0, 2.0, 4.0])
def test_the_unit_decides_how_loud_the_precursor_is_beside_cross_entropy(sureness):
    torch.manual_seed(0)
    peptides = [torch.randint(2, VOCABULARY, (length,)).tolist() for length in (7, 8, 9, 10, 11, 11)]
    batch = batch_of(peptides, [ION_TYPES["b"]])
    logits = sureness * (truth(batch.tokens_BS) > 0) + torch.randn(6, 12, VOCABULARY)
    ratio = {unit: norm / other for unit in UNITS for norm, other in [gradients(unit, logits, batch)]}
    assert 0.1 < ratio["huber_residue"] < 10
    assert 0.1 < ratio["log1p_ppm"] < 10
    assert 1e4 < ratio["raw_ppm"] < 1e6
    assert ratio["clamp_ppm"] == 0  # every error is beyond 100 ppm: a constant, without a way down


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 100.0))
def test_no_answer_is_so_wrong_that_the_default_precursor_loss_explodes(seed, scale):
    logits = scale * torch.randn(1, 12, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    assert gradients("huber_residue", logits, batch_of([[2] * 7], [ION_TYPES["b"]]))[0] < 25


def test_mass_after_the_end_counts_only_by_mistake():
    batch = batch_of([[5, 9, 3, 8]], [ION_TYPES["b"]])
    logits = truth(batch.tokens_BS)
    logits[:, 5:] = logits[:, :1]  # what follows EOS is free to say anything
    probability = logits.softmax(-1)
    assert PrecursorMassLoss()(probability, batch.mass_B)[1].abs().item() < 1e-6
    leaked = PrecursorMassLoss(soft_stop=False)(probability, batch.mass_B)[1].item()
    assert leaked == pytest.approx(7 * RESIDUE_MASS[8], rel=1e-6)


@settings(deadline=None)
@given(kind=st.sampled_from(SUPERVISION), steps=st.integers(1, 32))
def test_supervision_weights_sum_to_one(kind, steps):
    weights = supervision_weights(kind, steps)
    assert weights.sum().item() == pytest.approx(1.0)
    assert weights[-1] == weights.max()


def test_the_last_step_of_exponential_supervision_has_two_fifths():
    assert supervision_weights("exponential", 8)[-1].item() == pytest.approx(0.401, abs=0.001)


def test_an_answer_is_right_if_all_of_it_is_up_to_its_end():
    tokens = torch.tensor([[4, 5, EOS, PAD]])
    said = torch.tensor([[4, 5, EOS, 9], [4, 5, 9, EOS], [4, 6, EOS, EOS]])
    logits = torch.nn.functional.one_hot(said, VOCABULARY).float().unsqueeze(1)
    assert right(logits, tokens).tolist() == [[True], [False], [False]]


def test_halting_is_told_to_say_which_answers_are_right():
    halt_TB = torch.tensor([[-2.0, 3.0], [1.0, -4.0]])
    right_TB = torch.tensor([[False, True], [False, True]])
    loss = halting_loss(halt_TB, right_TB, torch.tensor([0.25, 0.75]))
    softplus = [math.log1p(math.exp(x)) for x in (-2.0, -3.0, 1.0, 4.0)]
    assert loss.item() == pytest.approx(0.25 * (softplus[0] + softplus[1]) / 2 + 0.75 * (softplus[2] + softplus[3]) / 2)


def answers_of(logits_TBSV, halt_TB=None):
    return Answers(logits_TBSV, halt_TB, logits_TBSV)


def test_halting_depth_is_the_first_step_that_says_so():
    batch = batch_of([[5, 9, 3, 8]] * 3, [ION_TYPES["b"]])
    logits = truth(batch.tokens_BS).expand(3, -1, -1, -1)
    halt = torch.tensor([[-1.0, 1.0, -1.0], [-1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]])
    found = CombinedLoss("uniform", 3, "huber_residue", 2.0, {})(answers_of(logits, halt), batch)
    assert found.details["halt/depth"].item() == pytest.approx((3 + 1 + 2) / 3)
    assert found.details["halt/accuracy"].item() == pytest.approx(4 / 9)  # every answer is right, four say so
    assert set(found.measures()) >= {"loss/halt", "halting_depth", "halting_accuracy"}


def test_residues_without_evidence_count_only_where_they_are_asked_for():
    batch = batch_of([[5, 9, 3, 8], [4, 6, 7, 2, 3]], [ION_TYPES["b"]])
    batch.confidence_BS[0, 1:3] = 0.5
    loss, logits = CombinedLoss("uniform", 1, "huber_residue", 2.0, {}), torch.randn(1, 2, 12, VOCABULARY)
    noisy = logits.clone()
    noisy[0, 0, 1:3] += torch.randn(2, VOCABULARY)
    whole, masked = loss(answers_of(logits), batch), loss(answers_of(logits), batch, confidence=0.75)
    assert whole.components["sequence"] != loss(answers_of(noisy), batch).components["sequence"]
    assert masked.components["sequence"] == loss(answers_of(noisy), batch, confidence=0.75).components["sequence"]
    assert masked.details["data/masked/sequence"].item() == pytest.approx((2 / 4 + 0) / 2)
    assert "data/masked/sequence" not in whole.details
    batch.confidence_BS.masked_fill_(batch.tokens_BS > EOS, 0.0)  # even then the end counts
    ends = logits[0].log_softmax(-1)[[0, 1], [4, 5], EOS]
    found = loss(answers_of(logits), batch, confidence=1.0).components["sequence"]
    assert found.item() == pytest.approx(-ends.mean().item(), rel=1e-6)


def test_details_of_a_step_are_those_of_all_its_micro_batches():
    first = {"x": torch.tensor(2.0), "absmax/logits": torch.tensor(5.0)}
    second = {"x": torch.tensor(5.0), "absmax/logits": torch.tensor(3.0)}
    found = merged_details([(first, 2 / 3), (second, 1 / 3)])
    assert {name: value.item() for name, value in found.items()} == pytest.approx({"x": 3.0, "absmax/logits": 5.0})
    assert merged_details([(second, 1.0)]) is second


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


def test_masses_in_half_precision_lose_the_ladder(bank):
    spectrum = spectra_of(bank, 1)[0]
    batch = collate([spectrum], SHAPE, Micro(0, 1, 1, 1.0, True))
    residue_BS = torch.from_numpy(RESIDUE_MASS)[batch.tokens_BS]
    hits = []
    for masses in (torch.float64, torch.bfloat16):
        graph = SpectrumGraph(batch.mz_BP, batch.present_BP, batch.mass_B, residue_masses(), masses)
        evidence = LadderEncoder(8, masses)(graph, residue_BS)[1][0]
        true = evidence[torch.arange(len(spectrum.tokens)), batch.tokens_BS[0, : len(spectrum.tokens)] - FIRST_RESIDUE]
        hits.append((true > 1.0).float().mean().item())
    assert hits[0] > 0.9
    assert hits[1] < 0.5
    near = torch.tensor([1000.0, 1001.0], dtype=torch.float64)
    assert torch.equal(*MassEncoding(torch.bfloat16)(near))
    assert not torch.allclose(*MassEncoding()(near))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loss.halting_weight=0", "loss.halting_weight is 0, but .* write model.halting=false"),
        ("loss.confidence=1.5", "loss.confidence is 1.5; write a number from 0"),
        ("loss.confidence=-1", "loss.confidence is -1; write a number from 0"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(override, words):
    with pytest.raises(UsageError, match=words):
        load([], [override])


def test_mistakes_are_switched_on_by_name(config):
    healthy = build(config())
    assert (healthy.model.masses, healthy.loss.spectrum.first, healthy.loss.precursor.soft_stop) == (
        torch.float64,
        0,
        True,
    )
    named = ("half_precision_masses", "first_residue_dropped", "mass_after_end")
    sick = build(config(**{f"mistakes__{name}": True for name in named}))
    assert (sick.model.masses, sick.loss.spectrum.first, sick.loss.precursor.soft_stop) == (torch.bfloat16, 1, False)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_answer_lives_until_it_ends(dtype):
    end_BS = torch.tensor([[0.0, 0.25, 0.5, 1.0, 0.3], [1e-9, 1 - 1e-7, 1e-3, 0.9, 1.0]], dtype=dtype)
    probability_BSV = torch.zeros(2, 5, VOCABULARY, dtype=dtype)
    probability_BSV[..., EOS] = end_BS
    alive = living(probability_BSV.requires_grad_())
    torch.testing.assert_close(alive, (1.0 - end_BS).cumprod(1), rtol=1e-5, atol=2e-7)
    alive.sum().backward()
    assert probability_BSV.grad.isfinite().all()
