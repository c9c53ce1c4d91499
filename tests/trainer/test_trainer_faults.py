"""Faults: all of F1 to F17, valid, undone by their cure, and beginning at the step that they say."""

import json
from dataclasses import fields
from itertools import chain

import pytest

from trainer import train
from trainer.config import Config, MistakesConfig, UsageError
from trainer.faults import FAULTS, declared, layers, named, running, served
from trainer.loading import load
from trainer.run import build

RUN = {
    "size": "tiny", "steps": 4, "batch_size": 1, "curriculum_steps": 20, "device": "cpu", "threads": 1,
    "precision": "fp32", "data.source": "theoretical", "data.peptides": 50, "data.max_peaks": 12,
    "optimizer.warmup": 0.5, "evaluation.samples": 2, "evaluation.every": 1.0,
    "checkpoint.every": 0.5,
}  # fmt: skip
"""At the second step DEFAULT's and EXTENDED's losses come in, at the fourth EXTENDED's longer peptides."""
RESUMED = 2
TRAINED = {
    "loss", "grad_norm", "lr/hidden", "schedule/label_smoothing", "data/fingerprint", "bad/input",
    "update_ratio/hidden",
}  # fmt: skip
"""What tells of a step that was trained otherwise: a raw loss without a weight is trained by nobody."""
every_fault = pytest.mark.parametrize("name", sorted(FAULTS, key=lambda name: FAULTS[name].number))


def dotted(settings, prefix=""):
    """Nested settings as key=value."""
    pairs = (
        dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}={value}"]
        for key, value in settings.items()
    )
    return list(chain.from_iterable(pairs))


def loaded(*settings):
    """The config of these settings, whatever fault they came from."""
    config, _ = load([], list(settings))
    config.fault = ""
    return config


def test_the_catalogue_is_complete():
    assert sorted(fault.number for fault in FAULTS.values()) == list(range(1, 18))
    switched = [name for fault in FAULTS.values() for name in fault.settings.get("mistakes", {})]
    assert sorted(switched) == sorted(field.name for field in fields(MistakesConfig))
    assert all(fault.named_by for fault in FAULTS.values())


@every_fault
def test_a_cure_undoes_its_fault_and_nothing_else(name):
    fault = FAULTS[name]
    healthy = loaded(*dotted(fault.base))
    assert loaded(f"fault={name}") != healthy
    assert loaded(f"fault={name}", *dotted(fault.cure)) == healthy


@every_fault
def test_a_fault_begins_within_a_run(name):
    config = load([], [f"fault={name}", "steps=100"])[0]
    assert 1 <= FAULTS[name].begins(config, resumed=50) <= 100


@pytest.mark.parametrize("setting", ["accumulation=1", "optimizer.warmup=0", "curriculum=EXTENDED"])
def test_a_fault_that_cannot_show_does_not_begin(setting):
    short = ["steps=100", "curriculum_steps=100000", "fault=batches-counted,warmup-ignored,raw-ppm", setting]
    config = load([], short)[0]
    begins = {name: FAULTS[name].begins(config) for name in ("batches-counted", "warmup-ignored", "raw-ppm")}
    assert begins["raw-ppm"] == 0
    assert begins["batches-counted"] == int(config.accumulation > 1)
    assert begins["warmup-ignored"] == int(config.optimizer.warmup > 0)
    assert FAULTS["weights-only-resume"].begins(config) == 0


def test_a_fault_begins_where_its_component_has_a_weight():
    """In EXTENDED the spectrum loss has one at 10 % of the run, the precursor's at 20 %."""
    config = load([], ["steps=100", "curriculum=EXTENDED", "fault=mass-after-end,first-residue-dropped"])[0]
    assert [fault.begins(config) for fault in named(config.fault)] == [20, 10]


def test_batches_that_are_as_many_as_steps_may_be_counted():
    one_a_step = ["epochs=5", "samples=2", "batch_size=2", "accumulation=4", "fault=batches-counted"]
    assert FAULTS["batches-counted"].begins(load([], one_a_step)[0]) == 0


