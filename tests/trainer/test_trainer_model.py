"""The model: its size, its blindness, how far its gradients reach, its heads and its twins (plain, compiled)."""

import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from trainer.config import UsageError
from trainer.curriculum import Corruption
from trainer.horizon import Micro
from trainer.run import build
from trainer.tasks.peptide.bank import Bank
from trainer.tasks.peptide.chemistry import EOS, VOCABULARY
from trainer.tasks.peptide.data import Shape, collate, draw
from trainer.tasks.peptide.layers import compile_blocks
from trainer.tasks.peptide.losses import CombinedLoss
from trainer.tasks.peptide.model import SIZES, PeptideModel, Size, carry_cuts
from trainer.tasks.peptide.plain import PlainModel

SHAPE = Shape(peaks=64, positions=12)
MINI = Size(width=16, heads=2, encoder_layers=1, core_layers=1, supervision_steps=3, latent_steps=2)
WEIGHTS = {"sequence": 1.0, "spectrum": 0.6, "precursor": 1.0, "halt": 0.5}


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Batches of the first spectra of a stream, by their number."""
    bank = Bank(tmp_path_factory.mktemp("data"), "theoretical", 0, 50)

    def of(count):
        spectra = [draw(bank, "train", Corruption(7, 11), 0, index, SHAPE) for index in range(count)]
        return collate(spectra, SHAPE, Micro(0, count, 1, 1.0, True))

    return of


def awake(model):
    """The model with every weight moved: fresh residual branches and the halting head hide what is behind them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("size", "count"), [("tiny", 1_090_950), ("small", 5_622_662), ("medium", 40_804_102), ("large", 102_718_342)]
)
def test_sizes_have_their_parameters(size, count):
    with torch.device("meta"):
        model = PeptideModel(SIZES[size])
    halting_head = SIZES[size].width + 1
    assert sum(p.numel() for p in model.parameters()) == count + halting_head


def test_every_matrix_is_a_layer_of_its_own():
    square = {"own.key", "own.value", "attention.query", "attention.out", "cross.query", "cross.out"}
    found = dict(PeptideModel(MINI).core.blocks[0].named_parameters())
    assert {name for name, p in found.items() if p.shape == (16, 16)} == {f"{name}.weight" for name in square}
    assert {tuple(found[f"feed.{name}.weight"].shape) for name in ("gate", "up")} == {(64, 16)}


@pytest.mark.parametrize("kind", [PeptideModel, PlainModel])
def test_the_model_never_sees_the_answer(batches, kind):
    model, batch = awake(kind(MINI)), batches(3)
    with torch.no_grad():
        first = model(batch).logits_TBSV
        batch.tokens_BS.fill_(EOS)
        assert torch.equal(model(batch).logits_TBSV, first)
    assert first.shape == (model.supervision_steps, 3, 12, VOCABULARY)
    assert first.dtype == torch.float32


@pytest.mark.parametrize("made", [PeptideModel, lambda size: PeptideModel(size, "full"), PlainModel])
def test_gradients_reach_every_parameter(batches, made):
    model, batch = awake(made(MINI)), batches(2)
    answers = model(batch)
    told = [answers.logits_TBSV, *([] if answers.halt_TB is None else [answers.halt_TB])]
    sum(value.square().mean() for value in told).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def reached(model, batch, step):
    """Numbers of the core's passes, from 1, that the gradient of one answer goes through."""
    passes, think = [], model.core._think

    def recorded(*arguments):
        passes.append(think(*arguments))
        passes[-1].retain_grad()
        return passes[-1]

    model.core._think = recorded
    model(batch).at[step].sum().backward()
    return [number for number, output in enumerate(passes, 1) if output.grad is not None and output.grad.any()]


