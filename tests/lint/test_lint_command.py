"""Launch commands: scripts, flags and overrides, judged without running any of them."""

import pytest

from trainwatch import judge
from trainwatch.lint import files, lint_command, lint_file
from trainwatch.lint.sources.command import hydra_parser, read_command

SCRIPT = """
import hydra
from curricula import DEFAULT_CURRICULUM

@hydra.main(config_path="configs", config_name="cfg_pretrain", version_base=None)
def main(cfg):
    train(cfg, DEFAULT_CURRICULUM, anneal_steps=50000)
"""
CONFIG = """
defaults:
  - _self_
  - arch: small
plan: EXTENDED
data_paths: [a.txt]
dataset_args: {noise: 0.1, length: 12}
anneal_steps: 10000
optim:
  lr: 1e-4
"""
PARSER = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--learning-rate", type=float, default=1e-4)
parser.add_argument("--epochs", type=int, required=True)
parser.add_argument("--amp", action="store_true")
parser.add_argument("--opt", choices=["adam", "sgd"])
parser.add_argument("--config")
args = parser.parse_args()
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A Hydra program and an argparse program."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/arch").mkdir(parents=True)
    (tmp_path / "pretrain.py").write_text(SCRIPT)
    (tmp_path / "train.py").write_text(PARSER)
    (tmp_path / "configs/cfg_pretrain.yaml").write_text(CONFIG)
    (tmp_path / "configs/arch/small.yaml").write_text("depth: 4\n")
    (tmp_path / "configs/arch/large.yaml").write_text("depth: 8\n")
    (tmp_path / "configs/flat.yaml").write_text("batch_size: 8\nlr: 0.001\n")
    return tmp_path


def alarms(project, text):
    """(check, what is said) of everything that is no info."""
    found = lint_command(text.split(" "), project).findings
    return [(item.rule, f"{item.message} {item.advice}") for item in found if item.severity != "info"]


@pytest.mark.parametrize(
    "text",
    [
        "python pretrain.py",
        "python pretrain.py arch=large optim.lr=1e-3",
        "python pretrain.py --config-name=cfg_pretrain data_paths=[b.txt,c.txt]",
        "python pretrain.py --multirun optim.lr=1e-3,1e-4",
        "python pretrain.py +optim.momentum=0.9 ++optim.lr=1 hydra.run.dir=out",
        "python pretrain.py dataset_args.noise=0.2 dataset_args={noise:0.2} ~dataset_args.length",
        "python pretrain.py +experiment=x",
        "python train.py --epochs 3",
        "CUDA_VISIBLE_DEVICES=0 torchrun --nproc_per_node 4 train.py --epochs=3 --amp --learning-rate -1e-3",
        "python train.py --epochs 3 --opt sgd --learn 1e-3 --config configs/flat.yaml",
        "accelerate launch --num_processes 8 train.py --epochs 3",
        "tune run lora_finetune --config llama3/8B_lora batch_size=4",
        "python -m somebodys.module --anything goes",
    ],
)
def test_healthy(project, text):
    """Only what stands in the config itself is judged: the wrong curriculum is another test's."""
    assert alarms(project, text) == []


