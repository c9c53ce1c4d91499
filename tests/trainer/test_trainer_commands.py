"""What a trained run is asked afterwards: evaluate, generate, replay; what they print, and their exit codes."""

import json
import shutil
import warnings

import pytest
import torch
from rich.console import Console

from trainer import checkpoint
from trainer.__main__ import COMMANDS, main
from trainer.commands import scores

SETTINGS = [
    *("size=tiny", "steps=4", "batch_size=2", "device=cpu", "threads=1", "data.source=theoretical"),
    *("data.peptides=50", "data.max_peaks=24", "evaluation.samples=4", "evaluation.every=1.0", "checkpoint.every=0.5"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shards):
    """A folder with a short run."""
    folder = tmp_path_factory.mktemp("finished")
    assert main([*SETTINGS, f"data.folder={shards}", f"logs={folder}", "name=run"]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """The run's record, its checkpoints after steps 2 and 4 beside it."""
    shutil.copytree(finished, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path / "run.jsonl"


@pytest.fixture
def latest(run):
    return run.with_suffix(".checkpoints") / "latest.pt"


def table(capfd, *arguments):
    assert main(list(map(str, arguments))) == 0
    return json.loads(capfd.readouterr().out)


def test_evaluate_has_a_row_for_every_field_and_everyone(latest, capfd):
    rows = table(capfd, "evaluate", latest, "--count", 3, "--json")
    assert [row["who"] for row in rows] == ["live", "baseline"] * 9
    assert {row["length"] for row in rows} == {"7-10", "11-14", "15-18"}
    assert {row["noise"] for row in rows} == {"clean", "light", "heavy"}
    assert all(row["n"] == 3 and 0 <= row["aa_recall"] <= 1 for row in rows)
    assert sum(row["sequence_accuracy"] for row in rows if row["who"] == "live") == 0  # four steps teach nothing
    alone = table(
        capfd, "baseline", "data.source=theoretical", "data.max_peaks=24", "data.max_length=18", "--count", 3, "--json"
    )
    same = [{**row, "ms_per_spectrum": 0} for row in rows if row["who"] == "baseline"]
    assert [{**row, "ms_per_spectrum": 0} for row in alone] == same  # the very same spectra


def test_an_average_of_the_weights_is_evaluated_too(latest, capfd):
    state = checkpoint.load(latest)
    torch.save(state | {"ema": state["model"]}, latest)
    rows = table(capfd, "evaluate", latest, "--count", 2, "--json")
    live, average = ([row for row in rows if row["who"] == who] for who in ("live", "average"))
    assert [row["aa_recall"] for row in live] == [row["aa_recall"] for row in average]
    assert main(["generate", str(latest), "--count", "2"]) == 0
    assert "average weights" in capfd.readouterr().out


def test_a_table_for_a_person(latest, capfd):
    assert main(["evaluate", str(latest), "--count", "2"]) == 0
    said = capfd.readouterr()
    assert "peptide prec." in said.out
    assert "baseline" in said.out
    assert "its answers have room for 18; data.max_length=30" in said.err
    assert "\x1b" not in said.out


def test_generate_shows_answers_beside_the_truth(latest, capfd):
    assert main(["generate", str(latest), "--count", "5"]) == 0
    said = capfd.readouterr().out
    assert sum(line.split()[:1] in (["clean"], ["light"], ["heavy"]) for line in said.splitlines()) == 5
    assert "valid " in said
    assert "ppm" in said


def test_a_replay_is_the_same_to_the_last_bit(run, capfd):
    assert main(["replay", str(run)]) == 0
    assert "the same to the last bit through step 4 (4 steps)" in capfd.readouterr().out
    assert main(["replay", str(run), "--to", "2"]) == 0
    assert "the same to the last bit through step 2 (2 steps)" in capfd.readouterr().out
    assert json.loads(run.with_name("run-replay.jsonl").read_text().splitlines()[-1])["status"] == "finished"
    end = json.loads(run.with_name("run-replay-2.jsonl").read_text().splitlines()[-1])
    assert (end["status"], end["reason"]) == ("stopped", "asked to end at step 2")
    assert main(["replay", str(run), "--from", "before:3"]) == 0
    assert "the same to the last bit through step 4 (2 steps)" in capfd.readouterr().out


def test_a_replay_that_parts_says_where(run, capfd):
    rows = [json.loads(line) for line in run.read_text().splitlines()]
    third = next(row for row in rows if row["kind"] == "step" and row["step"] == 3)
    third["loss/sequence"] *= 1.5
    third["time/step"] = 100.0
    run.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["replay", str(run)]) == 1
    said = capfd.readouterr().out
    assert "the same to the last bit through step 2; parted at step 3, first in loss/sequence, from " in said
    assert "by 3.3e-01 of it" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "nope.pt"], "checkpoint nope.pt is no file"),
        (["evaluate", "{folder}"], "is no file; name one"),
        (["generate", "{run}"], "run.jsonl cannot be read"),
        (["evaluate", "{latest}", "size=small"], "holds no model of size=small model.kind=recursive"),
        (["evaluate", "{latest}", "sized=small"], "unknown key 'sized'; did you mean 'size'?"),
        (["evaluate"], "the following arguments are required: CHECKPOINT"),
        (["evaluate", "{latest}", "--count", "none"], "'none' is no whole number of at least 1"),
        (["baseline", "data.source=real"], "data.source 'real' does not exist"),
        (["data", "build", "data.source=real"], "data.source 'real' does not exist"),
        (["data", "bild"], "invalid choice: 'bild'"),
        (["replay", "nope.jsonl"], "nope.jsonl: there is no such file"),
        (["replay", "{latest}"], "which none of the readers knows"),
        (["replay", "{run}", "--from", "3"], "--from 3: write before:STEP"),
        (["replay", "{run}", "--from", "before:1"], "has no checkpoint up to there (steps: 2, 4)"),
        (
            ["replay", "{run}", "--from", "before:3", "--to", "2"],
            "its checkpoint is of step 2, and the replay ends at 2; begin earlier",
        ),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(arguments, words, run, latest, capfd):
    named = [word.format(run=run, latest=latest, folder=run.parent) for word in arguments]
    try:
        code = main(named)
    except SystemExit as left:
        code = left.code
    said = capfd.readouterr()
    assert (code, said.out) == (2, "")
    assert words in said.err
    assert said.err.count("\n") == 1


