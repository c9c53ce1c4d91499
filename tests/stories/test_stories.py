"""The five projects that trainwatch comes from: their files as they were, and the cause and the cure that must be named.

Below each folder lie the configs and scripts of one project, cut down to what matters. Their logs are written here, in
the form and with the numbers that those projects logged.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trainwatch
from trainwatch.judge import judge, settings
from trainwatch.lint import lint_command, lint_file
from trainwatch.schema import Finding

HERE = Path(__file__).parent


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``project("vision")``: that project's folder, and the working directory in it."""

    def enter(name: str) -> Path:
        shutil.copytree(HERE / name, tmp_path, dirs_exist_ok=True)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return enter


def alarms(findings: tuple[Finding, ...]) -> dict[str, Finding]:
    """The first alarm of each rule."""
    return {item.rule: item for item in reversed(findings) if item.severity != "info"}


def told(path: Path) -> Any:
    """The diagnosis of the only run in a log."""
    found = judge(path, settings(folder=path.parent))
    assert isinstance(found, list), found
    [item] = found
    return item.diagnosis


def lines(path: Path, records: Iterator[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# a peptide sequencer ran DEFAULT where EXTENDED was meant, and its mass loss blew it up


def test_peptide_before_the_run(project):
    """The config is named for one curriculum, the script imports another."""
    project("peptide")
    found = lint_command(["python", "train_optimized.py"], Path()).findings
    choice = alarms(found)["curriculum-choice"]
    assert "EXTENDED" in choice.message
    assert "DEFAULT_CURRICULUM" in choice.message
    assert (choice.evidence["script"], choice.evidence["script_line"]) == ("train_optimized.py", 3)


def peptides() -> Iterator[dict[str, Any]]:
    """As its metrics file has it, every 100th step: the mass term enters with a weight of 0.2 at step 8,000."""
    random = np.random.default_rng(0)
    for step in range(100, 14_000, 100):
        cross = 1.2 + 1.7 * np.exp(-step / 4000) + random.normal(0, 0.03)
        weight = 0.0 if step < 8000 else 0.2
        hurt = 0.0 if step < 8000 else 1.6 * (1 - np.exp(-(step - 8000) / 900))
        mass = 3100.0 * np.exp(random.normal(0, 0.2))
        yield {
            "step": step,
            "loss": cross + hurt + 0.1 * 0.6 + weight * mass,
            "ce_loss": cross + hurt,
            "spectrum_loss": 0.6 + random.normal(0, 0.01),
            "precursor_loss": mass,
            "precursor_loss_weight": weight,
            "spectrum_loss_weight": 0.1,
            "token_accuracy": 0.1 + 0.25 * (cross < 2) - 0.05 * (hurt > 0),
            "lr": 1.5e-4,
            "curriculum_stage": int(step >= 8000),
        }


def test_peptide_from_its_own_metrics_file(project):
    """The weight that enters is the cause, within the step at which it does."""
    root = told(lines(project("peptide") / "metrics.jsonl", peptides())).root_cause
    assert (root.rule, root.subject, root.severity) == ("aggressive-ramp", "component:precursor", "critical")
    assert root.first_step == 8000
    assert root.evidence["total_before"] == pytest.approx(1.55, abs=0.1)


def stages(*weights: float) -> list[dict[str, Any]]:
    """Three stages of 1,000 steps, each with its weight of the mass loss."""
    return [
        {"name": f"stage {n}", "start": 1000 * n, "end": 1000 * (n + 1), "weights": {"precursor": weight}}
        for n, weight in enumerate(weights)
    ]


def test_peptide_with_the_recorder(project):
    """Before its first step: what runs is not what is named. The patch names what is meant."""
    path = project("peptide") / "run.jsonl"
    declared = {"name": "EXTENDED", "stages": stages(0.0, 0.0, 0.08)}
    running = {"name": "DEFAULT", "stages": stages(0.0, 0.2, 1.0)}
    config = {"curriculum": "EXTENDED", "training": {"curriculum": "DEFAULT"}}
    with trainwatch.Recorder(
        path, config=config, total_steps=3000, curriculum=declared, curriculum_running=running
    ) as watch:
        watch.log({"loss": 3.0})
        watch.step()
    said = told(path)
    assert (said.root_cause.rule, said.root_cause.severity) == ("curriculum-mismatch", "critical")
    assert said.root_cause.first_step <= 1
    assert said.prescription.patch == {"training.curriculum": "EXTENDED"}


# a hearing-test model had one loss at 3,256,742 beside another at 3.75, and had never started


def test_hearing_before_the_run(project):
    """Numbers that YAML reads as text, each with its line and what to write."""
    found = lint_file(project("hearing") / "configs/train.yaml").findings
    wrong = {item.evidence["line"]: item for item in found if item.rule == "numeric-string"}
    assert {line: item.severity for line, item in wrong.items()} == dict.fromkeys((6, 7, 10, 11), "warning")
    assert wrong[6].patch == {"optimizer.lr": 5e-5}
    assert "Write 5.0e-5." in wrong[6].advice
    assert wrong[10].patch == {"training.batch_size": 24}


ATTEMPT = """Loading configuration from configs/train.yaml
Traceback (most recent call last):
  File "train.py", line 212, in <module>
    main()
  File "train.py", line {line}, in main
    {code}
{error}
"""
RATE = (98, "optimizer = AdamW(lr=config['lr'])", "TypeError: '<=' not supported between instances of 'float' and 'str'")
FILE = (61, "data = load(path)", "FileNotFoundError: [Errno 2] No such file or directory: 'data/abr.pkl'")
STYLE = (20, "plt.style.use('seaborn')", "OSError: 'seaborn' is not a valid package style, path of style file, or URL")


def test_hearing_had_never_started(project):
    """It "did not converge": six attempts, three kinds of error, no step; what stopped it most often comes first."""
    path = project("hearing") / "train.log"
    tried = [RATE, RATE, RATE, FILE, FILE, STYLE]
    path.write_text("".join(ATTEMPT.format(line=line, code=code, error=error) for line, code, error in tried))
    root = told(path).root_cause
    assert (root.rule, root.severity) == ("never-started", "critical")
    assert (root.evidence["attempts"], root.evidence["kinds"]) == (6, 3)
    assert "3 x TypeError: '<=' not supported between instances of 'float' and 'str'; 2 x FileNotFound" in root.message
    assert "TypeError" in root.advice


def test_hearing_from_its_console(project):
    """Named in the twelfth epoch of a hundred, from names that nobody explained."""
    random = np.random.default_rng(1)
    path = project("hearing") / "train.log"
    with path.open("w") as log:
        for epoch in range(1, 13):
            peak, signal, late = np.array([3256742.75, 3.75, 0.6931]) * np.exp(random.normal(0, 0.01, 3) * (epoch > 1))
            parts = f"(Signal: {signal:.4f}, PeakAmp: {peak:.4f}, PeakLatency: {late:.4f})"
            print(f"Epoch {epoch}/100 - Train Loss: {peak + signal + late:.4f} {parts}", file=log)
            print(f"Epoch {epoch}/100 - Val Loss: {peak * 1.01:.4f}", file=log)
    root = told(path).root_cause
    assert (root.rule, root.subject, root.severity) == ("loss-scale-imbalance", "component:PeakAmp", "critical")
    assert root.first_step == 1
    assert root.evidence["ratio"] == pytest.approx(733_115, rel=0.01)


def test_hearing_with_the_recorder(project):
    """The same with its weights in the config: the patch brings the large one to the scale of the others."""
    path = project("hearing") / "run.jsonl"
    random = np.random.default_rng(1)
    weights = {"signal": 1.0, "peak_amplitude": 1.0}
    with trainwatch.Recorder(path, config={"loss": {"weights": weights}}, total_steps=1000) as watch:
        for _ in range(60):
            parts = {"signal": 3.75, "peak_amplitude": 3256742.75}
            drawn = {f"loss/{name}": value * np.exp(random.normal(0, 0.05)) for name, value in parts.items()}
            watch.log({"loss": sum(drawn.values()), **drawn, **{f"weight/{name}": 1.0 for name in weights}})
            watch.step()
    said = told(path)
    assert (said.root_cause.rule, said.root_cause.subject) == ("loss-scale-imbalance", "component:peak_amplitude")
    [(where, weight)] = said.prescription.patch.items()
    assert where == "loss.weights.peak_amplitude"
    assert weight == pytest.approx(3.75 / 3256742.75, rel=0.2)


# a vision pipeline annealed on a local counter that stood at 1,200 while the run was at step 5,000


def test_vision_before_the_run(project):
    """A config that is not there, overrides in a wrong form, horizons that do not fit, a total that is not the data's."""
    project("vision")
    missing = alarms(lint_command(["python", "pretrain.py", "--config-name=cfg_multimodal"], Path()).findings)
    assert "Write cfg_pretrain." in missing["missing-config"].advice
    words = ["python", "pretrain.py", "data_paths=shards/a.tar", "+optim.lr=1e-3", "dataset_args=[image_size]"]
    wrong = [item for item in lint_command(words, Path()).findings if item.rule == "bad-override"]
    assert [item.advice.split(".")[0] for item in wrong] == [
        "Write 'data_paths=[shards/a",
        "Write optim",
        "Write dataset_args",
    ]
    length = alarms(lint_command(["python", "pretrain.py"], Path()).findings)["absolute-horizon"]
    assert (length.evidence["line"], length.evidence["length"], length.evidence["planned"]) == (12, 50_000, 10_000)
    assert length.patch == {"dqn.expansion_anneal_steps": 10_000}
    assert "expansion_anneal_ratio: 1.0" in length.advice
    total = alarms(lint_file(Path("configs/total.yaml")).findings)["total-steps-mismatch"]
    assert total.evidence["line"] == 4
    assert total.patch == {"total_steps": 1570}


def test_vision_anneal_in_the_code(project):
    """The number stands in the script, and the config does not know of it."""
    root = project("vision")
    config = root / "configs/cfg_pretrain.yaml"
    config.write_text(config.read_text().replace("  expansion_anneal_steps: 50000\n", ""))
    found = lint_command(["python", "pretrain.py"], Path()).findings
    assert alarms(found)["coded-horizon"].evidence["line"] == 6


def test_vision_while_it_runs(project):
    """The counter moves in every fourth step; named before its schedule is off by a twentieth."""
    path = project("vision") / "run.jsonl"
    penalty = {"kind": "linear", "start": 0.0, "end": 1.0, "over_steps": 100_000, "clock": "dqn"}
    config = {"schedules": {"expansion_penalty": dict(penalty)}}
    random = np.random.default_rng(0)
    with trainwatch.Recorder(
        path, config=config, total_steps=100_000, schedules={"expansion_penalty": penalty}
    ) as watch:
        for step in range(1, 5001):
            updates = int(0.24 * step)
            watch.clock("dqn", updates)
            watch.schedule("expansion_penalty", updates / 100_000)
            watch.log({"loss": 2.0 / (1 + step / 800) + random.normal(0, 0.02)})
            watch.step()
    root = told(path).root_cause
    assert (root.rule, root.subject) == ("clock-desync", "clock:dqn")
    assert "reads 1,200 at step 5,000" in root.message
    assert root.patch == {"schedules.expansion_penalty.clock": "applied"}


# an antibody generator's guide fears collapse into GGGG, and a gap above 1.0 between training and validation


def antibody(path: Path, *, collapse: bool, gap: float) -> Path:
    """2,000 steps, evaluated and sampled at every hundredth; from step 800 on `gap` opens, or all becomes G."""
    random = np.random.default_rng(0)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    with trainwatch.Recorder(path, total_steps=2000, components={"tokens": {"unit": "nat"}}) as watch:
        for step in range(1, 2001):
            late = max(step - 800, 0) / 1200
            loss = 0.9 + 2.0 * np.exp(-step / 400) - 0.3 * late * bool(gap) + random.normal(0, 0.03)
            watch.log({"loss": loss, "loss/tokens": loss})
            watch.step()
            if step % 100 == 0:
                watch.evaluate(step, "validation", {"loss/tokens": 0.95 + 2.0 * np.exp(-step / 400) + gap * late})
                stuck = collapse and step > 800
                made = ["G" * 24 if stuck else "".join(random.choice(letters, 24)) for _ in range(64)]
                longest = float(np.mean([max(len(run) for run, _ in re.findall(r"((.)\2*)", text)) for text in made]))
                watch.sample(made, step, quality={"diversity": len(set(made)) / 64, "longest_run": longest})
    return path


def test_antibody_collapse(project):
    """Diverse until step 800, then GGGG: since when, and in what."""
    root = told(antibody(project("antibody") / "gen.jsonl", collapse=True, gap=0.0)).root_cause
    assert root.rule in ("mode-collapse", "repetitive-outputs")
    assert root.first_step == 900
    assert root.severity != "info"


def test_antibody_gap(project):
    """Training goes on falling, validation rises: named since its best step."""
    said = told(antibody(project("antibody") / "gen.jsonl", collapse=False, gap=1.5))
    named = {item.rule: item for item in said.findings if item.severity != "info"}
    assert said.root_cause.rule == "overfitting"
    assert 700 <= said.root_cause.first_step <= 1000
    assert named["generalisation-gap"].evidence["gap"] > 1.0


def test_antibody_healthy(project):
    """The same without either."""
    said = told(antibody(project("antibody") / "gen.jsonl", collapse=False, gap=0.0))
    assert said.worst in (None, "info")
