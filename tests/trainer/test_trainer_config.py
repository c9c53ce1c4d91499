"""Settings: typed, one sentence for every mistake, later ones win; and the command line's exit codes."""

import re
from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.config import UsageError, as_dict
from trainer.faults import declared, running
from trainer.loading import again, load

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


def test_later_files_and_overrides_win(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("seed: 1\nsteps: 10\noptimizer: {lr: 5e-5}\n")
    second.write_text("steps: 20\n")
    config, source = load([str(first), str(second)], ["seed=3"])
    assert (config.seed, config.steps, config.optimizer.lr) == (3, 20, 5e-5)
    assert (source.path, source.overrides) == (str(second), ["seed=3"])


def test_numbers_are_numbers_however_they_are_written():
    config, _ = load([], ["optimizer.lr=5e-5", "steps=1e3", "data.max_peaks=64"])
    assert (config.optimizer.lr, config.steps) == (5e-5, 1000)
    assert isinstance(config.steps, int)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lerning_rate=1", "unknown key 'optimizer.lerning_rate'; optimizer has name, lr, muon_lr"),
        ("optimizer.warm_up=1", "did you mean 'optimizer.warmup'?"),
        ("schedules.label_smoothing.rato=1", "did you mean 'schedules.label_smoothing.ratio'?"),
        ("modle.kind=plain", "unknown key 'modle'; did you mean 'model'?"),
        ("frobnicate=1", "unknown key 'frobnicate'; trainer/config.py has them all"),
        ("curiculum=EXTENDED", "did you mean 'curriculum'?"),
        ("max_peaks=3", "did you mean 'data.max_peaks'?"),
        ("optimizer.lr=fast", "optimizer.lr is a number, not 'fast'"),
        ("optimizer.lr='5e-5'", "optimizer.lr is a number, not '5e-5'; write 5e-5 without quotes."),
        ("steps=1.5", "steps is a whole number, not 1.5"),
        ("steps=true", "steps is a number, not True"),
        ("drop_last=1", "drop_last is true or false, not 1"),
        ("optimizer=3", "optimizer is a group of settings"),
        ("name=[1]", "name is text, not [1]"),
        ("evaluation.length=7", "evaluation.length is a list"),
        ("evaluation.length=[9,7]", "evaluation.length is [shortest, longest]"),
        ("batch_size=0", "batch_size is 0; it must be at least 1"),
        ("evaluation.every=0", "evaluation.every is a share of the total steps"),
        ("optimizer.warmup=20", "optimizer.warmup is a share of the total steps"),
        ("fault=raw-pm", "fault 'raw-pm' does not exist; choose from raw-ppm"),
        ("=3", "'=3' is no setting"),
        ("steps=.inf", "steps is a finite number, not inf"),
        ("optimizer.lr=.nan", "optimizer.lr is a finite number, not nan"),
        ("name=${nope}", "name: Interpolation key 'nope' not found"),
        ("fault=${nope}", "Interpolation key 'nope' not found"),
        ("name=", "name is empty"),
        ("loss.spectrum_sigma=0", "loss.spectrum_sigma is 0 Da"),
        ("schedules.label_smoothing.clock=foo", "clock 'foo' does not exist; choose one of applied, local"),
        ("data.min_peaks=101", "data.min_peaks is 101, but only 100 peaks are kept"),
        ("evaluation.dropout=1", "evaluation.dropout is 1"),
        ("evaluation.length=[6,9]", "the shortest peptide has 7 residues"),
        ("evaluation.length=[7,x]", "evaluation.length is a list of whole numbers such as [7, 18], not [7, 'x']"),
        ("curriculum_factors=length", "is a list of words such as [length, noise, weights], not 'length'"),
        ("optimizer.beta1=1.5", "optimizer.beta1 is 1.5; it must be at least 0 and below 1"),
        ("schedules.label_smoothing.start=2", "schedules.label_smoothing.start is 2; it must be"),
        ("schedules.label_smoothing.end=-0.1", "schedules.label_smoothing.end is -0.1; it must be"),
        ("data.workers=1000000", "data.workers is 1000000; this machine takes"),
    ],
)
def test_a_mistake_is_one_sentence_that_helps(override, words):
    with pytest.raises(UsageError, match=re.escape(words)) as raised:
        load([], [override])
    assert "\n" not in str(raised.value)


def test_what_looks_like_a_number_and_is_none_is_not_advised():
    with pytest.raises(UsageError, match=r"^'optimizer\.lr=nan': optimizer\.lr is a number, not 'nan'\.$"):
        load([], ["optimizer.lr=nan"])


def test_an_empty_list_can_be_replaced():
    assert load([], ["curriculum_factors=[]", "curriculum_factors=[noise]"])[0].curriculum_factors == ["noise"]


