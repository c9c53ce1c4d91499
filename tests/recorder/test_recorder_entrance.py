"""data/read_*: the scale of what the first layer reads, which the recorder takes itself at each tenth step."""

import copy
import functools
import io
import json
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

import trainwatch
from trainwatch.recorder.entrance import scale

pytestmark = pytest.mark.usefixtures("nothing_compiled")
HOOKS = torch.nn.modules.module._global_forward_pre_hooks


def trained(path, net, batch, steps=31, before=None, after=None):
    """A loop that says nothing of its inputs; ``before`` comes between a batch and the forward. Returns the rows."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5)
    with trainwatch.Recorder(path) as watch:
        watch.attach(net, optimizer)
        for _ in watch.batches([batch] * steps):
            if before:
                before(net)
            answer = net(*batch) if isinstance(batch, tuple) else net(batch)
            watch.losses({"loss": answer.float().square().mean()}).backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.step()
            if after:
                after(net)
    assert not HOOKS
    return rows_of(path)


def rows_of(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert not [line for line in lines if "failed" in line.get("message", "")]
    return {line["step"]: line for line in lines if line["kind"] == "step"}


def told(rows):
    return [step for step, row in rows.items() if "data/read_std" in row]


class Normalised(nn.Module):
    """Pixels in, as an Atari agent takes them: it divides them itself."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 6, 2))

    def forward(self, x):
        return self.body(x / 255.0)


class Timed(nn.Module):
    """A time, one for the whole batch, is read before the data are."""

    def __init__(self):
        super().__init__()
        self.time, self.data = nn.Linear(1, 4), nn.Linear(3, 4)

    def forward(self, t, x):
        return self.time(t) + self.data(x)


class Cell(nn.Module):
    """Tokens, and a state that begins with zeros, which nobody gave it."""

    def __init__(self):
        super().__init__()
        self.table, self.read, self.keep = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = torch.zeros(len(x), 4)
        for at in range(x.shape[1]):
            h = torch.tanh(self.read(self.table(x[:, at])) + self.keep(h))
        return h


@dataclass
class Unhashable(nn.Module):
    """As a dataclass with a comparison is."""

    width: int = 4

    def __post_init__(self):
        super().__init__()

    def forward(self, x):
        return x


class Detached(nn.Module):
    """A head behind a body that it does not teach."""

    def __init__(self):
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = self.body(self.table(x))
        return self.head(h.detach()) + h.mean()


def test_every_tenth_step_tells_the_scale_of_what_is_read(tmp_path):
    batch = 40 + 5 * torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    rows = trained(tmp_path / "run.jsonl", nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), batch)
    assert told(rows) == [11, 21, 31]
    assert rows[11]["data/read_mean"] == pytest.approx(batch.mean().item(), rel=1e-5)
    assert rows[11]["data/read_std"] == pytest.approx(batch.std(correction=0).item(), rel=1e-5)
    assert rows[11]["data/read_absmax"] == pytest.approx(batch.abs().max().item())


def test_what_the_model_divides_itself_is_read_divided(tmp_path):
    rows = trained(tmp_path / "run.jsonl", Normalised(), torch.randint(256, (4, 1, 8, 8)).float())
    assert rows[11]["data/read_absmax"] <= 1


def test_a_number_for_the_whole_batch_is_no_data(tmp_path):
    rows = trained(tmp_path / "run.jsonl", Timed(), (torch.full((8, 1), 0.5), torch.randn(8, 3) * 7))
    assert rows[11]["data/read_std"] > 3


@pytest.mark.parametrize(
    ("net", "batch"),
    [
        (Cell(), torch.randint(9, (6, 3))),
        (Detached(), torch.randint(9, (6,))),
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), torch.randint(9, (6, 3))),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), torch.randn(8, 4) * 90),  # it copes
        (nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 2)), torch.ones(8, 1)),
    ],
)
def test_what_is_no_data_is_not_told(tmp_path, net, batch):
    assert told(trained(tmp_path / "run.jsonl", net, batch, steps=41)) == []


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_left_alone(tmp_path):
    class Padded(nn.Linear):
        def forward(self, x):
            return super().forward(x).to_padded_tensor(0.0)

    batch = torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(2, 4)])
    assert told(trained(tmp_path / "run.jsonl", Padded(4, 2), batch, steps=41)) == []


def test_evaluation_is_not_what_is_trained_on(tmp_path):
    def evaluate(net):
        with torch.no_grad():
            net(torch.full((2, 4), 1000.0))

    rows = trained(tmp_path / "run.jsonl", nn.Linear(4, 2), torch.randn(8, 4), before=evaluate, after=evaluate)
    assert told(rows) == [11, 21, 31]
    assert max(row.get("data/read_absmax", 0) for row in rows.values()) < 10


