"""data/input_*: the scale of what the first layer reads, taken by the recorder itself at each tenth step."""

import copy
import io
import json
import pickle

import pytest
import torch
from torch import nn

import trainwatch

pytestmark = pytest.mark.usefixtures("nothing_compiled")


def trained(path, net, batch, steps=21, optimizer=None, watch_inputs=None, each=None):
    """A loop that says nothing of its inputs; returns the rows by step."""
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=1e-5)
    with trainwatch.Recorder(path) as watch:
        watch.attach(net, optimizer)
        for _ in watch.batches([batch] * steps):
            if watch_inputs is not None:
                watch.inputs(watch_inputs)
            answer = net(*batch) if isinstance(batch, tuple) else net(batch)
            watch.losses({"loss": answer.float().square().mean()}).backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.step()
            if each:
                each(net)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert not [line for line in lines if line.get("event") == "monitor" and "fault" in line.get("message", "")]
    return {line["step"]: line for line in lines if line["kind"] == "step"}


def told(rows):
    return [step for step, row in rows.items() if "data/input_std" in row]


class Normalised(nn.Module):
    """Pixels in, as an Atari agent takes them: it divides them itself."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 6, 2))

    def forward(self, x):
        return self.body(x / 255.0)


class Steps(nn.Module):
    """A time, one for the whole batch, is read before the data are."""

    def __init__(self):
        super().__init__()
        self.time, self.data = nn.Linear(1, 4), nn.Linear(3, 4)

    def forward(self, t, x):
        return self.time(t) + self.data(x)


def test_every_tenth_step_tells_the_scale_of_what_is_read(tmp_path):
    batch = 40 + 5 * torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    rows = trained(tmp_path / "run.jsonl", nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), batch)
    assert told(rows) == [1, 11, 21]
    assert rows[11]["data/input_mean"] == pytest.approx(batch.mean().item(), rel=1e-5)
    assert rows[11]["data/input_std"] == pytest.approx(batch.std(correction=0).item(), rel=1e-5)
    assert rows[11]["data/input_absmax"] == pytest.approx(batch.abs().max().item())
    assert rows[11]["bad/input"] == 0


def test_what_the_model_divides_itself_is_read_divided(tmp_path):
    rows = trained(tmp_path / "run.jsonl", Normalised(), torch.randint(256, (4, 1, 8, 8)).float())
    assert rows[1]["data/input_absmax"] <= 1


def test_a_number_for_the_whole_batch_is_no_data(tmp_path):
    rows = trained(tmp_path / "run.jsonl", Steps(), (torch.full((8, 1), 0.5), torch.randn(8, 3) * 7))
    assert rows[1]["data/input_std"] > 3


@pytest.mark.parametrize(
    ("net", "batch"),
    [
        (nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)), torch.randint(9, (6, 3))),  # ids have no scale
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), torch.randn(8, 4) * 90),  # what normalises copes
        (nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 2)), torch.ones(8, 1)),
    ],
)
def test_what_is_no_data_is_not_told_and_is_soon_given_up(tmp_path, net, batch):
    rows = trained(tmp_path / "run.jsonl", net, batch, steps=41)
    assert told(rows) == []
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_what_the_loop_says_itself_counts_more(tmp_path):
    rows = trained(tmp_path / "run.jsonl", nn.Linear(4, 2), torch.ones(8, 4), watch_inputs=torch.full((2, 2), 3.0))
    assert len(told(rows)) == 21
    assert {row["data/input_mean"] for row in rows.values()} == {3.0}


def test_evaluation_is_not_what_is_trained_on(tmp_path):
    def evaluate(net):
        with torch.no_grad():
            net(torch.full((2, 4), 1000.0))

    rows = trained(tmp_path / "run.jsonl", nn.Linear(4, 2), torch.randn(8, 4), each=evaluate)
    assert told(rows) == [1, 11, 21]
    assert max(row.get("data/input_absmax", 0) for row in rows.values()) < 10


def test_what_is_read_in_evaluation_is_told_beside_its_figures(tmp_path):
    """The first batch of each; training goes on being looked at, and a figure of the same name is the loop's."""
    net, batch = nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.1)), torch.randn(8, 4)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net)
        for step, _ in enumerate(watch.batches([batch] * 31), 1):
            if step % 10 == 1:  # a look is due, and an evaluation comes between
                with watch.phase("eval"), torch.no_grad():
                    net(batch * 255)
                    net(batch)
                watch.evaluate(step, "validation", {"loss": 1.0} | ({"data/input_mean": 7.0} if step > 30 else {}))
            watch.losses({"loss": net(batch).square().mean()}).backward()
            watch.step()
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    held = [line for line in lines if line["kind"] == "eval"]
    spread = batch.std(correction=0).item()
    assert [line["data/input_std"] for line in held] == pytest.approx([255 * spread] * 4)
    assert held[-1]["data/input_mean"] == 7.0
    rows = {line["step"]: line for line in lines if line["kind"] == "step"}
    assert [rows[step]["data/input_std"] for step in told(rows)] == pytest.approx([spread] * 4)
    found = {one.rule: one for one in trainwatch.diagnose(trainwatch.read(tmp_path / "run.jsonl")).findings}
    assert found["input-mismatch"].severity == "warning"
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_float16_does_not_overflow_in_the_look(tmp_path):
    x = torch.randn(64, 4) * 300
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = trained(tmp_path / "run.jsonl", nn.Linear(4, 2), x)
    assert rows[1]["data/input_std"] == pytest.approx(300, rel=0.2)
    watched = trainwatch.recorder.inputs.scale(x.half())
    assert watched[1].item() == pytest.approx(x.std().item(), rel=0.01)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_under_the_look_is_copied_saved_scripted_and_traced(tmp_path):
    def used(net):
        copy.deepcopy(net)
        pickle.loads(pickle.dumps(net))
        torch.save(net, io.BytesIO())
        torch.jit.script(net)
        torch.jit.trace(net, torch.randn(2, 4))
        torch.func.vmap(net)(torch.randn(3, 2, 4))
        torch.export.export(net, (torch.randn(2, 4),))

    rows = trained(tmp_path / "run.jsonl", nn.Sequential(nn.Linear(4, 2), nn.ReLU()), torch.randn(8, 4), 12, each=used)
    assert rows[1]["data/input_std"] > 0


