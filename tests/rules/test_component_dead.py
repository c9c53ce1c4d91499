"""component-dead: a weight and no gradient, named to the row; zeros by design and roundings are none."""

import numpy as np
import pytest

RULE = "component-dead"
N = 120
ROW = np.arange(N)
FALL = 1 + 2 * np.exp(-ROW / 30)
NOISE = np.exp(0.05 * np.cos(ROW**2))
TASK = {"components": {"b": {"role": "task"}}}


def columns(gradient, value, weight=1.0):
    """A living component beside one to be judged."""
    return {
        "loss": FALL * NOISE + value,
        "loss/a": FALL * NOISE,
        "weight/a": np.ones(N),
        "component_grad/a": NOISE,
        "loss/b": value,
        "weight/b": np.full(N, weight),
        "component_grad/b": gradient,
    }


def test_a_clamped_loss_is_named_from_its_first_row(make_run, judge):
    """Constant at the clamp, with no gradient."""
    (finding,) = judge(make_run(columns(np.zeros(N), np.full(N, 100.0))), RULE)
    assert (finding.severity, finding.subject, finding.first_step, finding.state) == (
        *("warning", "component:b", 1),
        "active",
    )
    assert finding.evidence == {"value": 100.0, "rows": N, "weight": 1.0}


def test_a_detached_loss_is_named_from_the_row_at_which_it_was_cut(make_run, judge):
    """Its value goes on falling, for others train what it measures."""
    gradient = np.where(ROW < 47, 0.3, 0.0)
    (finding,) = judge(make_run(columns(gradient, FALL)), RULE)
    assert (finding.first_step, finding.last_step, finding.evidence["rows"]) == (48, N, N - 47)


def test_one_that_wakes_was_no_dead_one(make_run, judge):
    """late-activation says the rest."""
    gradient = np.where((ROW >= 20) & (ROW < 60), 0.0, 0.3)
    (finding,) = judge(make_run(columns(gradient, FALL)), RULE)
    assert (finding.severity, finding.state, finding.first_step, finding.last_step) == ("info", "over", 21, 60)


@pytest.mark.parametrize(("severity", "header"), [("warning", TASK), ("info", None)])
def test_without_gradients_a_constant_is_named(severity, header, make_run, judge):
    """Surely where it was declared as a task."""
    run = make_run({"loss": FALL * NOISE, "loss/a": FALL * NOISE, "loss/b": np.full(N, 2.5)}, header=header)
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.first_step, finding.evidence["value"]) == (severity, 1, 2.5)


HEALTHY = {
    "a margin that is kept": columns(np.zeros(N), np.zeros(N)),
    "switched off": columns(np.zeros(N), np.full(N, 100.0), weight=0.0),
    "absent now and then": columns(np.where(ROW % 19 < 15, 0.0, 0.5), FALL),
    "probed now and then": columns(np.where(ROW % 10 == 0, 0.2, np.nan), FALL),
    "nothing has a gradient": columns(np.zeros(N), FALL) | {"component_grad/a": np.zeros(N)},
    "no norm where it does not depend on the tensor": columns(np.full(N, np.nan), FALL),
    "a rounded log": {"loss": np.round(FALL, 1), "loss/a": np.round(FALL, 1), "loss/b": np.full(N, 0.7)},
    "ten epochs": {"loss": FALL[:10], "loss/a": FALL[:10], "loss/b": np.full(10, 0.7)},
    "a bonus of 0": {"loss": FALL * NOISE, "loss/a": FALL * NOISE, "loss/unsupervised": np.zeros(N)},
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, make_run, judge):
    """Normal life."""
    assert judge(make_run(HEALTHY[name]), RULE) == []


def test_without_recorded_weights_it_may_be_off(make_run, judge):
    """And is worth an info."""
    run = make_run({name: v for name, v in columns(np.zeros(N), FALL).items() if not name.startswith("weight/")})
    assert [finding.severity for finding in judge(run, RULE)] == ["info"]


