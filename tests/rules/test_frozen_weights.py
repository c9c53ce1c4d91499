"""frozen-weights: gradients arrive, and no weight moves."""

import numpy as np
import pytest

RULE = "frozen-weights"
N = 200
ROW = np.arange(N)
SAMPLED = (ROW == 0) | ((ROW + 1) % 50 == 0)


def columns(ratio=1e-3, rate=1e-3, **others):
    return {
        "grad_norm": np.ones(N),
        "lr/main": np.broadcast_to(rate, N),
        "update_ratio/main": np.where(SAMPLED, ratio, np.nan),
        **{name.replace("__", "/"): values for name, values in others.items()},
    }


def test_an_update_ratio_of_zero_is_critical(make_run, judge):
    """Two samples: known at step 50."""
    (finding,) = judge(make_run({name: values[:60] for name, values in columns(0.0).items()}), RULE)
    assert (finding.severity, finding.first_step, finding.state) == ("critical", 1, "active")


def test_a_hash_that_stays_is_named_by_its_first_row(make_run, judge):
    """Weights in half precision that no step changes any more; over when they do."""
    moving = np.where((ROW >= 60) & (ROW < 120), 60, ROW) + 1e6
    run = columns(param_hash=moving)
    del run["update_ratio/main"]
    (finding,) = judge(make_run(run), RULE)
    assert (finding.first_step, finding.last_step, finding.state) == (62, 120, "over")
    assert finding.evidence["witness"] == "param_hash"


def test_weight_norms_that_stay(make_run, judge):
    """To the last digit, in five samples."""
    run = columns(weight_norm__main=np.where(ROW % 10 == 0, 7.25, np.nan))
    del run["update_ratio/main"]
    assert [finding.evidence["witness"] for finding in judge(make_run(run), RULE)] == ["weight_norm"]


def test_only_normalisation_layers_can_be_trained(make_run, judge):
    """Worth an info; a low-rank adapter is not."""
    modules = [{"name": "net", "depth": 1, "parameters": 10_000, "trainable": 50}]
    norm = {"name": "net.bn1", "depth": 2, "parameters": 50, "trainable": 50}
    adapter = {"name": "net.lora_a", "depth": 2, "parameters": 50, "trainable": 50}
    header = {"modules": [*modules, norm]}
    assert [finding.severity for finding in judge(make_run(columns(), header=header), RULE)] == ["info"]
    assert judge(make_run(columns(), header={"modules": [*modules, adapter]}), RULE) == []


