"""Settings: typed, one sentence for every mistake, later ones win; and the command line's exit codes."""

import re
from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.config import UsageError
from trainer.faults import FAULTS, declared, named, running
from trainer.loading import load

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


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
        ("optimizer.lerning_rate=1", "unknown key 'optimizer.lerning_rate'"),
        ("curiculum=EXTENDED", "did you mean 'curriculum'?"),
        ("max_peaks=3", "did you mean 'data.max_peaks'?"),
        ("optimizer.lr=fast", "optimizer.lr is a number, not 'fast'"),
        ("optimizer.lr='5e-5'", "optimizer.lr is a number, not"),
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
        ("fault=raw-pm", "fault 'raw-pm' does not exist; choose from wrong-curriculum"),
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
    ],
)
def test_a_mistake_is_one_sentence_that_helps(override, words):
    with pytest.raises(UsageError, match=re.escape(words)) as raised:
        load([], [override])
    assert "\n" not in str(raised.value)


def test_files_that_are_not_there_or_hold_nothing(tmp_path):
    (tmp_path / "pretrain.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match=r"pretrian.yaml does not exist; did you mean .*pretrain.yaml\?"):
        load([str(tmp_path / "pretrian.yaml")], [])
    with pytest.raises(UsageError, match="holds no settings"):
        load([str(tmp_path / "pretrain.yaml")], [])
    (tmp_path / "broken.yaml").write_text("steps: [1\n")
    with pytest.raises(UsageError, match="is no YAML"):
        load([str(tmp_path / "broken.yaml")], [])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_in_the_repository_is_valid(path):
    config, _ = load([str(path)], [])
    assert config.name == path.stem
    assert config.horizon().total_steps > 0


def test_the_demos_differ_in_their_mistake_alone():
    folder = CONFIGS[0].parent
    sick, healthy = (load([str(folder / f"{name}.yaml")], [])[0] for name in ("demo", "demo-healthy"))
    cured, _ = load([str(folder / "demo.yaml")], ["fault=", "name=demo-healthy"])
    assert cured == healthy
    assert (declared(sick).name, running(sick).name, sick.loss.precursor_unit) == ("EXTENDED", "DEFAULT", "raw_ppm")


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_a_cure_undoes_its_fault_and_nothing_else(name, settings):
    fault = FAULTS[name]
    plain, _ = load([], settings(curriculum="EXTENDED", curriculum_entry="EXTENDED", steps=100))
    sick, _ = load([], [*settings(steps=100), f"fault={name}"])
    cure = [f"{path}={value}" for path, value in fault.cure.items()]
    cured, _ = load([], [*settings(curriculum_entry="EXTENDED", steps=100), f"fault={name}", *cure])
    assert sick != cured
    cured.fault = ""
    assert cured == plain
    assert 1 <= fault.begins(sick) <= 100


def test_faults_add_up():
    config, _ = load([], ["fault=wrong-curriculum, raw-ppm", "steps=500"])
    assert config.loss.precursor_unit == "raw_ppm"
    assert [fault.begins(config) for fault in named(config.fault)] == [40, 40]  # 8 % of the run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "'trian' is no command and no setting"),
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
        (["loss.precursor_unit=ppm"], "loss.precursor_unit 'ppm' does not exist"),
        (["loss.supervision=none"], "loss.supervision 'none' does not exist"),
        (["optimizer.schedule=step"], "schedule kind 'step' does not exist"),
        (["model.bptt=none"], "model.bptt 'none' does not exist"),
        (["data.source=real"], "data.source 'real' does not exist"),
        (["data.max_length=9"], "data.max_length is 9"),
        (["logs=pyproject.toml/below"], "pyproject.toml"),
        (["--resume", "nothing.pt"], "checkpoint nothing.pt does not exist"),
        (["--resume", "before:soon"], "write before:STEP"),
        (["--resume", "before:5"], "has no checkpoint up to there"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_line(arguments, words, settings, capsys, monkeypatch):
    monkeypatch.chdir(CONFIGS[0].parents[1])
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