@settings(max_examples=25, deadline=None)
@given(k=st.integers(1, 11), step=st.integers(1, 3))
def test_gradients_go_back_through_k_passes_and_no_more(batches, k, step):
    found = reached(PeptideModel(MINI, str(k)), batches(1), step - 1)
    answer = 3 * step
    assert found == list(range(answer - len(found) + 1, answer + 1))
    chunk = math.ceil(k / 3)
    if (3 - step) % chunk == 0:  # the last answer of its chunk
        assert len(found) == min(k, answer)
    else:
        assert len(found) < k


@pytest.mark.parametrize(("name", "passes"), [("trm", "3"), ("full", "9"), ("full", "100")])
def test_names_are_numbers_of_passes(batches, name, passes):
    batch, found = batches(2), []
    for bptt in (name, passes):
        torch.manual_seed(0)
        model = awake(PeptideModel(MINI, bptt))
        model(batch).logits_TBSV.square().mean().backward()
        found.append(gradients(model))
    assert all(torch.equal(found[0][parameter], found[1][parameter]) for parameter in found[0])


def test_how_far_gradients_reach_matters(batches):
    batch, found = batches(2), []
    for bptt in ("1", "2", "trm", "5", "full"):
        torch.manual_seed(0)
        model = awake(PeptideModel(MINI, bptt))
        model(batch).logits_TBSV.square().mean().backward()
        found.append(model.core.blocks[0].feed.down.weight.grad)
    assert all(not torch.allclose(a, b, rtol=1e-3) for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("bptt", ["0", "-1", "half", "1.5", ""])
def test_an_unknown_bptt_says_what_exists(bptt):
    with pytest.raises(ValueError, match=f"model.bptt '{bptt}' does not exist; choose trm, full or a number"):
        carry_cuts(bptt, MINI)


def test_a_fresh_halting_head_says_no_and_changes_nothing_else(batches):
    torch.manual_seed(0)
    model = PeptideModel(MINI)
    torch.manual_seed(0)
    without, batch = PeptideModel(MINI, halting=False), batches(2)
    answers, others = model(batch), without(batch)
    assert torch.equal(answers.logits_TBSV, others.logits_TBSV)
    assert others.halt_TB is None
    assert others.at is others.logits_TBSV
    assert torch.equal(answers.halt_TB, torch.full((3, 2), -5.0))
    assert answers.at.shape == (3, 2, 12, 16)


def test_micro_batches_add_up_to_the_large_batch(batches):
    torch.manual_seed(0)
    model, loss = PeptideModel(SIZES["tiny"]), CombinedLoss("linear", 4, "huber_residue", 2.0, {})
    whole = batches(5)
    tensors = {name: value for name, value in vars(whole).items() if isinstance(value, torch.Tensor)}

    def gradient(*bounds):
        model.zero_grad()
        for start, stop in bounds:
            part = type(whole)(**{n: v[start:stop] for n, v in tensors.items()}, facts={}, micro=whole.micro)
            (sum(loss(model(part), part).components.values()) * (stop - start) / 5).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    once, parts = gradient((0, 5)), gradient((0, 2), (2, 4), (4, 5))
    assert (parts - once).norm() < 1e-3 * once.norm()


def gap(answers, found):
    """How far the components' gradients at `at` are from adding up to that of their sum, relative."""
    terms = [WEIGHTS[name] * value for name, value in found.components.items()]
    parts = [torch.autograd.grad(term, answers.at, retain_graph=True)[0] for term in terms]
    whole = torch.autograd.grad(sum(terms), answers.at)[0]
    assert all(part.norm() > 0 for part in parts)
    return ((sum(parts) - whole).norm() / whole.norm()).item()


@pytest.mark.parametrize("halting", [True, False])
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-6), ("fp64", 1e-12), ("bf16 autocast", 1e-6)])
def test_components_gradients_add_up(batches, halting, precision, most):
    torch.manual_seed(0)
    model, batch = awake(PeptideModel(MINI, halting=halting)), batches(4)
    loss = CombinedLoss("uniform", 3, "huber_residue", 2.0, {})
    if precision == "fp64":
        model, loss = model.double(), loss.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16 autocast"):
        answers = model(batch)
    assert answers.at.dtype == answers.logits_TBSV.dtype == (torch.float64 if precision == "fp64" else torch.float32)
    assert gap(answers, loss(answers, batch)) <= most


