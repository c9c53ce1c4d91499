"""What the user says that a name means comes before every guess: ``--map val=dev_loss``."""

import json

import pytest

from trainwatch.cli import main
from trainwatch.foreign.channels import recognise, told
from trainwatch.foreign.mapping import MappingError, places
from trainwatch.readers import read

COLUMNS = "t,cost,reg,dev,rate\n1,3.0,0.5,2.0,0.1\n2,2.0,0.25,1.5,0.1\n3,1.0,0.125,1.25,0.1\n"


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text(COLUMNS)
    return path


@pytest.mark.parametrize(
    ("said", "split", "channel", "role"),
    [
        ("val", "validation", "loss", "loss"),
        ("test", "test", "loss", "loss"),
        ("loss", "", "loss", "loss"),
        ("loss/kl", "", "loss/kl", "loss"),
        ("validation:loss/kl", "validation", "loss/kl", "loss"),
        ("val:metric/top1", "validation", "metric/top1", "measure"),
        ("lr", "", "lr/main", "rate"),
        ("lr/backbone", "", "lr/backbone", "rate"),
        ("grad_norm", "", "grad_norm", "norm"),
        ("amp/scale", "", "amp/scale", "scale"),
        ("step", "", "step", "step"),
        ("total_steps", "", "total_steps", "planned"),
        ("logged/x", "", "logged/x", "measure"),
        ("none", "", "none", "ignored"),
    ],
)
def test_what_stands_on_the_left(said, split, channel, role):
    """A channel as the guess is shown, or its short form."""
    place = places([f"{said}=a name"])["a name"]
    assert (place.split, place.channel, place.role) == (split, channel, role)


@pytest.mark.parametrize(
    ("said", "nearest"), [("vall=x", "'val'"), ("los=x", "'loss'"), ("loss", "channel=name"), ("=x", "channel=name")]
)
def test_no_such_channel_is_one_sentence(said, nearest):
    """With the nearest that there is."""
    with pytest.raises(MappingError, match=nearest):
        places([said])


def test_a_log_of_foreign_words_is_read(log):
    """Sniffing follows what is said too: without it no reader knows this file."""
    with told(places(["step=t", "loss=cost", "loss/l2=reg", "val=dev", "none=rate"])):
        run = read(log)
    assert run.train.step.tolist() == [1, 2, 3]
    assert run.train["loss"].tolist() == [3.0, 2.0, 1.0]
    assert run.train["loss/l2"].tolist() == [0.5, 0.25, 0.125]
    assert run.eval["loss"].tolist() == [2.0, 1.5, 1.25]
    assert run.train.channels == ["loss", "loss/l2"]
    assert run.named["dev"] == "validation:loss"
    assert recognise("cost").role == "measure"  # what was said holds for its reading alone


def test_what_is_said_comes_before_a_guess_that_wants_the_same_channel(tmp_path):
    """Where `loss` is a part and `objective_b` the whole, the part keeps a name of its own."""
    path = tmp_path / "log.jsonl"
    path.write_text("".join(f'{{"step": {step}, "loss": 1.0, "b": 2.0}}\n' for step in range(1, 4)))
    with told(places(["loss=b"])):
        run = read(path)
    assert (run.train["loss"].tolist(), run.train["loss/loss"].tolist()) == ([2.0] * 3, [1.0] * 3)


@pytest.mark.parametrize("command", ["check {}", "list {}", "report {} -o {}.html", "export {} -o {}.csv"])
def test_every_command_that_reads_takes_it(log, capsys, command):
    """And a name that stands in no log is one sentence with the nearest."""
    path = log.parent if command.startswith("list") else log
    arguments = [part.replace("{}", str(path)) for part in command.split()]
    mapped = ["--map", "step=t", "--map", "loss=cost"]
    assert main([*arguments, *mapped]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main([*arguments, *mapped, "--map", "val=dve"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "did you mean 'dev'?" in said


def test_two_logs_are_compared_by_it(log, capsys):
    """Each of several files is read by it."""
    other = log.with_name("other.csv")
    other.write_text(COLUMNS.replace("3.0", "3.5"))
    assert main(["compare", str(log), str(other), "--map", "step=t", "--map", "loss=cost", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 1