def test_what_cannot_be_replayed(run, capfd):
    head, *rows = run.read_text().splitlines()
    for changes, words in (
        ({"config": {"frobnicate": 1}}, "unknown key 'frobnicate'"),
        ({"config": {}}, "holds no config"),
        ({"world_size": 2}, "was written by 2 processes"),
    ):
        run.write_text("\n".join([json.dumps(json.loads(head) | changes), *rows, ""]))
        assert main(["replay", str(run)]) == 2
        assert words in capfd.readouterr().err
    run.write_text(head + "\n")
    assert main(["replay", str(run)]) == 2
    assert "has no step that a replay could be compared with" in capfd.readouterr().err


def test_a_damaged_shard_is_wrong_usage(settings, tmp_path, capfd):
    arguments = [*settings(), f"data.folder={tmp_path}"]
    assert main(["data", "build", *arguments]) == 0
    said = capfd.readouterr().out
    assert said.startswith("built 12 shards (600 spectra in ")
    shard = next(tmp_path.rglob("length_09.npz"))
    shard.write_bytes(shard.read_bytes()[:-1])
    for command in (["data", "build"], ["train"]):
        assert main([*command, *arguments]) == 2
        assert "length_09.npz is not as it was written" in capfd.readouterr().err
    shard.unlink()
    assert main(["data", "build", *arguments]) == 0
    assert capfd.readouterr().out.startswith("built 1 shards (50 spectra in ")


def test_online_training_reads_no_shard(settings, tmp_path):
    assert main(settings(steps=2, data__online="true", data__folder=tmp_path / "none")) == 0
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_says_what_a_command_does(arguments, capfd):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
    said = " ".join(capfd.readouterr().out.split())
    for name, about in COMMANDS.items() if len(arguments) == 1 else [(arguments[0], COMMANDS[arguments[0]])]:
        assert name in said
        assert about in said


def test_a_table_of_scores_fits_into_80_columns(monkeypatch, capsys):
    row = scores.Row("11-14", "clean", "baseline", 1000, 0.9, 0.01, 0.9, 0.9, 0.9, 123.4)
    monkeypatch.setattr(scores, "console", lambda: Console(width=80))
    scores.show("title", [row], as_json=False)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert "baseline" in shown


def test_more_loaders_than_cores_say_nothing_of_torch(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert main([*SETTINGS, "data.workers=2", f"data.folder={shards}", f"logs={tmp_path}", "name=crowded"]) == 0
    assert not [one for one in heard if "DataLoader" in str(one.message)]


def test_a_baseline_without_a_row_is_wrong_usage(capsys):
    assert main(["baseline", "data.source=theoretical", "data.max_length=3"]) == 2
    assert capsys.readouterr().err.startswith("trainer: data.max_length is 3, but the shortest peptide has 7 residues")