@pytest.mark.parametrize(("value", "severity"), [(np.full(N, 2.5) * NOISE, "warning"), (FALL * NOISE, None)])
def test_a_task_that_does_not_reach_the_tensor_is_judged_by_its_value(value, severity, make_run, judge):
    """Detached, or learned elsewhere."""
    run = make_run(
        {name: column for name, column in columns(ROW, value).items() if name != "component_grad/b"},
        header=TASK | {"outside_at": ["b"]},
    )
    assert [finding.severity for finding in judge(run, RULE)] == ([severity] if severity else [])


def test_probed_at_every_tenth_row(make_run, judge):
    """Five probes without a gradient, over more than twenty rows."""
    table = columns(np.where(ROW % 10 == 0, 0.0, np.nan), np.full(N, 100.0))
    (finding,) = judge(make_run(table), RULE)
    assert (finding.severity, finding.first_step, finding.evidence["rows"]) == ("warning", 1, N // 10)


@pytest.mark.parametrize(
    ("value", "trainable", "severity"),
    [(FALL * NOISE, 10, "warning"), (np.full(N, 2.0), 10, "info"), (FALL * NOISE, 0, "info")],
)
def test_a_regulariser_without_a_gradient(value, trainable, severity, make_run, judge):
    """Detached if its value moves; at its free bits, or of a frozen encoder, if not."""
    modules = [{"name": "encoder", "depth": 1, "parameters": 10, "trainable": trainable}]
    header = {"components": {"b": {"role": "regulariser"}}, "modules": modules}
    (finding,) = judge(make_run(columns(np.zeros(N), value), header=header), RULE)
    assert finding.severity == severity


@pytest.mark.parametrize(("norms", "count"), [(("actor",), 1), (("actor", "critic"), 0)])
def test_an_auxiliary_outside_with_a_module_that_nothing_trains(norms, count, make_run, judge):
    """A critic of its own has a gradient, though none at the trunk."""
    table = {name: column for name, column in columns(ROW, np.full(N, 2.5) * NOISE).items() if name[-6:] != "grad/b"}
    modules = [{"name": name, "depth": 1, "parameters": 9, "trainable": 9} for name in ("actor", "critic")]
    header = {"components": {"b": {"role": "auxiliary"}}, "outside_at": ["b"], "modules": modules}
    run = make_run(table | {f"grad_norm/{name}": NOISE for name in norms}, header=header)
    assert len(judge(run, RULE)) == count


@pytest.mark.parametrize(("extra", "role", "count"), [(0.0, "task", 1), (0.5, "task", 0), (0.0, "regulariser", 0)])
def test_the_others_make_up_the_whole_gradient(extra, role, count, make_run, judge):
    """Over the parameters it has none, though its value falls; where something is left over, it may be that one's."""
    sampled = np.where(ROW % 10 == 0, 1.0, np.nan)
    wide = {"param_grad/a": 3.0 * sampled, "param_grad/c": 4.0 * sampled, "param_cosine/a~c": 0.5 * sampled}
    losses = {f"loss/{name}": FALL * NOISE for name in "abc"} | {f"weight/{name}": np.ones(N) for name in "abc"}
    norm = {"grad_norm": np.full(N, (9 + 16 + 12) ** 0.5 + extra), "loss": 3 * FALL * NOISE}
    found = judge(make_run(losses | wide | norm, header={"components": {"b": {"role": role}}}), RULE)
    assert [(finding.severity, finding.subject) for finding in found] == count * [("warning", "component:b")]


@pytest.mark.parametrize(
    ("norms", "value", "count"),
    [(("trunk",), np.full(N, 1.2), 1), (("trunk", "b"), np.full(N, 1.2), 0), (("trunk",), 1.2 * FALL, 0)],
)
def test_a_head_of_its_name_that_never_had_a_gradient(norms, value, count, make_run, judge):
    """No components' gradients are recorded; a loss that falls is learned elsewhere."""
    modules = [{"name": name, "depth": 1, "parameters": 9, "trainable": 9} for name in ("trunk", "b")]
    header = {"components": {"b": {"role": "auxiliary"}}, "modules": modules}
    table = {"loss/a": FALL * NOISE, "loss/b": value * NOISE, "weight/a": np.ones(N), "weight/b": np.full(N, 0.2)}
    table |= {f"grad_norm/{name}": NOISE for name in norms} | {"loss": FALL * NOISE + 0.2 * value}
    assert len(judge(make_run(table, header=header), RULE)) == count


@pytest.mark.parametrize(("dead", "severity"), [("trunk", "info"), ("heads", "warning")])
def test_behind_a_dead_first_module_it_is_no_root(dead, severity, make_run, judge):
    """All that comes after that module is fed a constant; a head of its own is dead because of it."""
    norms = {f"grad_norm/{name}": np.full(N, 0.0 if name == dead else 1.0) for name in ("trunk", "heads")}
    columns = {"loss/a": np.linspace(3, 1, N), "loss/b": 2 + 0.1 * np.cos(np.arange(N))}
    columns |= {"weight/a": np.ones(N), "weight/b": np.ones(N)}
    columns |= {"component_grad/a": np.ones(N), "component_grad/b": np.zeros(N), **norms}
    assert [found.severity for found in judge(make_run(columns), "component-dead")] == [severity]


@pytest.mark.parametrize(
    ("train", "held", "role", "count"),
    [
        (1.0, 1.0, "task", 1),
        (1.0, 1.0, "auxiliary", 0),
        (1.0, -0.5, "task", 0),
        (-0.5, 1.0, "task", 0),
        (0.1, 0.1, "task", 0),
    ],
)
def test_a_task_that_only_gets_worse_while_another_is_learned(train, held, role, count, make_run, judge):
    """No gradients of components are recorded. What falls in training or in validation is taught."""
    rise = np.linspace(0, 1, N)
    table = {"loss/a": FALL * NOISE, "loss/b": (2.0 + 2 * train * rise) * NOISE} | {
        f"weight/{n}": np.ones(N) for n in "ab"
    }
    evals = [{"step": N // 8 * i, "split": "valid", "loss/b": 2.0 + held * i / 4} for i in range(1, 9)]
    table["loss"] = table["loss/a"] + table["loss/b"]
    found = judge(make_run(table, header={"components": {"b": {"role": role}}}, evals=evals), RULE)
    assert [(finding.severity, finding.subject) for finding in found] == count * [("warning", "component:b")]


@pytest.mark.parametrize(("course", "count"), [(0.65 + 0.001 * ROW, 1), (np.full(N, 0.65), 0), (0.65 * FALL, 0)])
def test_a_regulariser_that_rises_without_a_gradient(course, count, make_run, judge):
    """It depends on what is trained; over a frozen part it would only vary, and learned elsewhere it would fall."""
    sampled = np.where(ROW % 10 == 0, 1.0, np.nan)
    told = {"param_grad/a": 3.0 * sampled, "grad_norm": np.full(N, 3.0), "loss": FALL + course}
    told |= {"loss/a": FALL * NOISE, "loss/b": course * NOISE, "weight/a": np.ones(N), "weight/b": np.ones(N)}
    found = judge(make_run(told, header={"components": {"b": {"role": "regulariser"}}}), RULE)
    assert [finding.subject for finding in found if finding.rank] == count * ["component:b"]


@pytest.mark.parametrize(
    ("name", "steps", "severity"), [("diversity", N, "warning"), ("kl", N, "info"), ("d", 3 * N, "info")]
)
def test_a_penalty_that_has_one_value_only(name, steps, severity, make_run, judge):
    """For half of the planned run: it regulates nothing. A KL may be at its free bits, and others at first."""
    table = {channel.replace("/b", f"/{name}"): values for channel, values in columns(np.zeros(N), np.ones(N)).items()}
    header = {"components": {name: {"role": "regulariser"}}, "total_steps": steps}
    assert [finding.severity for finding in judge(make_run(table, header=header), RULE)] == [severity]


CAPPED = np.minimum(1.0, 0.2 + ROW / 10)


@pytest.mark.parametrize(
    ("value", "held", "growth", "count"),
    [
        (CAPPED, 5.0, 0.03, 1),
        (CAPPED, 1.2, 0.01, 0),
        (2 - CAPPED, 5.0, 0.03, 0),
        (CAPPED + 0.001 * ROW, 5.0, 0.03, 0),
        (CAPPED, None, 0.0, 0),
        (CAPPED, 2.4, 0.001, 0),
        (np.where(ROW % 10 < 6, 0.01, 0.0), 0.021, 0.0002, 0),
    ],
    ids=["a bound", "validation is near", "free bits", "it rises yet", "not validated", "another scale", "two digits"],
)
def test_validation_tells_what_a_bound_cuts_off(value, held, growth, count, make_run, judge):
    """The training loss never passes a value at which it mostly stands; validation of the same weights does."""
    table = {"loss": FALL * NOISE + value, "loss/a": FALL * NOISE, "loss/kl": value, "weight/kl": np.ones(N)}
    evals = [{"step": at, "loss/kl": held + growth * at} for at in range(10, N + 1, 10)] if held else []
    found = judge(make_run(table, header={"components": {"kl": {"role": "regulariser"}}}, evals=evals), RULE)
    assert [(one.severity, one.subject, one.first_step) for one in found if one.rank] == count * [
        ("warning", "component:kl", 9)
    ]


@pytest.mark.parametrize(
    ("kept", "planned", "rise", "count"),
    [(30, 30, 0.0, 1), (30, 90, 0.0, 0), (30, 30, -0.5, 0), (15, 15, 0.0, 0)],
    ids=["a head that nothing trains", "it may be trained yet", "it is learned", "too few"],
)
def test_a_head_without_a_gradient_in_a_log_of_few_rows(kept, planned, rise, count, make_run, judge):
    """Its module never had one by half of the run, and its value stands while another's comes down."""
    table = {"loss/a": FALL * NOISE, "loss/b": (2.5 + 2 * rise * ROW / N) * NOISE, "grad_norm/trunk": NOISE}
    few = {name: values[:: N // kept] for name, values in table.items()}
    modules = [{"name": name, "depth": 1, "parameters": 9, "trainable": 9} for name in ("trunk", "b")]
    run = make_run(few, header={"modules": modules, "total_steps": planned})
    assert [one.subject for one in judge(run, RULE) if one.rank] == count * ["component:b"]


@pytest.mark.parametrize(("rise", "held", "count"), [(2.0, 2.0, 1), (2.0, 0.1, 0), (0.1, 2.0, 0), (-0.1, -0.1, 0)])
def test_a_task_that_rises_out_of_reach_in_a_log_of_few_rows(rise, held, count, make_run, judge):
    """It does not reach the tensor at hand; thirty rows tell what has doubled from what is slow, or a value's error."""
    table = columns(ROW, (2.0 + rise * ROW / N) * NOISE)
    few = {name: values[::4] for name, values in table.items() if name != "component_grad/b"}
    evals = [{"step": at, "loss/b": 2.0 + held * at / N} for at in range(1, N + 1, 17)]
    header = TASK | {"outside_at": ["b"], "total_steps": N}
    run = make_run(few | {"step": 1 + ROW[::4]}, header=header, evals=evals)
    assert [one.subject for one in judge(run, RULE) if one.rank] == count * ["component:b"]


@pytest.mark.parametrize(("first", "count"), [([0.3626, 0.1779], 1), ([0.4, 0.2], 0)])
def test_a_bound_that_is_reached_at_once(first, count, make_run, judge):
    """In a log of thirty rows, two of them below it; of two digits a rounding may have made it."""
    value = np.array([*first, *np.ones(28)])
    few = {"loss": FALL[:30] * NOISE[:30] + value, "loss/a": FALL[:30] * NOISE[:30], "loss/kl": value}
    evals = [{"step": at, "loss/kl": 5 + 0.2 * at} for at in range(3, 31, 3)]
    run = make_run(few | {"weight/kl": np.ones(30)}, evals=evals)
    assert [one.subject for one in judge(run, RULE) if one.rank] == count * ["component:kl"]


def test_an_opponent_is_trained_in_a_step_of_its_own(make_run, judge):
    """Where its gradient is not recorded, and its loss does not come down, as in any game."""
    table = {"loss/a": FALL * NOISE, "loss/discriminator": 0.7 * NOISE, "grad_norm/trunk": NOISE}
    modules = [{"name": name, "depth": 1, "parameters": 9, "trainable": 9} for name in ("trunk", "discriminator")]
    run = make_run(table, header={"modules": modules, "total_steps": N})
    assert [one.subject for one in judge(run, RULE) if one.rank] == []