@pytest.mark.parametrize(
    ("text", "check", "right"),
    [
        ("python pretrain.py --config-name=cfg_multimodal", "missing-config", "Write cfg_pretrain."),
        ("python pretrain.py arch=lage", "bad-override", "Write arch=large."),
        ("python pretrain.py +optim.lr=1e-3", "bad-override", "Write optim.lr=1e-3."),
        ("python pretrain.py optm.lr=2", "bad-override", "Write optim.lr=2"),
        ("python pretrain.py something_else=2", "bad-override", "+something_else=2"),
        ("python pretrain.py data_paths=b.txt", "bad-override", "data_paths=[b.txt]"),
        ("python pretrain.py dataset_args=[noise]", "bad-override", "dataset_args.noise"),
        ("python pretrain.py dataset_args=[]", "bad-override", "mapping"),
        ("python pretrain.py data_paths=b.txt,c.txt", "bad-override", "[b.txt,c.txt]"),
        ("python pretrain.py arch.depth=deep", "bad-override", "arch.depth=4"),
        ("python pretrain.py --anneal_steps 3", "bad-override", "anneal_steps=3"),
        ("python run_pretrain.py", "missing-config", "Write pretrain.py."),
        ("python train.py --epochs 3 --learning-rat3 1", "bad-flag", "--learning-rate"),
        ("python train.py --epochs 3 --amp true", "bad-flag", "Write --amp."),
        ("python train.py --epochs 3 --amp=false", "bad-flag", "Leave out --amp."),
        ("python train.py --epochs 3e1", "bad-flag", "Write --epochs 30."),
        ("python train.py --epochs 3 --opt adm", "bad-flag", "Write adam."),
        ("python train.py --epochs 3 --learning-rate", "bad-flag", "VALUE"),
        ("python train.py", "bad-flag", "Add --epochs"),
        ("python train.py --epochs 3 --config configs/flta.yaml", "missing-config", "configs/flat.yaml"),
    ],
)
def test_named(project, text, check, right):
    """One alarm with the right words to write."""
    [(rule, said)] = alarms(project, text)
    assert rule == check
    assert right in said


@pytest.mark.skipif(hydra_parser() is None, reason="needs hydra-core: the extra [lint]")
@pytest.mark.parametrize(
    ("override", "right"),
    [("data_paths=[a,b", "Close the bracket"), ("dataset_args=[noise=0.2]", "{noise:0.2}"), ("plan=a:b=c", "quotes")],
)
def test_syntax_by_hydras_own_parser(project, override, right):
    """What it refuses is said in its words."""
    [(rule, said)] = alarms(project, f"python pretrain.py {override}")
    assert rule == "bad-override"
    assert right in said


def test_the_curriculum_that_is_imported_is_not_the_one_that_is_named(project):
    """DEFAULT where EXTENDED was meant, with both places."""
    path = project / "configs/cfg_pretrain.yaml"
    path.write_text(path.read_text().replace("plan:", "curriculum:"))
    found = lint_command(["python", "pretrain.py"], project).findings
    [choice] = [item for item in found if item.rule == "curriculum-choice"]
    assert choice.severity == "critical"
    assert (choice.evidence["line"], choice.evidence["script_line"]) == (5, 3)
    assert "DEFAULT_CURRICULUM" in choice.message
    [number] = [item for item in found if item.rule == "hard-coded"]
    assert "50000 here" in number.message
    assert number.severity == "info"


def test_the_right_curriculum_is_no_finding(project):
    """A script that knows both chooses at run time."""
    script = SCRIPT.replace("import DEFAULT_CURRICULUM", "import DEFAULT_CURRICULUM, EXTENDED_CURRICULUM")
    (project / "pretrain.py").write_text(script)
    path = project / "configs/cfg_pretrain.yaml"
    path.write_text(path.read_text().replace("plan:", "curriculum:"))
    assert alarms(project, "python pretrain.py") == []


def test_words_of_a_command():
    """Launchers, the environment, short names, negative numbers."""
    said = read_command(
        [
            "A=1",
            "torchrun",
            "--nproc-per-node",
            "4",
            "-m",
            "pkg.train",
            "-cn",
            "big",
            "--lr",
            "-1e-3",
            "--amp",
            "+x.y=[1]",
            "~z",
        ]
    )
    assert (said.module, said.processes) == ("pkg.train", 4)
    assert [(item.name, item.value) for item in said.options] == [
        ("--config-name", "big"),
        ("--lr", "-1e-3"),
        ("--amp", None),
    ]
    assert [(item.prefix, item.key, item.value) for item in said.overrides] == [("+", "x.y", "[1]"), ("~", "z", None)]


def test_a_hydra_circle_is_a_sentence(project):
    """Defaults lists may lead in a circle."""
    (project / "configs/cfg_pretrain.yaml").write_text("defaults:\n  - cfg_pretrain\n")
    with pytest.raises(Exception, match="circle"):
        lint_command(["python", "pretrain.py"], project)