def test_the_plain_twin_has_equal_flops_and_trains(batches):
    torch.manual_seed(0)
    twins, batch, flops = (PeptideModel(SIZES["tiny"]), PlainModel(SIZES["tiny"])), batches(2), []
    for model in twins:
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            model(batch)
        flops.append(counted.get_total_flops())
    assert flops[1] == pytest.approx(flops[0], rel=0.04)
    plain, loss = twins[1], CombinedLoss("uniform", 1, "huber_residue", 2.0, {})
    assert len(plain.core) == 24
    optimizer, values = torch.optim.AdamW(plain.parameters(), lr=1e-3), []
    for _ in range(10):
        found = loss(plain(batch), batch).components
        assert "halt" not in found
        values.append(found["sequence"].item())
        found["sequence"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert values[-1] < 0.75 * values[0]


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of torch's own code
def test_compiled_blocks_are_the_same_model(batches):
    torch.manual_seed(0)
    size, batch = Size(32, 2, 0, 1, 2, 1), batches(2)  # no encoder layer: compiling one kind of block takes long enough
    eager, loss = awake(PeptideModel(size)), CombinedLoss("uniform", 2, "huber_residue", 2.0, {})
    compiled = PeptideModel(size)
    compile_blocks(compiled)
    compiled.load_state_dict(eager.state_dict())
    found = []
    for model in (eager, compiled):
        answers = model(batch)
        components = loss(answers, batch).components
        sum(components.values()).backward(retain_graph=True)
        sum(components.values()).backward()
        found.append((components, gradients(model)))
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value, rtol=1e-5, atol=1e-6)
    for name, gradient in found[0][1].items():
        assert (found[1][1][name] - gradient).norm() < 1e-4 * gradient.norm()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__kind": "deep"}, "model.kind 'deep' does not exist; choose recursive or plain"),
        ({"model__bptt": "none"}, "model.bptt 'none' does not exist; choose trm, full or a number of core passes"),
    ],
)
def test_a_model_that_does_not_exist_is_one_sentence(config, changes, words):
    with pytest.raises(UsageError, match=words):
        build(config(**changes))


def test_the_record_tells_of_the_halting_head(trained, steps_of):
    _, records = trained(steps=2, accumulation=2, loss__halting_weight=0.25)
    head, rows = records[0], steps_of(records)
    assert head["components"]["halt"] == {
        "unit": "nat",
        "role": "auxiliary",
        "description": "binary cross-entropy of whether the answer of a step is right",
    }
    assert head["gradient_at"].startswith("answers of all supervision steps")
    for plan in ("curriculum", "curriculum_running"):
        assert all(stage["weights"]["halt"] == 0.25 for stage in head[plan]["stages"])
    assert [row["weight/halt"] for row in rows] == [0.25, 0.25]
    assert rows[0]["loss/halt"] == pytest.approx(math.log1p(math.exp(-5)), rel=1e-4)
    assert rows[0]["halt/depth"] == 4
    last = [record for record in records if record["kind"] == "eval"][-1]
    assert (last["metric/halting_depth"], last["metric/halting_accuracy"]) == (4, 1)
    assert next(name for name in last if name.startswith("metric/")) == "metric/token_accuracy"


@pytest.mark.parametrize("changes", [{"model__halting": False}, {"model__kind": "plain"}])
def test_a_model_with_one_head_is_recorded_at_its_logits(changes, trained, steps_of):
    _, records = trained(steps=1, **changes)
    assert records[0]["gradient_at"].startswith("logits")
    assert "halt" not in records[0]["components"]
    assert not any("halt" in name for name in steps_of(records)[0])
