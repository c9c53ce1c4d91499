"""What is prescribed: from the findings of a run, in the paths of its own config, and how it is written down."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from trainwatch.cli import main
from trainwatch.cures import cure
from trainwatch.cures.rates import FIRST_RATIO
from trainwatch.cures.setting import words
from trainwatch.diagnosis import diagnose
from trainwatch.engine import Engine, catalogue
from trainwatch.prescription import NEW, prescribe
from trainwatch.schema import Finding
from trainwatch.text import patch


def finding(rule, subject="run", step=40, severity="critical", state="active", **more):
    return Finding(rule, severity, subject, step, 100, state, f"{rule}.", **more)


@pytest.fixture
def run_with(make_run):
    """A run of 100 rows with this config, and whatever columns and header fields besides."""

    def made(config, columns=None, **header):
        return make_run({"loss": np.linspace(3, 2, 100), **(columns or {})}, header={"config": config, **header})

    return made


def cured(run, *args, **more):
    return {item.path: item.value for item in cure(finding(*args, **more), run)}


@pytest.mark.parametrize(
    ("rule", "config", "more", "expected"),
    [
        ("lr-too-high", {"optim": {"lr": 1.0}}, {"evidence": {"update_ratio": 0.05}}, {"optim.lr": 0.02}),
        ("lr-too-high", {"learning_rate": 0.3}, {"evidence": {"growth": 9.0}}, {"learning_rate": 0.03}),
        ("lr-too-low", {"learning_rate": 1e-7}, {"evidence": {"update_ratio": 1e-5}}, {"learning_rate": 2e-4}),
        (
            "gradient-explosion",
            {"lr": 3e-3, "max_grad_norm": 0, "warmup_ratio": 0.0},
            {"evidence": {"before": 1.234}},
            {"lr": 1e-3, "max_grad_norm": 1.2, "warmup_ratio": 0.05},
        ),
        ("loss-divergence", {"lr": 3e-3, "max_grad_norm": 1.0, "warmup": 0.1}, {}, {"lr": 1e-3}),
        ("amp-scale-collapse", {"trainer": {"precision": "16-mixed"}}, {}, {"trainer.precision": "bf16-mixed"}),
        ("amp-scale-collapse", {"fp16": True, "bf16": False}, {}, {"fp16": False, "bf16": True}),
        ("overflow-risk", {"precision": "fp16"}, {"subject": "module:logits"}, {"precision": "bf16"}),
        ("clipping-saturated", {"grad_clip": 1.0}, {"evidence": {"norm": 7.77}}, {"grad_clip": 7.8}),
        ("clipping-saturated", {"clip": 0.001}, {"evidence": {"norm": 2.28}}, {"clip": 2.3}),
        ("weight-growth", {"weight_decay": -0.2}, {"subject": "group:all"}, {"weight_decay": 0.0}),
        ("component-sign", {"fairness": -2.0}, {"subject": "component:fairness"}, {"fairness": 2.0}),
        ("component-sign", {"kl_weight": -0.5}, {"subject": "component:kl"}, {"kl_weight": 0.5}),
        ("lr-zero", {"scheduler": {"T_max": 40}}, {}, {"scheduler.T_max": 100}),
        ("aggressive-ramp", {"kl_ramp_steps": 500}, {"subject": "component:kl"}, {"kl_ramp_steps": 2000}),
    ],
)
def test_a_cure_is_in_the_paths_of_the_runs_own_config(rule, config, more, expected, run_with):
    assert cured(run_with(config, total_steps=100, max_grad_norm=config.get("clip")), rule, **more) == expected


@pytest.mark.parametrize(
    ("rule", "config"),
    [
        ("lr-too-high", {"actor": {"lr": 0.1}, "critic": {"lr": 0.2}}),
        ("lr-too-high", {"lr": "auto"}),
        ("amp-scale-collapse", {"precision": "bf16"}),
        ("loss-divergence", {}),
        ("overfitting", {"lr": 0.1, "dropout": 0.0}),
        ("clipping-saturated", {"clip": 0.2}),
        ("weight-growth", {"weight_decay": 0.1}),
        ("component-sign", {"kl_weight": 0.5}),
        ("lr-too-high", {"rate": 0.1}),
    ],
)
def test_what_cannot_be_told_apart_is_not_guessed(rule, config, run_with):
    assert cured(run_with(config), rule) == {}


def test_the_advice_on_a_low_rate_is_what_its_cure_does():
    assert catalogue()["lr-too-low"]().usual == FIRST_RATIO


@pytest.mark.parametrize(
    ("parameters", "first", "rate"),
    [
        (None, np.nan, 0.012),  # nothing tells how far: a hundredfold
        (250_000, np.nan, 0.024),  # 1.2 x sqrt(parameters) / 200 = 3: fiftyfold brings it to 0.06
        (250_000, 4.0, 0.018),  # the first sample says more
        (1_000, np.nan, 0.04),  # such first steps swept nothing away: thirtyfold, no less
        (9_000_000, np.nan, 0.012),
    ],
)
def test_how_long_the_first_steps_were_bounds_how_far_a_rate_comes_down(parameters, first, rate, run_with):
    norm, ratio = np.full(100, np.nan), np.full(100, np.nan)
    norm[[0, 50, 99]], ratio[[0, 50]] = (200.0, 8200.0, 8300.0), (first, 0.01)
    told = {} if parameters is None else {"parameters": parameters}
    run = run_with({"lr": 1.2}, {"weight_norm/all": norm, "update_ratio/all": ratio}, **told)
    assert cured(run, "lr-too-high", "group:all", evidence={"growth": 41.0}) == {"lr": rate}


@pytest.mark.parametrize(("limit", "wanted"), [(1.0, {}), (0.01, {"grad_clip": 950}), (200.0, {"grad_clip": 950})])
def test_a_usual_limit_far_below_the_norm_is_not_what_is_wrong(limit, wanted, run_with):
    """A component of another scale makes such norms; to let it through would make it worse."""
    assert cured(run_with({"grad_clip": limit}), "clipping-saturated", evidence={"norm": 950.0}) == wanted


def test_of_several_rates_the_one_that_the_group_had(run_with):
    run = run_with({"actor": {"lr": 0.1}, "critic": {"lr": 0.2}}, {"lr/critic": np.full(100, 0.2)})
    assert cured(run, "lr-too-high", "group:critic", evidence={"update_ratio": 0.1}) == {"critic.lr": 0.002}


def test_a_name_that_is_a_rate_of_other_things_too_is_one_where_the_optimiser_had_its_value(run_with):
    run = run_with({"rate": 0.5, "dropout": {"rate": 0.1}}, {"lr/all": np.full(100, 0.5)})
    assert cured(run, "lr-too-high", "group:all", evidence={"update_ratio": 0.05}) == {"rate": 0.01}


def test_weights_that_were_swept_away_tell_how_far_too_high_the_rate_was(run_with):
    """From 2 to 82 in 50 steps: 0.8 of the weights in each, of which a hundredfold is all that is taken away."""
    norm = np.full(100, np.nan)
    norm[[0, 50, 99]] = 2.0, 82.0, 83.0
    high = finding("lr-too-high", "group:all", evidence={"growth": 41.0})
    assert [item.value for item in cure(high, run_with({"lr": 1.2}, {"weight_norm/all": norm}))] == [0.012]
    norm[50:] = np.nan
    norm[50] = 6.0
    assert [item.value for item in cure(high, run_with({"lr": 1.2}, {"weight_norm/all": norm}))] == [0.03]


@pytest.mark.parametrize("rule", ["loss-divergence", "gradient-explosion", "non-finite-loss", "non-finite-gradient"])
def test_a_rate_is_not_lowered_where_the_steps_were_of_the_usual_size(rule, run_with):
    """What breaks a run that was calm is its data or a formula."""
    ratio = np.full(100, np.nan)
    ratio[[0, 20, 39, 60]] = 0.2, 0.003, 0.004, 0.5
    config = {"lr": 0.1, "max_grad_norm": 0, "warmup_ratio": 0.0}
    assert cured(run_with(config, {"update_ratio/all": ratio}), rule) == {}
    ratio[39] = 0.05
    assert cured(run_with(config, {"update_ratio/all": ratio}), rule)["lr"] == 0.033


def test_a_loss_that_was_falling_until_it_was_nan_is_no_matter_of_the_rate(run_with):
    loss = np.linspace(3, 2, 100)
    loss[40:] = np.nan
    config = {"lr": 0.1, "precision": "fp16"}
    assert cured(run_with(config, {"loss": loss}), "non-finite-loss") == {"precision": "bf16"}
    loss[36:40] = 4, 9, 40, 900
    assert cured(run_with(config, {"loss": loss}), "non-finite-loss") == {"lr": 0.033, "precision": "bf16"}


def test_a_rate_is_left_alone_beside_a_root_cause_that_has_no_cure(run_with):
    frozen, high = finding("frozen-weights"), finding("lr-too-high", evidence={"growth": 3.2})
    run = run_with({"lr": 0.1})
    assert prescribe(frozen, [high], run, [frozen, high]).uncured == (frozen, high)
    assert prescribe(high, [frozen], run, [frozen, high]).patch == {"lr": 0.01}


def test_weights_are_rebalanced_by_what_was_measured(run_with):
    """Two losses of which one owns 99.9 % of the gradient: with a weight 999 times smaller each has half."""
    shares = {"grad_share/mass": np.full(100, 0.999), "grad_share/main": np.full(100, 0.001)}
    config = {"loss": {"mass_weight": 2.0, "main_weight": 1.0, "mass_margin": 3.0}}
    loud = finding("loss-scale-imbalance", "component:mass", evidence={"ratio": 5e4})
    assert [(item.path, item.value) for item in cure(loud, run_with(config, shares))] == [("loss.mass_weight", 0.002)]
    assert [item.value for item in cure(loud, run_with(config))] == [4e-5]
    quiet = run_with(config, {"grad_share/main": np.full(100, 0.001), "grad_share/mass": np.full(100, 0.999)})
    assert cured(quiet, "component-ignored", "component:main") == {"loss.main_weight": 53.0}
    penalty = run_with(config, shares, components={"mass": {"role": "regulariser"}, "main": {"role": "task"}})
    assert [item.value for item in cure(loud, penalty)] == [0.0005]


def test_what_is_off_its_default_and_named_for_the_sick_component_goes_back(run_with):
    """Only where it is the one: two settings as near are not told apart."""
    config = {"loss": {"mass_unit": "ppm", "mass_weight": 1.0, "angle_unit": "rad"}, "lr": 1e-3}
    off = {"loss.mass_unit": "huber", "lr": 3e-4}
    assert cured(run_with(config, config_defaults=off), "component-dead", "component:mass") == {
        "loss.mass_unit": "huber"
    }
    assert cured(run_with(config, config_defaults=off), "component-dead", "component:angle") == {}
    both = off | {"loss.mass_weight": 0.1}
    assert cured(run_with(config, config_defaults=both), "component-dead", "component:mass") == {}


def test_classes_are_weighted_by_how_often_they_come(run_with):
    counts = {"cat": 900, "dog": 100}
    assert cured(run_with({"class_weights": None}, classes=counts), "class-imbalance") == {
        "class_weights": {"cat": 0.56, "dog": 5.0}
    }
    assert cured(run_with({"loss": {"class_weights": [1, 1]}}, classes=counts), "class-imbalance") == {
        "loss.class_weights": [0.56, 5.0]
    }
    assert cured(run_with({"lr": 1.0}, classes=counts), "class-imbalance") == {}


def test_losses_that_begin_at_once_are_phased(run_with):
    """The first task alone, then one more at each boundary, with the weights that the run had."""
    config = {"curriculum": {"ramp": "step", "stages": []}}
    components = {"main": {"role": "task"}, "mass": {"role": "task"}, "decay": {"role": "regulariser"}}
    weights = {"weight/main": np.ones(100), "weight/mass": np.full(100, 0.3)}
    run = run_with(config, weights, total_steps=100, components=components)
    found = cured(run, "all-at-once", severity="info")
    assert [stage["weights"] for stage in found["curriculum.stages"]] == [
        {"main": 1.0, "mass": 0.0},
        {"main": 1.0, "mass": 0.3},
    ]
    assert [(stage["start"], stage["end"]) for stage in found["curriculum.stages"]] == [(0, 50), (50, 100)]
    assert found["curriculum.ramp"] == "linear"


def test_a_ratio_instead_of_steps_where_that_is_the_default(run_with):
    anneal = {"ratio": 0.8, "steps": 80_000}
    found = finding("schedule-unfinished", "schedule:smoothing", patch={"anneal.steps": 100})
    assert [item.value for item in cure(found, run_with({"anneal": anneal}, config_defaults={"anneal.steps": 0}))] == [
        0
    ]
    assert [item.value for item in cure(found, run_with({"anneal": anneal}))] == [100]


def test_effects_and_symptoms_put_nothing_into_the_patch(run_with, monkeypatch):
    """The divergence follows from the curriculum; beside it a clock of its own is wrong too."""
    told = [
        finding("curriculum-mismatch", step=0, patch={"curriculum": "B"}),
        finding("clock-desync", "clock:kl", 10, "warning", patch={"kl.clock": "applied"}),
        finding("loss-divergence", step=50),
        finding("gradient-explosion", step=5, severity="warning"),
        finding("all-at-once", severity="info", patch={"curriculum": "C"}),
    ]
    monkeypatch.setattr(Engine, "findings", lambda *_: told)
    said = diagnose(run_with({"curriculum": "A", "kl": {"clock": "local"}, "lr": 1e-3}))
    assert said.prescription.patch == {"curriculum": "B", "kl.clock": "applied"}
    assert [change.was for change in said.prescription.changes] == ["A", "local"]
    assert said.prescription.first_bad == 0


def test_an_info_on_the_same_subject_dates_the_first_bad_step(run_with):
    """The ramp was seen at 13, the imbalance was sure at 21: a checkpoint of step 16 is poisoned already."""
    loud = finding("loss-scale-imbalance", "component:mass", 21, patch={"w": 1})
    ramp = finding("aggressive-ramp", "component:mass", 13, "info")
    other = finding("invalid-outputs", step=5, severity="info")
    assert prescribe(loud, [], run_with({}), [loud, ramp, other]).first_bad == 13
    assert prescribe(loud, [], run_with({}), [loud]).changes[0].was == NEW


def test_words_of_a_name():
    assert words("half_precision.warmupSteps") == {"half", "precision", "warmup", "steps"}


@pytest.fixture
def written(tmp_path):
    """A run file whose config names one curriculum and whose loop took another, with hostile text in it."""

    def write(config, **header):
        plan = {"name": "B", "stages": [{"start": 0, "name": "1", "weights": {"a": 1.0}}]}
        other = {"name": config.get("curriculum", "A"), "stages": [{"start": 0, "name": "1", "weights": {"a": 2.0}}]}
        head = {"kind": "run", "schema": 1, "run": "x\n- evil: 1", "id": "1", "config": config, "total_steps": 40}
        head |= {"curriculum": plan, "curriculum_running": other, "command": ["python", "train.py"], **header}
        rows = [{"kind": "step", "step": step, "loss": 2.0, "loss/a": 1.0, "weight/a": 2.0} for step in range(1, 41)]
        path = tmp_path / "run.jsonl"
        lines = [head, *rows, {"kind": "end", "status": "finished"}]
        path.write_text("".join(json.dumps({"time": 0.0, "elapsed": 0.0, **line}) + "\n" for line in lines))
        return path

    return write


def test_each_line_names_its_finding_and_what_was_there(written, capsys):
    path = written({"curriculum": "evil\n# x: [1]"})
    assert main(["prescribe", str(path)]) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out) == {"curriculum": "B"}
    line = next(line for line in out.splitlines() if not line.startswith("#"))
    assert line == r'curriculum: B  # curriculum-mismatch, since step 0; was "evil\n# x: [1]"'


def test_a_value_in_the_patch_that_is_hostile_stays_a_value(written, capsys):
    """Whatever a rule takes from a log into the patch: one line, the same value."""
    plan = {"name": "B\n- !!python/object:os.system {}: \u2028", "stages": []}
    path = written({"curriculum_name": "A"}, curriculum=plan, curriculum_running={"name": "A", "stages": []})
    main(["prescribe", str(path), "--format", "json"])
    patched = json.loads(capsys.readouterr().out)["patch"]
    main(["prescribe", str(path)])
    assert yaml.safe_load(capsys.readouterr().out) == patched


def test_nothing_to_prescribe_is_said_and_is_still_a_patch(tmp_path, capsys, written):
    healthy = written({}, curriculum=None, curriculum_running=None)
    assert main(["prescribe", str(healthy), "-o", str(tmp_path / "patch.yaml")]) == 0
    text = (tmp_path / "patch.yaml").read_text()
    assert yaml.safe_load(text) == {}
    assert text.startswith("# Nothing to prescribe for x - evil: 1")
    assert not capsys.readouterr().out


def test_no_cure_known_says_what_to_do_instead(written, capsys):
    path = written({"plan": {"kind": "A"}})
    assert main(["prescribe", str(path)]) == 1
    out = capsys.readouterr().out
    assert "No cure known for curriculum-mismatch, since step 0: what to do instead is: Stop, make the loop" in out
    assert yaml.safe_load(out) == {}


def test_the_command_line_overrules_files_and_that_is_said(written, capsys):
    path = written({"curriculum": "A"}, config_source={"path": "a.yaml", "overrides": ["curriculum=A", "lr=1"]})
    assert main(["prescribe", str(path)]) == 0
    assert "# curriculum was given on the command line, which overrules files" in capsys.readouterr().out


def test_only_the_trainers_own_runs_are_tried(written, capsys):
    """No command that a log holds is run: both are told instead."""
    path = written({"curriculum": "A"}, command=["rm", "-rf", "x y"])
    assert main(["prescribe", str(path), "--try"]) == 2
    said = capsys.readouterr().err
    assert "run both by hand, from the start: (1) `rm -rf 'x y'` as it was, (2) the same with the patch" in said
    assert main(["prescribe", str(path), "--steps", "5"]) == 2
    assert main(["prescribe", str(path), "-o", str(path / "x.yaml")]) == 2


def test_the_checkpoint_before_the_first_bad_step_is_named(run_with):
    run = run_with({"kl": {"clock": "local"}})
    for step in (20, 40, 60):
        run.add_event({"kind": "checkpoint", "step": step, "path": f"c/{step}.pt"})
    said = diagnose(run)
    told = finding("clock-desync", "clock:kl", 45, patch={"kl.clock": "applied"})
    said = replace(said, root_cause=told, prescription=prescribe(told, [], run, [told]))
    assert "# Go on from the checkpoint of step 40: c/40.pt" in patch.document(run, said)
    assert patch.as_data(run, said)["checkpoint"] == {"step": 40, "path": "c/40.pt"}