@pytest.mark.parametrize(
    ("command", "right"),
    [
        ("python pretrain.py --config-name=cfg_multimodal", "arch=multimodal"),
        ("python pretrain.py name=multimodal-run-3", "arch=multimodal"),
        ("python train.py --epochs 3 --name multimodal_small", "--arch multimodal"),
    ],
)
def test_a_run_that_is_named_for_another_architecture(project, command, right):
    """The default runs, and the name promises what is there as well."""
    (project / "configs/arch/multimodal.yaml").write_text("depth: 8\n")
    (project / "configs/cfg_multimodal.yaml").write_text("defaults: [{arch: small}, _self_]\nname: x\n")
    path = project / "configs/cfg_pretrain.yaml"
    path.write_text(path.read_text() + "name: x\n")
    choices = 'parser.add_argument("--arch", choices=["plain", "multimodal"], default="plain")\n'
    name = 'parser.add_argument("--name")\nargs'
    (project / "train.py").write_text(PARSER.replace("\nargs", f"\n{choices}{name}"))
    [(rule, said)] = alarms(project, command)
    assert rule == "architecture-choice"
    assert right in said
    assert alarms(project, f"{command} {right}") == []


def test_an_anneal_that_is_written_in_the_script(project):
    """50,000 steps in the code, 10,000 in the config."""
    (project / "configs/flat.yaml").write_text("total_steps: 10000\nlr: 0.001\n")
    (project / "loop.py").write_text("expansion_anneal_steps = 50000\nwarmup_steps = 500\nrun('configs/flat.yaml')\n")
    [found] = lint_command(["python", "loop.py"], project).findings
    assert (found.rule, found.evidence["line"], found.severity) == ("coded-horizon", 1, "warning")
    assert "20% of the way" in found.message
    (project / "configs/flat.yaml").write_text("total_steps: 60000\nlr: 0.001\n")
    assert lint_command(["python", "loop.py"], project).findings == ()


def test_the_processes_of_the_launcher_count(project):
    """4 processes with 8 samples each take 32 at a step."""
    plan = "epochs: 2\nnum_samples: 6400\nper_device_batch_size: 8\ntotal_steps: {}\n"
    launch = "torchrun --nproc_per_node 4 loop.py --config configs/flat.yaml"
    (project / "loop.py").write_text("")
    (project / "configs/flat.yaml").write_text(plan.format(400))
    assert alarms(project, launch) == []
    (project / "configs/flat.yaml").write_text(plan.format(1600))
    assert [rule for rule, _ in alarms(project, launch)] == ["total-steps-mismatch"]


def test_a_check_can_be_switched_off(project):
    """As rules can: in pyproject.toml."""
    (project / "configs/flat.yaml").write_text("lr: 1e-4\nseed: 1\n")
    assert [item.rule for item in lint_file(project / "configs/flat.yaml").findings] == ["numeric-string"]
    (project / "pyproject.toml").write_text('[tool.trainwatch]\noff = ["numeric-string", "lr-zero"]\n')
    assert lint_file(project / "configs/flat.yaml", judge.settings(folder=project)).findings == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 0.001\nfp16: true\n", "Clip at 1.0"),
        ("lr: 0.001\nfp16: true\nmax_grad_norm: 1.0\n", ""),
        ("lr: 0.001\nprecision: 16-mixed\ngradient_clip_val: 0\n", "Clip at 1.0"),
        ("lr: 0.001\nprecision: bf16-mixed\n", ""),
        ("label_smoothing: 0.1\nlosses: {precursor_loss_weight: 0.1}\n", "label_smoothing: 0.0"),
        ("label_smoothing: 0.1\nlosses: {precursor_loss_weight: 0.0}\n", ""),
    ],
)
def test_defaults_that_do_not_go_together(project, text, said):
    """Mentioned, and no more."""
    (project / "configs/flat.yaml").write_text(text)
    found = [item for item in lint_file(project / "configs/flat.yaml").findings if item.rule == "risky-defaults"]
    assert [item.severity for item in found] == (["info"] if said else [])
    assert not said or said in found[0].advice


def test_a_folder_without_what_tools_keep_for_themselves(project):
    """`.github/workflows` holds no trainings."""
    (project / "configs/.github").mkdir()
    (project / "configs/.github/x.yaml").write_text("lr: 1e-4\n")
    assert ".github" not in " ".join(map(str, files(project / "configs")))