HEALTHY = {
    "a rate of zero": columns(0.0, 0.0),
    "a cosine that has come to its end": columns(
        param_hash=np.minimum(ROW, 150), rate=np.where(ROW < 150, 1e-3, 1e-9), ratio=np.where(ROW < 150, 1e-3, 0)
    ),
    "skipped steps": columns(0.0, amp__skipped=np.ones(N)),
    "no gradient": columns(0.0) | {"grad_norm": np.zeros(N)},
    "one group that moves": columns(0.0) | {"update_ratio/b": np.where(SAMPLED, 1e-3, np.nan), "lr/b": np.ones(N)},
    "an ordinary run": columns(param_hash=ROW),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_healthy(case, make_run, judge):
    """None of them is a sickness."""
    assert judge(make_run(HEALTHY[case]), RULE) == []


def test_a_named_group_with_a_rate_and_nothing_to_move(make_run, judge):
    """A body that cannot be trained, and that the optimiser was given; without a name, or a rate, it was meant."""
    modules = [{"name": "body", "depth": 1, "parameters": 90, "trainable": 0}]
    modules += [{"name": "head", "depth": 1, "parameters": 10, "trainable": 10}]
    for name, rate, told in (("body", 1e-3, ["warning"]), ("body", 0.0, []), ("1", 1e-3, [])):
        run = make_run(columns() | {f"lr/{name}": np.full(N, rate)}, header={"modules": modules, "total_steps": N})
        assert [finding.severity for finding in judge(run, RULE)] == told
    run = make_run(columns() | {"lr/body": np.full(N, 1e-3)}, header={"modules": modules, "total_steps": 10 * N})
    assert judge(run, RULE) == []  # it may be unfrozen yet


def test_modules_that_are_frozen_as_they_were_initialised(make_run, judge):
    """Noise that nobody trained; not weights that were loaded, a teacher, a copy of what is trained, or what thawed."""
    head = {"name": "head", "depth": 1, "parameters": 4000, "trainable": 4000}
    body = {"name": "body", "depth": 1, "parameters": 6000, "trainable": 0, "fresh": 6000}
    few = [body | {"parameters": 300, "fresh": 300}, head | {"parameters": 200, "trainable": 200}]
    assert judge(make_run(columns(), header={"modules": few}), RULE) == []  # of so few nobody can say
    (finding,) = judge(make_run(columns(), header={"modules": [body, head]}), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "module:body", 1)
    for change in (
        {"fresh": 600},
        {"name": "teacher"},
        {"parameters": 4000, "fresh": 4000},
        {"parameters": 400, "fresh": 400},
    ):
        assert judge(make_run(columns(), header={"modules": [body | change, head]}), RULE) == []
    thawed = columns() | {"grad_norm/body": np.ones(N)}
    assert judge(make_run(thawed, header={"modules": [body, head]}), RULE) == []


def test_it_is_dated_by_the_first_row_that_should_have_moved(make_run, judge):
    """A warm-up begins at 0, and samples are far apart."""
    (finding,) = judge(make_run(columns(0.0, 1e-3 * np.minimum(ROW / 30, 1.0))), RULE)
    assert finding.first_step == 2


def test_a_group_that_holds_other_tensors_than_its_module(make_run, judge):
    """The module has a gradient, and its group none, in samples in which another group moves."""
    ids = {"lr/ids": np.full(N, 1e-2), "grad_norm/ids": np.ones(N)}
    (found,) = judge(make_run(columns() | ids), RULE)
    assert (found.severity, found.subject) == ("warning", "group:ids")
    at_rest = {"lr/ids": np.zeros(N)}, {"grad_norm/ids": np.zeros(N)}
    moves = {"update_ratio/ids": np.where(SAMPLED, 1e-3, np.nan)}
    for healthy in (*at_rest, moves):
        assert judge(make_run(columns() | ids | healthy), RULE) == []
    assert judge(make_run(columns() | {"lr/other": np.full(N, 1e-2)} | {"grad_norm/ids": np.ones(N)}), RULE) == []
    second = {"lr/second.ids": np.full(N, 1e-2), "grad_norm/second.ids": np.ones(N)}
    assert judge(make_run(columns() | second), RULE) == []  # another optimiser's, which may not have begun


@pytest.mark.parametrize(("gradient", "norm", "ratio", "count"), [(1.0, 0, 0, 1), (0.0, 0, 0, 0), (1.0, 1, 0, 0)])
def test_one_of_several_optimisers_that_holds_other_tensors(make_run, judge, gradient, norm, ratio, count):
    """Its model has a gradient, and it steps without any; what has a norm has a gradient, and may be off for now."""
    sampled = np.where(SAMPLED, 1.0, np.nan)
    told = {f"lr/{name}.0": np.full(N, 1e-3) for name in ("actor", "critic")}
    told |= {f"applied/{name}": ROW + 1.0 for name in ("actor", "critic")}
    told |= {"grad_norm/actor": np.ones(N), "grad_norm/critic": np.full(N, gradient)}
    told |= {"update_ratio/actor.0": 1e-3 * sampled, "update_ratio/critic.0": ratio * sampled}
    found = judge(make_run(told | ({"weight_norm/critic.0": sampled} if norm else {})), RULE)
    assert [one.subject for one in found] == count * ["group:critic"]
    late = told | {"applied/critic": np.where(SAMPLED, 7.0, 7.0)}
    assert judge(make_run(late), RULE) == []


@pytest.mark.parametrize(("end", "count"), [(2.3, 1), (1.0, 0)])
def test_the_only_sample_is_enough_where_nothing_is_learned(make_run, judge, end, count):
    """The first step was one of rate 0; a loss that falls was moved by something."""
    rate, rows = np.where(ROW[:90] == 0, 0.0, 1e-3), np.arange(90)
    run = {name: values[:90] for name, values in columns(0.0).items()} | {"lr/main": rate}
    noise = 0.02 * np.random.default_rng(0).standard_normal(90)
    found = judge(make_run(run | {"loss": 2.3 + (end - 2.3) * rows / 90 + noise}, header={"total_steps": 90}), RULE)
    assert [one.severity for one in found] == ["warning"] * count


def test_a_group_whose_weights_are_measured_is_there(make_run, judge):
    """Though its update ratio was not logged, as that of another group was; the body is frozen on purpose."""
    modules = [{"name": "body", "depth": 1, "parameters": 9_000, "trainable": 0}]
    modules += [{"name": "lora", "depth": 1, "parameters": 1_000, "trainable": 1_000}]
    idle = columns() | {"lr/lora_a": np.full(N, 1e-3)}
    there = idle | {"weight_norm/lora_a": np.where(SAMPLED, 3 + ROW / 1000, np.nan)}
    header = {"modules": modules, "total_steps": N}
    assert [len(judge(make_run(one, header=header), RULE)) for one in (idle, there)] == [1, 0]


def test_samples_of_another_step_than_the_norm_of_a_hinge(make_run, judge):
    """Every second step has no gradient, and the sampled steps were of those; where all have one, nothing moves."""
    run = columns(0.0)
    assert [one.severity for one in judge(make_run(run), RULE)] == ["critical"]
    assert judge(make_run(run | {"grad_norm": np.where(SAMPLED, 1.0, ROW % 2)}), RULE) == []