def test_what_is_read_in_evaluation_is_told_beside_its_figures(tmp_path):
    """The first batch of each, with gradients or without; a figure of the same name is the loop's."""
    net, batch = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.1)), torch.randn(8, 4)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net)
        for step, _ in enumerate(watch.batches([batch] * 41), 1):
            if step % 10 == 1:  # a look is due, and an evaluation comes between
                with watch.phase("eval"), torch.set_grad_enabled(step > 20):
                    net(batch * 255)
                    net(batch)
                watch.evaluate(step, "validation", {"loss": 9.0} | ({"data/read_mean": 7.0} if step > 40 else {}))
            watch.losses({"loss": net(batch).square().mean()}).backward()
            watch.step()
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    held, spread = [line for line in lines if line["kind"] == "eval"], batch.std(correction=0).item()
    assert [line.get("data/read_std", 0) for line in held] == pytest.approx([0] * 2 + [255 * spread] * 3)
    assert held[-1]["data/read_mean"] == 7.0
    rows = rows_of(tmp_path / "run.jsonl")
    assert [rows[step]["data/read_std"] for step in told(rows)] == pytest.approx([spread] * 4)
    found = {one.rule: one for one in trainwatch.diagnose(trainwatch.read(tmp_path / "run.jsonl")).findings}
    assert found["input-mismatch"].severity == "warning"
    assert not HOOKS


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.mT, lambda x: x[:, ::2]])
def test_the_scale_of_some_numbers_is_that_of_all(dtype, form):
    """A spread of 300 is a variance beyond float16."""
    x = form(torch.randn(512, 600, generator=torch.Generator().manual_seed(0)) * 300).to(dtype)
    mean, spread, most = scale(x).tolist()
    assert abs(mean) < 30
    assert spread == pytest.approx(300, rel=0.05)
    assert 900 < most < 1800


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_under_the_look_is_copied_saved_scripted_traced_and_exported(tmp_path):
    def used(net):
        copy.deepcopy(net)
        pickle.loads(pickle.dumps(net))
        torch.save(net, io.BytesIO())
        torch.jit.script(net)
        torch.jit.trace(net, torch.randn(2, 4))
        torch.func.vmap(net)(torch.randn(3, 2, 4))
        torch.func.functional_call(net, dict(net.named_parameters()), (torch.randn(2, 4),))

    rows = trained(tmp_path / "run.jsonl", nn.Sequential(nn.Linear(4, 2), nn.ReLU()), torch.randn(8, 4), before=used)
    assert told(rows)


def test_whatever_is_called_beside_the_model(tmp_path):
    """Not every module has a hash."""
    beside = Unhashable()
    rows = trained(tmp_path / "run.jsonl", nn.Linear(4, 2), torch.randn(8, 4), before=lambda _: beside(torch.ones(2)))
    assert told(rows)


def test_selective_checkpoints_recompute_what_was_computed(tmp_path):
    """They keep the answers of single operations, and know them by their order: ours would be among them."""

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            h = self.a(x)
            return h.abs() * h

    class Net(nn.Module):
        def __init__(self, context):
            super().__init__()
            self.body, self.context = Body(), context

        def forward(self, x):
            return checkpoint.checkpoint(self.body, x, use_reentrant=False, **self.context)

    def keeps(_context, operation, *_, **__):
        saved = "abs" in str(operation)
        return checkpoint.CheckpointPolicy.MUST_SAVE if saved else checkpoint.CheckpointPolicy.PREFER_RECOMPUTE

    selective = functools.partial(checkpoint.create_selective_checkpoint_contexts, keeps)
    torch.manual_seed(0)
    net, batch = Net({"context_fn": selective}), torch.randn(8, 4)
    plain = copy.deepcopy(net)
    plain.context = {}
    for name, each in (("selective", net), ("plain", plain)):
        trained(tmp_path / f"{name}.jsonl", each, batch)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))


def test_a_model_that_is_compiled_is_not_compiled_again(tmp_path):
    model = torch.compile(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert told(trained(tmp_path / "run.jsonl", model, torch.randn(8, 4))) == []


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_nor_is_one_that_is_compiled_after_it_was_attached(tmp_path, whole, inside):
    """Before the loop, or with its first batch."""
    net, batch = nn.Sequential(nn.Linear(4, 2), nn.ReLU()), torch.randn(8, 4)

    def compiled():
        return torch.compile((lambda x: net(x)) if whole else net, backend="eager")

    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net)
        model = None if inside else compiled()
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in watch.batches([batch] * 21):
                model = model or compiled()
                watch.losses({"loss": model(batch).square().mean()}).backward()
                watch.step()


def test_no_hook_outlives_a_recorder_that_is_closed_in_an_evaluation(tmp_path):
    net = nn.Linear(4, 2)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net)
        for _ in range(10):
            watch.step()
        with watch.phase("eval"):
            watch.close()
    assert not HOOKS


def test_without_batches_too(tmp_path):
    net, batch = nn.Linear(4, 2), torch.randn(8, 4)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net)
        for _ in range(31):
            watch.losses({"loss": net(batch).square().mean()}).backward()
            watch.step()
    assert told(rows_of(tmp_path / "run.jsonl")) == [11, 21, 31]


def test_steps_without_a_forward_tell_nothing_and_end_nothing(tmp_path):
    """A replay buffer that is filled first."""
    net, batch = nn.Linear(4, 2), torch.randn(8, 4)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net)
        for step in range(61):
            watch.losses({"loss": net(batch).square().mean() if step > 40 else torch.ones((), requires_grad=True)})
            watch.step()
    assert told(rows_of(tmp_path / "run.jsonl")) == [51, 61]


def test_nothing_is_left_behind(tmp_path):
    trained(tmp_path / "run.jsonl", nn.Linear(4, 2), torch.randn(8, 4), steps=10)
    with trainwatch.Recorder(tmp_path / "broken.jsonl") as watch:
        watch.attach(nn.Linear(4, 2))
        for _ in range(10):
            watch.step()
        assert len(HOOKS) == 1  # for the eleventh step
        watch.attach(nn.Linear(4, 2))
        assert not HOOKS


def test_the_weights_are_the_same_with_and_without(tmp_path):
    torch.manual_seed(0)
    net, batch = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)), torch.randn(8, 4)
    twin, chance = copy.deepcopy(net), torch.get_rng_state()
    trained(tmp_path / "run.jsonl", net, batch)
    torch.set_rng_state(chance)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-5)
    for _ in range(31):
        twin(batch).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), twin.parameters(), strict=True))
