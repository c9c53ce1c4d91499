"""The rates and the smoothing of a whole run: as its header declares them, unless it makes one of two mistakes."""

import pytest

import trainwatch
from trainer.run import build
from trainer.scheduled import declared_schedules
from trainwatch.schedule import schedule_value


def lr(rows, group="hidden"):
    return [row[f"lr/{group}"] for row in rows]


def named(path):
    """The rules that raise an alarm."""
    return {finding.rule for finding in trainwatch.diagnose(trainwatch.read(path)).findings if finding.rank}


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "exponential"])
@pytest.mark.parametrize("clock", ["step", "epoch"])
def test_rates_are_what_the_header_declares(kind, clock, trained, steps_of):
    changes = {"steps": 0, "samples": 8, "epochs": 4, "optimizer__warmup": 0.13, "optimizer__per": clock}
    outcome, records = trained(optimizer__schedule=kind, optimizer__final=0.2, optimizer__lr=1e-3, **changes)
    rows, declared = steps_of(records), records[0]["schedules"]
    assert records[0]["clocks"] == ["epoch"] * (clock == "epoch")
    for name in ("lr/hidden", "lr/projections", "lr/other", "label_smoothing"):
        channel = name if "/" in name else f"schedule/{name}"
        for row in rows:
            reading = row["clock/epoch"] if declared[name]["clock"] == "epoch" else row["applied"]
            assert row[channel] == pytest.approx(schedule_value(declared[name], reading), abs=1e-12)
    assert lr(rows)[:2] == pytest.approx([5e-4, 1e-3])  # the warm-up is stepped whatever the rate's own clock is
    assert lr(rows)[-1] == pytest.approx(1e-3 if kind == "constant" else 2e-4)
    if clock == "epoch":
        assert [len(set(lr(rows)[first : first + 4])) for first in (4, 8, 12)] == [1, 1, 1]
    assert not named(outcome.path)


def test_label_smoothing_over_an_absolute_number_of_steps(trained, steps_of):
    changes = {"schedules__label_smoothing__steps": 4, "schedules__label_smoothing__ratio": 0.1}
    _, records = trained(steps=6, schedules__label_smoothing__start=0.4, **changes)
    smoothing = [row["schedule/label_smoothing"] for row in steps_of(records)]
    assert smoothing == pytest.approx([0.3, 0.2, 0.1, 0.0, 0.0, 0.0])


def test_a_warm_up_that_is_declared_and_never_read(trained, steps_of):
    changes = {"steps": 20, "optimizer__warmup": 0.5, "optimizer__schedule": "linear", "optimizer__lr": 1e-3}
    outcome, records = trained(mistakes__warmup_ignored=True, **changes)
    assert records[0]["schedules"]["lr/hidden"]["warmup"] == 10
    assert lr(steps_of(records))[0] == pytest.approx(1e-3 * (1 - 0.9 / 20))
    assert named(outcome.path) == {"schedule-desync"}


def test_micro_batches_taken_for_steps(trained, steps_of):
    changes = {"steps": 20, "accumulation": 2, "batch_size": 1, "optimizer__schedule": "linear"}
    outcome, records = trained(mistakes__batches_counted=True, optimizer__warmup=0.0, optimizer__lr=1e-3, **changes)
    assert records[0]["schedules"]["lr/hidden"]["over_steps"] == records[0]["total_steps"] == 20
    assert lr(steps_of(records))[-1] == pytest.approx(1e-3 * (1 - 0.9 / 2))
    assert steps_of(records)[-1]["schedule/label_smoothing"] > 0
    assert named(outcome.path) == {"lr-desync", "schedule-desync"}


def test_mistakes_change_no_declaration(config):
    healthy = declared_schedules(config(accumulation=2))
    assert declared_schedules(config(accumulation=2, mistakes__batches_counted=True)) == healthy
    assert declared_schedules(config(accumulation=2, mistakes__warmup_ignored=True)) == healthy
    assert build(config(accumulation=2, mistakes__batches_counted=True)).schedules == healthy


def test_a_resume_that_loads_the_weights_alone(trained, steps_of, config):
    from trainer.resume import restore

    changes = {"steps": 4, "optimizer__ema": 0.9, "optimizer__schedule": "plateau", "evaluation__patience": 9}
    trained(**changes)
    run = build(config(mistakes__weights_only_resume=True, **changes))
    assert restore(run, "before:2") is not None
    assert (run.step, run.applied.next, len(run.optimizer.state)) == (2, 3, 0)
    assert all((run.average.state()["ema"][name] == w).all() for name, w in run.model.state_dict().items())
    assert run.early.best == run.plateau.patience.best == float("inf")
    _, records = trained("before:2", mistakes__weights_only_resume=True, **changes)
    assert [row["step"] for row in steps_of(records)][-2:] == [3, 4]
