"""The callback in Lightning's own Trainer: each row against what that step really did."""

import pytest

pytest.importorskip("lightning", reason="lightning is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

from lightning.pytorch import LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import trainwatch  # noqa: E402
from trainwatch.lightning import Callback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the framework's own


class Net(LightningModule):
    """A classifier with two losses; `seen` holds what each micro-batch's loss was, `norms` each step's gradient."""

    def __init__(self, rate=1e-2):
        super().__init__()
        self.save_hyperparameters()
        self.body, self.head = nn.Linear(4, 16), nn.Linear(16, 3)
        self.seen, self.norms = [], []

    def losses(self, batch):
        logits = self.head(torch.relu(self.body(batch[0])))
        return nn.functional.cross_entropy(logits, batch[1]), logits.square().mean()

    def training_step(self, batch):
        ce, size = self.losses(batch)
        self.log("train_loss_ce", ce)
        self.log("train_loss_size", size)
        self.seen.append(float((ce + 0.1 * size).detach()))
        return ce + 0.1 * size

    def validation_step(self, batch):
        ce, _ = self.losses(batch)
        self.log("val_loss", ce)
        self.log("val_acc", 0.5)

    def on_before_optimizer_step(self, optimizer):
        self.norms.append(float(nn.utils.get_total_norm([p.grad for p in self.parameters()])))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.rate)


class Game(Net):
    """Two optimisers, stepped by hand one after the other."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch):
        for optimizer, loss in zip(self.optimizers(), self.losses(batch), strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss, retain_graph=True)
            optimizer.step()
            self.log("train_loss", loss)

    def configure_optimizers(self):
        parameters = list(self.parameters())
        return [torch.optim.SGD(parameters[:2], lr=0.1), torch.optim.SGD(parameters[2:], lr=0.01)]


def loader():
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 4, generator=draw)
    return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=4)


def fit(folder, net=None, *, resume=None, callbacks=(), **arguments):
    """Train for one epoch of 16 batches, two to a step."""
    torch.manual_seed(0)
    net = net or Net()
    told = {"max_epochs": 1, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "val_check_interval": 8}
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    watch = Callback(folder / "run.jsonl")
    trainer = Trainer(
        default_root_dir=folder, callbacks=[watch, *callbacks], **{**told, **quiet, "devices": 1, **arguments}
    )
    trainer.fit(net, loader(), loader(), ckpt_path=resume)
    return net


def test_every_step_is_what_the_trainer_did(tmp_path, recorded):
    net = fit(tmp_path)
    steps = recorded(tmp_path / "run.jsonl", "step")
    truth = [sum(net.seen[i : i + 2]) / 2 for i in range(0, 16, 2)]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [row["loss"] for row in steps] == pytest.approx(truth)
    assert [row["grad_norm"] for row in steps] == pytest.approx(net.norms)
    assert [row["clip"] for row in steps] == [norm > 0.5 for norm in net.norms]
    assert [row["epoch"] for row in steps] == [i / 8 for i in range(1, 9)]
    assert {row["lr/0"] for row in steps} == {1e-2}
    assert all(row["loss/ce"] > 0 and row["loss/size"] > 0 for row in steps)
    assert steps[0]["update_ratio/0"] > 0


def test_header_evaluations_and_checkpoints(tmp_path, recorded):
    fit(tmp_path, callbacks=[ModelCheckpoint(tmp_path / "kept", every_n_train_steps=4)])
    (head,), (end,) = recorded(tmp_path / "run.jsonl", "run"), recorded(tmp_path / "run.jsonl", "end")
    evaluations = recorded(tmp_path / "run.jsonl", "eval")
    assert (head["total_steps"], head["max_grad_norm"], head["config"]["rate"]) == (8, 0.5, 1e-2)
    assert [(row["step"], row["split"], row["metric/acc"]) for row in evaluations] == [(4, "val", 0.5), (8, "val", 0.5)]
    assert all(0 < row["loss"] < 2 for row in evaluations)
    assert 4 in [row["step"] for row in recorded(tmp_path / "run.jsonl", "checkpoint")]
    assert end["status"] == "finished"
    assert "loss/acc" not in recorded(tmp_path / "run.jsonl", "step")[-1]
    found = trainwatch.diagnose(trainwatch.read(tmp_path / "run.jsonl"))
    assert [finding.rule for finding in found.findings if finding.severity != "info"] == []


def test_several_optimisers_are_one_step(tmp_path, recorded):
    fit(tmp_path, Game(), accumulate_grad_batches=1, gradient_clip_val=None)
    steps = recorded(tmp_path / "run.jsonl", "step")
    assert [row["step"] for row in steps] == list(range(1, 17))
    assert {(row["lr/0.0"], row["lr/1.0"]) for row in steps} == {(0.1, 0.01)}
    assert recorded(tmp_path / "run.jsonl", "run")[0]["total_steps"] == 16
    assert all(row["loss"] > 0 for row in steps)


def test_the_trainer_goes_on_from_a_checkpoint(tmp_path, recorded):
    fit(tmp_path, max_steps=4, max_epochs=None, callbacks=[ModelCheckpoint(tmp_path / "kept", every_n_train_steps=4)])
    (kept,) = (tmp_path / "kept").glob("*.ckpt")
    fit(tmp_path, max_steps=8, max_epochs=None, resume=kept)
    first, second = recorded(tmp_path / "run.jsonl", "run")
    assert (second["id"], second["resumed_from"]) == (first["id"], 4)
    assert [row["step"] for row in recorded(tmp_path / "run.jsonl", "step")] == list(range(1, 9))
    assert not [row for row in recorded(tmp_path / "run.jsonl", "event") if "empty_optimizers" in row]


def test_a_fault_of_the_users_code_is_the_runs_end(tmp_path, recorded):
    class Broken(Net):
        def training_step(self, batch):
            if len(self.seen) == 6:
                raise ValueError("a label of 7 among 3 classes")
            return super().training_step(batch)

    with pytest.raises(ValueError, match="a label"):
        fit(tmp_path, Broken())
    (end,) = recorded(tmp_path / "run.jsonl", "end")
    assert (end["status"], end["exception"]["type"], end["step"]) == ("failed", "ValueError", 3)


def test_an_early_stop_is_told(tmp_path, recorded):
    stop = EarlyStopping("val_acc", patience=1, mode="max")
    fit(tmp_path, max_epochs=5, callbacks=[stop])
    (end,) = recorded(tmp_path / "run.jsonl", "end")
    assert (end["status"], end["step"]) == ("stopped", 8)


def test_a_stop_file_ends_it(tmp_path, recorded, ask_to_stop):
    class Asks(Net):
        def training_step(self, batch):
            if len(self.seen) == 6:
                ask_to_stop(self.trainer.callbacks[0].watch)
            return super().training_step(batch)

    fit(tmp_path, Asks(), max_epochs=5)
    (end,) = recorded(tmp_path / "run.jsonl", "end")
    assert (end["status"], end["reason"], end["step"]) == ("stopped", "stop file", 4)


def test_two_ranks_are_one_run(tmp_path, two_ranks):
    two_ranks(f"fit(pathlib.Path({str(tmp_path)!r}), devices=2, strategy='ddp')")
    run = trainwatch.read(tmp_path / "run.jsonl")
    assert sorted(run.ranks) == [1]
    assert run.train.step.tolist() == run.ranks[1].train.step.tolist() == list(range(1, 5))