@pytest.fixture(scope="module")
def rows_of(shards, tmp_path_factory):
    """What the steps of a small run of these settings trained; no run is trained twice."""
    folder, kept = tmp_path_factory.mktemp("faults"), {}

    def rows(resumed, *settings):
        places = {"logs": folder, "data.folder": shards}
        config, _ = load([], [*settings, *(f"{key}={value}" for key, value in {**RUN, **places}.items())])
        key = (resumed, repr(config))
        if key not in kept:
            config.name = f"run{len(kept)}"
            path = train.main(config).path
            path = train.main(config, resume=f"before:{resumed}").path if resumed else path
            steps = [row for row in map(json.loads, path.read_text().splitlines()) if row["kind"] == "step"]
            kept[key] = {row["step"]: {name: row.get(name) for name in TRAINED} for row in steps}  # the last one counts
        return kept[key]

    return rows


@every_fault
def test_a_fault_begins_where_it_says(name, rows_of, capfd):
    fault, resumed = FAULTS[name], RESUMED if FAULTS[name].first is None else 0
    sick = rows_of(resumed, f"fault={name}")
    healthy = rows_of(resumed, *dotted(fault.base))
    capfd.readouterr()
    first = next((step for step in sick if sick[step] != healthy[step]), 0)
    settings = [f"{key}={value}" for key, value in RUN.items()]
    begins = fault.begins(load([], [*settings, f"fault={name}"])[0], resumed)
    assert first == begins + bool(resumed)  # forgotten moments are in the first update: the next row tells of it


def test_a_stale_loader_keeps_the_stage_that_it_was_made_in(config):
    stale, fresh = config(steps=100, fault="stale-stages"), config(steps=100)
    for made_at in (1, 45):
        loader, plan = served(stale, made_at), running(stale)
        assert {loader.at(step).data for step in range(1, 101)} == {plan.at(made_at).data}
        assert [loader.weights(step) for step in (1, 50, 100)] == [plan.weights(step) for step in (1, 50, 100)]
    assert served(fresh, 45) == running(fresh)


def test_a_stale_loader_shows_in_what_was_realised(trained, steps_of):
    _, records = trained(fault="stale-stages", steps=10)
    rows = steps_of(records)
    assert {row["data/noise_peaks/max"] for row in rows} == {0}
    assert [row["stage"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]
    assert records[0]["curriculum"]["stages"][-1]["data"]["noise_peaks"] == [10, 10]


def test_faults_add_up():
    config, _ = load([], ["fault=wrong-curriculum, raw-ppm", "steps=500"])
    assert (declared(config).name, running(config).name, config.loss.precursor_unit) == (
        "EXTENDED",
        "DEFAULT",
        "raw_ppm",
    )
    assert [fault.begins(config) for fault in named(config.fault)] == [40, 40]  # 8 % of the run


def test_what_the_user_writes_is_above_every_fault():
    config, _ = load([], ["fault=raw-ppm", "curriculum=EXTENDED"])
    assert (config.curriculum, config.loss.precursor_unit) == ("EXTENDED", "raw_ppm")
    assert [name for name, _ in layers("raw-ppm,clamp-ppm")] == ["fault raw-ppm", "fault clamp-ppm"] * 2


def test_a_fault_that_does_not_exist_names_those_that_do():
    with pytest.raises(UsageError, match="fault 'raw-pm' does not exist; choose from raw-ppm, clamp-ppm"):
        load([], ["fault=raw-pm"])


def test_no_fault_is_on_by_default():
    assert not any(vars(Config().mistakes).values())
    assert Config().fault == ""


@pytest.mark.parametrize(("kind", "fault"), [("recursive", ""), ("plain", ""), ("recursive", "half-precision-masses")])
def test_the_record_tells_what_masses_are_held_in(kind, fault, tmp_path):
    """Read off the model, beside what it should be."""
    settings = [f"{key}={value}" for key, value in RUN.items()]
    config = loaded(*settings, f"fault={fault}", f"model.kind={kind}", f"logs={tmp_path}")
    with train.open_record(build(config), None, None) as watch:
        told = json.loads(watch.path.read_text().splitlines()[0])["dtypes"]
    observed = "bfloat16" if fault else "float64"
    assert told == {
        "declared": "float32",
        "observed": "float32",
        "masses": {"declared": "float64", "observed": observed},
    }
