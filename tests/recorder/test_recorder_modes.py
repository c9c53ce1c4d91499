"""training_mode: what draws or learns while a model is evaluated, since nobody called eval()."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import trainwatch

MODE = "training_mode/"
pytestmark = pytest.mark.usefixtures("nothing_compiled")


class Net(nn.Module):
    """Dropout, batch norm, and a method of its own beside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Dropout(0.0))
        self.head = nn.Linear(8, 2)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.head(self.features(x))


def told(path):
    """What each evaluation tells of modes."""
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return [
        {name.removeprefix(MODE): value for name, value in row.items() if name.startswith(MODE)}
        for row in rows
        if row["kind"] == "eval"
    ]


def evaluated(path, model, measure, *, phase="eval", given=None):
    with trainwatch.Recorder(path) as watch:
        watch.attach(model if given is None else given)
        with watch.phase(phase), torch.no_grad():
            measure(model)
        watch.evaluate(1, "validation", {"loss": 1.0})
    return told(path)


def forgotten(model):
    model.train()
    model(torch.randn(3, 4))


def proper(model):
    """All within the phase, as in most training scripts."""
    model.eval()
    model(torch.randn(3, 4))
    model.train()


def by_a_part(model):
    model.train()
    model.features(torch.randn(3, 4))


def monte_carlo(model):
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    model(torch.randn(3, 4))


def both(model):
    forgotten(model)
    proper(model)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (forgotten, {"dropout": 1, "batch_norm": 1}),
        (by_a_part, {"dropout": 1, "batch_norm": 1}),
        (proper, {"dropout": 0, "batch_norm": 0}),
        (monte_carlo, {"dropout": 0, "batch_norm": 0}),
        (both, {"dropout": 0, "batch_norm": 0}),
        (lambda _: None, {}),
    ],
)
def test_it_is_told_what_was_in_training_mode(tmp_path, measure, expected):
    assert evaluated(tmp_path / "run.jsonl", Net(), measure) == [expected]


@pytest.mark.parametrize("wrap", [lambda net: {"net": net}, lambda net: nn.Sequential(net)])
def test_several_models_and_wrapped_ones_are_looked_at(tmp_path, wrap):
    net = Net()
    measured = evaluated(tmp_path / "run.jsonl", net, forgotten, given=wrap(net))
    assert measured == [{"dropout": 1, "batch_norm": 1}]


def test_what_is_switched_on_below_a_part_in_eval_mode_is_meant(tmp_path):
    net = Net()
    measured = evaluated(tmp_path / "run.jsonl", net, monte_carlo, given=nn.ModuleDict({"net": net}).train())
    assert measured == [{"dropout": 0, "batch_norm": 0}]


def test_what_is_trained_between_two_evaluations_is_no_part_of_them(tmp_path):
    net = Net()
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net, torch.optim.SGD(net.parameters(), lr=0.1))
        with watch.phase("eval"):
            forgotten(net)
        watch.step()
        forgotten(net)
        watch.evaluate(1, "validation", {"loss": 1.0})
    assert told(tmp_path / "run.jsonl") == [{}]


@pytest.mark.parametrize("phase", ["checkpoint", "sample"])
def test_only_an_evaluation_is_looked_at(tmp_path, phase):
    assert evaluated(tmp_path / "run.jsonl", Net(), forgotten, phase=phase) == [{}]


def hooks(model=None):
    """Torch's own, for every module; and those on the modules of a model."""
    of_all = torch.nn.modules.module._global_forward_pre_hooks
    return [*of_all.values(), *(hook for m in (model.modules() if model else ()) for hook in m._forward_pre_hooks)]


def test_hooks_are_there_only_while_an_evaluation_goes_on(tmp_path):
    net, seen = Net(), []
    evaluated(tmp_path / "run.jsonl", net, lambda _: seen.append(len(hooks())))
    assert seen == [2]  # this one, and that of what the first layer reads
    assert hooks(net) == []


def test_they_are_gone_after_an_evaluation_that_fails(tmp_path):
    net = Net()
    with pytest.raises(ZeroDivisionError):
        evaluated(tmp_path / "run.jsonl", net, lambda _: 1 / 0)
    assert hooks(net) == []


def test_a_model_can_be_copied_saved_and_scripted_while_it_is_evaluated(tmp_path):
    """As averaged weights and checkpoints of the best are; the copy tells nothing, and needs no recorder to be read."""

    def measure(model):
        saved = pickle.dumps(model)
        assert b"trainwatch" not in saved
        for twin in (copy.deepcopy(model), pickle.loads(saved)):
            forgotten(twin)
            assert not any(module._forward_pre_hooks for module in twin.modules())
        proper(model)

    assert evaluated(tmp_path / "run.jsonl", Net(), measure) == [{"dropout": 0, "batch_norm": 0}]
    plain = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1))
    with pytest.warns(DeprecationWarning, match="jit"):
        evaluated(tmp_path / "other.jsonl", plain, lambda model: torch.jit.script(model.eval())(torch.randn(2, 4)))


def test_a_transformer_layer_keeps_its_faster_path(tmp_path):
    """Then no module within it is passed; in training mode each is."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    net = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 2))
    assert evaluated(tmp_path / "run.jsonl", net, lambda model: model.eval()(torch.randn(2, 5, 8))) == [{}]
    forgot = evaluated(tmp_path / "other.jsonl", net, lambda model: model.train()(torch.randn(2, 5, 8)))
    assert forgot[0]["dropout"] == 2 * 4  # attention and three of its own, in each layer


def test_batch_norm_that_is_measured_anew_is_no_evaluation(tmp_path):
    """Averaged weights: their statistics are taken in training mode, and then a part of them is evaluated."""

    def measure(model):
        model.train()
        model.body[0](torch.randn(3, 4))
        model.eval()
        model.features(torch.randn(3, 4))

    assert evaluated(tmp_path / "run.jsonl", Net(), measure) == [{"dropout": 0, "batch_norm": 0}]


def compiled_outside(net):
    return torch.compile(net, backend="eager", fullgraph=True)


def compiled_in_place(net):
    net.compile(backend="eager", fullgraph=True)
    return net


@pytest.mark.parametrize("attached", ["compiled", "original"])
@pytest.mark.parametrize("compiled", [compiled_outside, compiled_in_place])
def test_nothing_is_compiled_again_for_it(tmp_path, compiled, attached):
    """A compiled model is looked at from outside; where that cannot be, nothing is told."""
    net = Net()
    fast = compiled(net)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(fast if attached == "compiled" else net)
        with watch.phase("eval"), torch.no_grad():
            fast(torch.ones(3, 4))
        for step in range(1, 4):
            with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
                fast(torch.ones(3, 4))
                with watch.phase("eval"):
                    fast(torch.ones(3, 4))
            watch.evaluate(step, "validation", {"loss": 1.0})
    outside = attached == "compiled" and compiled is compiled_outside
    assert told(tmp_path / "run.jsonl") == [{"dropout": 1, "batch_norm": 1} if outside else {}] * 3
