"""The estimate of memory is held against what torch really keeps for a backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainwatch.cli import main
from trainwatch.lint import lint_file
from trainwatch.lint.memory import GIB, Shape, card_of, shape
from trainwatch.lint.sources.files import read_config

SHAPES = [(256, 4, 4, 128, 8, 1000, False), (256, 4, 4, 128, 8, 1000, True), (512, 2, 8, 256, 4, 5000, True)]
LARGE = "hidden_size: 4096\nnum_layers: 32\nblock_size: 2048\nvocab_size: 32000\nbatch_size: 8\nbf16: true\n"
SMALL = "n_embd: 768\nn_layer: 12\nn_head: 12\nblock_size: 1024\nvocab_size: 50304\nbatch_size: 12\ndtype: bfloat16\n"


def kept(width: int, layers: int, heads: int, length: int, batch: int, words: int, half: bool) -> int:
    """Bytes that torch keeps of the activations of its own transformer layers, parameters apart."""
    stack = nn.ModuleList(
        nn.TransformerEncoderLayer(width, heads, 4 * width, activation="gelu", batch_first=True, norm_first=True)
        for _ in range(layers)
    )
    model = nn.ModuleList([nn.Embedding(words, width), stack, nn.Linear(width, words, bias=False)])
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    said = torch.randint(words, (batch, length))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
    ):
        hidden = model[0](said)
        for layer in stack:
            hidden = layer(hidden)
        nn.functional.cross_entropy(model[2](hidden).float().flatten(0, 1), said.flatten())
    return sum(storage.nbytes() for storage in seen.values())


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_torch_keeps_between_the_two_ends(size):
    width, layers, heads, length, batch, words, half = size
    weights = 12 * layers * width**2 + words * width
    told = Shape(weights, width, layers, heads, length, words, batch, 2 if half else 4, False, state=8)
    assert told.low <= (kept(*size) + 4 * weights) / GIB <= told.high


def test_parameters_of_a_known_model(tmp_path):
    """GPT-2 has 124 M, 0.8 M of them positions."""
    path = tmp_path / "gpt2.yaml"
    path.write_text(SMALL)
    told = shape(read_config(path)[0])
    assert told is not None
    assert told.parameters == pytest.approx(124e6, rel=0.02)


def test_a_batch_that_does_not_fit_is_named_with_one_that_does(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_text(LARGE.replace("4096", "2048").replace("32\nblock", "16\nblock").replace("size: 8", "size: 64"))
    [found] = lint_file(path, card=40.0).findings
    assert (found.rule, found.severity, found.evidence["line"]) == ("batch-too-large", "warning", 5)
    fits = found.patch["batch_size"]
    path.write_text(path.read_text().replace("size: 64", f"size: {fits}"))
    assert not [item for item in lint_file(path, card=40.0).findings if item.severity != "info"]


def test_weights_that_may_be_in_16_bit_are_not_said_to_need_32(tmp_path):
    """3 B parameters of 8 bytes with AdamW are 24 GiB, which a card of 40 has room for; in 32 bit they are 48."""
    path = tmp_path / "pure.yaml"
    path.write_text(
        "d_model: 3072\nn_layers: 26\nmax_seq_len: 512\nvocab_size: 32000\nbatch_size: 1\ndtype: bfloat16\n"
    )
    assert {item.severity for item in lint_file(path, card=40.0).findings} == {"info"}
    path.write_text(path.read_text().replace("bfloat16", "float32"))
    [found] = lint_file(path, card=40.0).findings
    assert (found.severity, found.patch) == ("warning", {})
    assert found.evidence["low"] == pytest.approx(3.04e9 * 16 / GIB, rel=0.02)


def test_what_may_fit_is_not_told_a_batch_that_is_as_uncertain(tmp_path):
    path = tmp_path / "gpt2.yaml"
    path.write_text(SMALL)
    [found] = lint_file(path, card=16.0).findings
    assert (found.severity, found.patch) == ("info", {})
    assert found.advice == "If it runs out of memory, halve batch_size and accumulate, or recompute activations."
    path.write_text(SMALL + "gradient_checkpointing: true\n")
    assert not [item for item in lint_file(path, card=10.0).findings if "recompute" in item.advice]


def test_what_fits_on_no_card_is_said(tmp_path):
    path = tmp_path / "huge.yaml"
    path.write_text(LARGE)
    [found] = lint_file(path, card=15.0).findings
    assert "batch of one" in found.advice
    assert found.patch == {}


@pytest.mark.parametrize("more", ["lora_rank: 8\n", "load_in_4bit: true\n"])
def test_adapters_are_left_alone(more, tmp_path):
    path = tmp_path / "lora.yaml"
    path.write_text(LARGE + more)
    assert lint_file(path, card=15.0).findings == ()


def test_a_card_of_the_config_and_of_the_command(tmp_path, capsys):
    path = tmp_path / "named.yaml"
    path.write_text(LARGE + "gpu: T4\n")
    assert [item.rule for item in lint_file(path).findings] == ["batch-too-large"]
    assert lint_file(path, card=2000.0).findings == ()
    assert main(["lint", str(path), "--card", "T5"]) == 2
    assert "did you mean 't4'" in capsys.readouterr().err
    assert main(["lint", str(path), "--card", "A100-80GB"]) == 1


@pytest.mark.parametrize(
    ("said", "gib"), [("T4", 15), ("NVIDIA A100-80GB", 80), ("24", 24), ("24 GB", 24), ("x", None)]
)
def test_cards(said, gib):
    assert card_of(said) == gib
