"""The tracker in Accelerate's own loop."""

import pytest

pytest.importorskip("accelerate", reason="accelerate is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

from accelerate import Accelerator  # noqa: E402
from torch import nn  # noqa: E402

from trainwatch.accelerate import Tracker  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the framework's own


def fit(path, attach=False, numbered=True, late=True, steps=6):
    """Six steps with a growing rate, evaluated at every third; the rows are logged after the step, or before it."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, log_with=Tracker(path))
    net = nn.Linear(4, 1)
    net, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.1))
    accelerator.init_trackers("a project", config={"rate": 0.1})
    if attach:
        accelerator.get_tracker("trainwatch").attach(net, optimizer)
    losses = []
    for step in range(1, steps + 1):
        loss = net(torch.randn(8, 4)).square().mean()
        accelerator.backward(loss)
        number = step if numbered else None
        for turn in (late, not late):
            if turn:
                optimizer.param_groups[0]["lr"] = 0.01 * step
                optimizer.step()
                optimizer.zero_grad()
            else:
                accelerator.log({"train_loss": loss.item(), "train/loss_aux": 0.5}, step=number)
        if numbered and late:
            accelerator.log({"speed": 7}, step=number)
        if step % 3 == 0:
            accelerator.log({"eval_loss": 1.0 / step, "eval/acc": 0.5}, step=number)
        losses.append(loss.item())
    accelerator.end_training()
    return losses


@pytest.mark.parametrize("numbered", [True, False])
def test_calls_for_one_step_are_one_row(tmp_path, recorded, numbered):
    losses = fit(tmp_path / "run.jsonl", numbered=numbered)
    steps, evaluations = (recorded(tmp_path / "run.jsonl", kind) for kind in ("step", "eval"))
    assert [row["step"] for row in steps] == list(range(1, 7))
    assert [row["loss"] for row in steps] == pytest.approx(losses)
    assert {row["loss/aux"] for row in steps} == {0.5}
    assert [(row["step"], row["split"], row["metric/acc"]) for row in evaluations] == [
        (3, "eval", 0.5),
        (6, "eval", 0.5),
    ]
    assert recorded(tmp_path / "run.jsonl", "run")[0]["config"] == {"rate": 0.1}
    assert recorded(tmp_path / "run.jsonl", "end")[0]["status"] == "finished"


def test_a_stop_file_is_a_trigger(tmp_path, recorded, ask_to_stop):
    """As Accelerate has it: one process sets it, all of them see it."""
    accelerator = Accelerator(cpu=True, log_with=Tracker(tmp_path / "run.jsonl"))
    accelerator.init_trackers("a project")
    tracker, steps = accelerator.get_tracker("trainwatch"), 0
    for step in range(1, 7):
        accelerator.log({"train_loss": 1.0}, step=step)
        if step == 3:
            ask_to_stop(tracker.watch)
        if tracker.should_stop:
            accelerator.set_trigger()
        if accelerator.check_trigger():
            break
        steps += 1
    accelerator.end_training()
    assert steps == 2
    (end,) = recorded(tmp_path / "run.jsonl", "end")
    assert (end["status"], end["reason"]) == ("stopped", "stop file")


@pytest.mark.parametrize("late", [True, False])
def test_norms_and_rates_for_who_asks(tmp_path, recorded, late):
    fit(tmp_path / "run.jsonl", attach=True, late=late)
    steps = recorded(tmp_path / "run.jsonl", "step")
    assert [row["lr/0"] for row in steps] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    assert all(row["grad_norm_at_step"] > 0 for row in steps)
    assert steps[0]["update_ratio/0"] > 0


def test_two_ranks_write_one_file(tmp_path, recorded, two_ranks):
    path = tmp_path / "run.jsonl"
    two_ranks(f"fit({str(path)!r})")
    assert [file.name for file in tmp_path.glob("*.jsonl")] == ["run.jsonl"]
    assert [row["step"] for row in recorded(path, "step")] == list(range(1, 7))
