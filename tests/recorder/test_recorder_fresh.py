"""Frozen weights: whether they are as an initialisation leaves them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from trainwatch.recorder.header import modules_form


def frozen(module):
    """The header's row of a module that is frozen."""
    return modules_form(nn.ModuleDict({"body": module.requires_grad_(False)}))[0]


LAYERS = {
    "linear": lambda: nn.Linear(64, 96),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)),
    "embedding": lambda: nn.Embedding(70, 24, padding_idx=0),
    "recurrent": lambda: nn.LSTM(24, 80),
    "transformer": lambda: nn.TransformerEncoderLayer(48, 4, 96),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_what_was_never_trained_is_fresh(layer):
    """Flat and normal draws, and what normalisations begin with."""
    torch.manual_seed(0)
    row = frozen(LAYERS[layer]())
    assert row["fresh"] == row["parameters"]


def test_normal_and_orthogonal_draws_are_fresh():
    torch.manual_seed(0)
    for init in (nn.init.orthogonal_, nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.trunc_normal_):
        layer = nn.Linear(100, 50)
        init(layer.weight)
        assert frozen(layer)["fresh"] == 5050


def test_what_was_trained_a_little_is_not():
    """Thirty steps of a classifier on noise that depends on a few of its inputs."""
    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, 2)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(30):
        x = torch.randn(64, 32)
        optimizer.zero_grad()
        functional.cross_entropy(head(body(x)), (x[:, :3].sum(1) > 0).long()).backward()
        optimizer.step()
    assert frozen(copy.deepcopy(body))["fresh"] == 0


def test_nothing_is_said_of_what_is_trained():
    """And a weight of integers breaks nothing."""
    assert "fresh" not in modules_form(nn.ModuleDict({"body": nn.Linear(4, 4)}))[0]
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.uint8), requires_grad=False)
    assert frozen(layer)["fresh"] in (0, 20)


@pytest.mark.parametrize(("bias", "fresh"), [(0.0, True), (0.1, True), (0.3, True), (0.4, False)])
def test_a_small_layer_is_told_by_its_bias(bias, fresh):
    """Few weights say little; a bias beyond the bounds of its layer, 1 / sqrt(8), was trained."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 32)
    with torch.no_grad():
        nn.init.xavier_normal_(layer.weight)
        layer.bias.copy_(torch.linspace(-bias, bias, 32))
    assert bool(frozen(layer)["fresh"]) == fresh