def test_a_model_that_is_compiled_is_not_compiled_again(tmp_path):
    net = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    model = torch.compile(net, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        rows = trained(tmp_path / "run.jsonl", model, torch.randn(8, 4))
    assert told(rows) == []


@pytest.mark.parametrize("whole", [False, True])
def test_nor_is_one_that_is_compiled_after_it_was_attached(tmp_path, whole):
    net, batch = nn.Sequential(nn.Linear(4, 2), nn.ReLU()), torch.randn(8, 4)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net)
        called = torch.compile(lambda x: net(x) if whole else net(x).sin(), backend="eager") if whole else None
        model = called or torch.compile(net, backend="eager")
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in watch.batches([batch] * 21):
                watch.losses({"loss": model(batch).square().mean()}).backward()
                watch.step()


def test_without_batches_from_the_eleventh_step_on(tmp_path):
    net, batch = nn.Linear(4, 2), torch.randn(8, 4)
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net)
        for _ in range(21):
            watch.losses({"loss": net(batch).square().mean()}).backward()
            watch.step()
    lines = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert told({line["step"]: line for line in lines if line["kind"] == "step"}) == [11, 21]


def test_nothing_is_left_behind(tmp_path):
    trained(tmp_path / "run.jsonl", nn.Linear(4, 2), torch.randn(8, 4), steps=10)
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_the_weights_are_the_same_with_and_without(tmp_path):
    torch.manual_seed(0)
    net, batch = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)), torch.randn(8, 4)
    twin, chance = copy.deepcopy(net), torch.get_rng_state()
    trained(tmp_path / "run.jsonl", net, batch)
    torch.set_rng_state(chance)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-5)
    for _ in range(21):
        twin(batch).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), twin.parameters(), strict=True))