def test_json_and_yaml_say_the_same(tmp_path):
    for name, text in (
        ("a.json", '{"optimizer": {"lr": 5e-5}, "steps": 1e3}'),
        ("a.yaml", "optimizer: {lr: 5e-5}\nsteps: 1e3"),
    ):
        (tmp_path / name).write_text(text)
    (as_json, _), (as_yaml, _) = (load([str(tmp_path / name)], []) for name in ("a.json", "a.yaml"))
    assert as_json == as_yaml
    assert (as_json.optimizer.lr, as_json.steps) == (5e-5, 1000)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "- 1\n", "holds no settings; write `key: value` lines"),
        ("a.yaml", "steps: [1\n", "is no YAML in line 2, column 1"),
        ("a.yaml", "steps: 1\nsteps: 2\n", "is no YAML in line 2, column 1: found duplicate key steps"),
        ("a.yaml", "optimizer: {lr: '5e-5'}\n", "optimizer.lr is a number, not '5e-5'; write 5e-5 without quotes"),
        ("a.yaml", b"\xff\xfe", "is no text in UTF-8"),
        ("a.json", "[1]", 'holds no settings; write `{"steps": 1000}`'),
        ("a.json", "", "is no JSON in line 1, column 1: Expecting value"),
        ("a.json", '{"steps": 1,}', "is no JSON in line 1, column"),
        ("a.json", '{"steps": 1, "steps": 2}', "sets 'steps' twice; leave one of them"),
        ("a.json", '{"optimizer": {"lr": "5e-5"}}', "optimizer.lr is a number, not '5e-5'; write 5e-5 without quotes"),
        ("a.json", '{"optimizer": {"lr": NaN}}', "optimizer.lr is a finite number"),
        ("a.json", "[" * 100_000, "is nested too deeply"),
    ],
)
def test_a_file_that_is_wrong_is_one_sentence(name, text, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=re.escape(words)) as raised:
        load([str(path)], [])
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "pretrain.json").write_text("{}")
    with pytest.raises(UsageError, match=r"pretrian.json does not exist; did you mean .*pretrain.json\?"):
        load([str(tmp_path / "pretrian.json")], [])
    with pytest.raises(UsageError, match="is a folder; name a file in it"):
        load([str(tmp_path)], [])
    with pytest.raises(UsageError, match="does not exist; name one that does"):
        load([str(tmp_path / "nowhere" / "a.yaml")], [])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_in_the_repository_is_valid(path):
    config, _ = load([str(path)], [])
    assert config.name == path.stem
    assert config.horizon().total_steps > 0


def test_the_demos_differ_in_their_mistake_alone():
    folder = CONFIGS[-1].parent
    sick, healthy = (load([str(folder / f"{name}.yaml")], [])[0] for name in ("demo", "demo-healthy"))
    cured, _ = load([str(folder / "demo.yaml")], ["fault=", "name=demo-healthy"])
    assert cured == healthy
    assert (declared(sick).name, running(sick).name, sick.loss.precursor_unit) == ("EXTENDED", "DEFAULT", "raw_ppm")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "'trian' is no command and no setting (a command comes first: python -m trainer train"),
        (["data", "build"], "'data' is no command and no setting (a command comes first: python -m trainer data"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["sed=1"], "did you mean 'seed'?"),
        (["--config", "configs/demmo.yaml"], "did you mean configs/demo.yaml?"),
        (["size=huge"], "size 'huge' does not exist; choose one of tiny"),
        (["device=gpu"], "device 'gpu' does not exist"),
        (["device=meta"], "device 'meta' cannot train here"),
        (["checkpoint.folder=/proc/zz"], "checkpoint.folder=/proc/zz"),
        (["precision=fp8"], "precision 'fp8' does not exist"),
        (["curriculum=HARD"], "curriculum 'HARD' does not exist; choose one of DEFAULT, EXTENDED"),
        (["curriculum_ramp=sudden"], "curriculum_ramp 'sudden' does not exist"),
        (["curriculum_factors=[lenght]"], "curriculum_factors 'lenght' does not exist; choose one of length, noise"),
        (["loss.precursor_unit=ppm"], "loss.precursor_unit 'ppm' does not exist"),
        (["loss.supervision=none"], "loss.supervision 'none' does not exist"),
        (["optimizer.name=sgd"], "optimizer.name 'sgd' does not exist; choose one of adamw, muon"),
        (["optimizer.per=batch"], "optimizer.per 'batch' does not exist"),
        (["optimizer.per=epoch"], "optimizer.per is epoch, but the run has one"),
        (["optimizer.per=epoch", "optimizer.schedule=plateau"], "optimizer.schedule is plateau"),
        (["optimizer.ema=1"], "optimizer.ema is 1"),
        (["optimizer.factor=1"], "optimizer.factor is 1"),
        (["optimizer.final=2"], "optimizer.final is a share"),
        (["optimizer.muon_lr=0"], "optimizer.muon_lr"),
        (["optimizer.patience=0"], "optimizer.patience is 0"),
        (["evaluation.patience=-1"], "evaluation.patience is -1"),
        (["schedules.label_smoothing.steps=-1"], "schedules.label_smoothing.steps is -1"),
        (["optimizer.schedule=step"], "optimizer.schedule 'step' does not exist; choose one of constant"),
        (["model.bptt=none"], "model.bptt 'none' does not exist"),
        (["data.source=real"], "data.source 'real' does not exist"),
        (["data.max_length=9"], "data.max_length is 9"),
        (["evaluation.length=[7,99]"], "evaluation.length is [7, 99], but the model knows 31 residues"),
        (["logs=pyproject.toml/below"], "pyproject.toml"),
        (["--resume", "nothing.pt"], "checkpoint nothing.pt does not exist"),
        (["--resume", "before:soon"], "write before:STEP"),
        (["--resume", "before:5"], "has no checkpoint up to there"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(arguments, words, settings, capsys, monkeypatch):
    monkeypatch.chdir(CONFIGS[-1].parents[1])
    overrides = [item for item in settings() if not any(item.split("=")[0] == a.split("=")[0] for a in arguments)]
    try:
        code = main([*overrides, *arguments])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(("began", "asked"), [("", "raw-ppm"), ("raw-ppm", "")])
def test_a_fault_cannot_be_laid_under_what_is_stored(began, asked):
    stored = as_dict(load([], [f"fault={began}"])[0])
    assert again("record r", stored, []).fault == began
    with pytest.raises(UsageError, match="record r has settings of its own"):
        again("record r", stored, [f"fault={asked}"])
