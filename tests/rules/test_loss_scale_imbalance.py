"""loss-scale-imbalance: 3,256,742 beside 3.75 is named, a small term that is meant is not."""

import numpy as np
import pytest

from trainwatch.engine import Engine

RULE = "loss-scale-imbalance"
N = 200
FALL = np.exp(-np.arange(N) / 60)


def test_the_published_case_is_named_with_its_ratio(make_run, judge):
    """PeakAmp beside Signal, without weights or gradients in the log."""
    run = make_run({"loss/PeakAmp": 3_256_742.75 * (0.5 + FALL), "loss/Signal": np.full(N, 3.75)})
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("critical", "component:PeakAmp", 1)
    assert finding.evidence["ratio"] > 100_000
    assert "no weights are recorded" in finding.message
    assert finding.confidence < 0.7


def test_the_gradient_share_proves_it_at_once(make_run, judge):
    """From the step at which it began, though the others still fall."""
    big = np.where(np.arange(N) < 90, 1.0, 5e4)
    share = np.where(np.arange(N) < 90, 0.5, 0.9999)
    run = make_run({"loss/a": 1 + FALL, "loss/b": big, "grad_share/a": 1 - share, "grad_share/b": share})
    (finding,) = judge(run, RULE)
    assert (finding.subject, finding.first_step, finding.state) == ("component:b", 91, "active")
    assert finding.evidence["gradient_share"] == pytest.approx(0.9999)


def test_it_is_over_when_the_others_weigh_again(make_run, judge):
    """The finding stays with its last step."""
    big = np.where((np.arange(N) >= 40) & (np.arange(N) < 100), 5e4, 1.0)
    share = np.where(big > 1, 0.999, 0.5)
    run = make_run({"loss/a": np.ones(N), "loss/b": big, "grad_share/b": share, "grad_share/a": 1 - share})
    (finding,) = judge(run, RULE)
    assert (finding.first_step, finding.last_step, finding.state) == (41, 100, "over")


HEALTHY = {
    "a KL term that grows from nothing": {"loss/recon": 540 * (0.2 + FALL), "loss/kl": 25 * (1 - FALL) + 1e-3},
    "a z-loss": {"loss/ce": 2 + FALL, "loss/z_loss": np.full(N, 50.0), "weight/z_loss": np.full(N, 1e-4)},
    "a term with a tiny weight": {"loss/ce": 2 + FALL, "loss/extra": np.full(N, 5.0), "weight/extra": np.full(N, 1e-4)},
    "a hundredth, which somebody has set": {
        "loss/ce": 5000 * (2 + FALL),
        "loss/extra": np.full(N, 5.0),
        "weight/extra": np.full(N, 0.01),
    },
    "a component that is solved": {"loss/box": 1 + 0 * FALL, "loss/cls": 0.7 * np.exp(-np.arange(N) / 15) + 1e-3},
    "a component of weight 0": {"loss/a": 1 + FALL, "loss/b": np.full(N, 1e6), "weight/b": np.zeros(N)},
    "value loss beside policy loss": {"loss/value": 300 * (1 + FALL), "loss/policy": 0.02 * np.cos(np.arange(N))},
    "a policy's surrogate that owns no gradient": {
        "loss/value": 300 * (1 + FALL),
        "loss/clip": 0.02 * np.cos(np.arange(N)),
        "grad_share/value": np.full(N, 0.98),
    },
    "an entropy bonus": {
        "loss/value": 300 * (1 + FALL),
        "weight/value": np.full(N, 0.5),
        "loss/bonus": 2 * FALL,
        "weight/bonus": np.full(N, -0.02),
        "grad_share/value": np.full(N, 0.98),
    },
    "a main loss of twelve times, and the others have their gradient": {
        "loss/a": 1 + FALL,
        "loss/b": np.full(N, 0.1),
        "grad_share/a": np.full(N, 0.8),
    },
    "a component that was solved from the scale of the one that owns the gradient": {
        "loss/box": np.ones(N),
        "loss/cls": 0.7 * np.exp(-np.arange(N) / 15) + 1e-3,
        "grad_share/box": np.full(N, 0.97),
    },
    "a start that passes": {"loss/box": 2 + 900 * np.exp(-np.arange(N) / 12), "loss/cls": 2 + FALL},
    "one loss alone": {"loss/a": 1e9 * FALL},
    "exact zeros by design": {"loss/a": 1 + FALL, "loss/margin": np.zeros(N)},
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, make_run, judge):
    """Normal life."""
    assert judge(make_run(HEALTHY[name]), RULE) == []


def test_a_declared_role_silences_it(make_run, judge):
    """Whoever says `auxiliary` means small."""
    header = {"components": {"tiny": {"role": "auxiliary"}}}
    columns = {"loss/main": np.full(N, 100.0), "loss/tiny": np.full(N, 0.1)}
    assert judge(make_run(columns, header=header), RULE) == []
    assert [finding.severity for finding in judge(make_run(columns), RULE)] == ["info"]


NOISE = 1 + 0.01 * np.cos(np.arange(N) ** 2)
PEAK = 3_256_742.75 * NOISE
MISSED = {
    "the victim was solved before it entered": {
        "loss/PeakAmp": np.where(np.arange(N) < 100, 0.0, PEAK),
        "loss/Signal": 3.75 * np.exp(-np.arange(N) / 20) + 0.3,
        "grad_share/PeakAmp": np.where(np.arange(N) < 100, 0.0, 1.0),
    },
    "ten epochs": {"loss/PeakAmp": PEAK[:10], "loss/Signal": np.full(10, 3.75)},
    "one whole block": {"loss/PeakAmp": PEAK[:20], "loss/Signal": np.full(20, 3.75)},
    "thirty rows": {"loss/PeakAmp": PEAK[:30], "loss/Signal": np.full(30, 3.75)},
    "19 rows": {"loss/PeakAmp": PEAK[:19], "loss/Signal": np.full(19, 3.75), "grad_share/PeakAmp": np.ones(19)},
    "a negative loss": {"loss/PeakAmp": PEAK, "loss/nll": np.full(N, -3.75), "grad_share/PeakAmp": np.ones(N)},
    "a negative loss, no shares": {"loss/PeakAmp": PEAK, "loss/nll": np.full(N, -3.75)},
    "names of norms": {"loss/PeakAmp": PEAK, "loss/l1": np.full(N, 3.75), "loss/load_ce": np.full(N, 2.0)},
    "a regulariser's name": {"loss/PeakAmp": PEAK, "loss/aux": np.full(N, 3.75), "grad_share/PeakAmp": np.ones(N)},
}


@pytest.mark.parametrize("name", MISSED)
def test_critical_on(name, make_run, judge):
    """Shapes of the published case."""
    (finding,) = judge(make_run(MISSED[name]), RULE)
    assert (finding.severity, finding.subject, finding.state) == ("critical", "component:PeakAmp", "active")
    assert finding.first_step == (101 if "entered" in name else 1)


def test_four_rows_are_no_run(make_run, judge):
    """Their median forgives one outlier."""
    assert judge(make_run({"loss/PeakAmp": PEAK[:4], "loss/Signal": np.full(4, 3.75)}), RULE) == []


UNPROVEN = {
    "a router": {"loss/lm": 3 + FALL, "loss/router": np.full(N, 0.011)},
    "a latent term that grows from nothing": {"loss/recon": 540 * (0.2 + FALL), "loss/latent": 12.1 - 12 * FALL},
    "a residual that starts huge": {"loss/pde": 1e4 * FALL + 1, "loss/bc": 0.5 * FALL + 0.1},
    "a constant bonus": {"loss/value_function": 120 + np.arange(N), "loss/bonus": np.full(N, 1.4)},
    "fine-tuning at the floor": {"loss/mel": 20 * NOISE, "loss/dur": 1 / NOISE},
    "to and fro about ten": {"loss/mlm": 3 * (1 + 0.1 * np.sin(np.arange(N) / 9)), "loss/nsp": np.full(N, 0.29)},
    "both fall": {"loss/PeakAmp": PEAK * FALL, "loss/Signal": 3.75 * FALL},
    "half of the gradient": {"loss/a": np.full(N, 200.0), "loss/b": np.ones(N), "grad_share/a": np.full(N, 0.5)},
}


@pytest.mark.parametrize("name", UNPROVEN)
def test_one_info_on(name, make_run, judge):
    """Imbalance without a proof is worth knowing, once."""
    (finding,) = judge(make_run(UNPROVEN[name]), RULE)
    assert (finding.severity, finding.first_step <= 40) == ("info", True)
    assert finding.severity == "info"
    assert "declare a role or a weight" in finding.advice


def test_gradients_that_are_probed_now_and_then_prove_it_in_between(make_run, judge):
    """Once in fifty rows, while the others still fall."""
    share = np.where(np.arange(N) % 50 == 10, 0.999, np.nan)
    (finding,) = judge(make_run({"loss/a": 3 + FALL, "loss/b": 5e4 * (1 + FALL), "grad_share/b": share}), RULE)
    assert (finding.severity, finding.first_step, finding.last_step) == ("critical", 1, N)
    assert finding.evidence["gradient_share"] == pytest.approx(0.999)


def test_an_alarm_without_gradients_is_withdrawn_when_the_others_improve(make_run, judge):
    """It stays as an info at the same step."""
    slow = {"loss/a": 3 * np.exp(-np.arange(N) / 2500), "loss/b": np.full(N, 5e4)}
    (early,) = judge(make_run({name: values[:45] for name, values in slow.items()}), RULE)
    quick = slow | {"loss/a": 3 * np.where(np.arange(N) < 60, 1.0, FALL)}
    (finding,) = judge(make_run(quick), RULE)
    assert (early.severity, finding.severity, early.first_step, finding.first_step) == ("critical", "info", 1, 1)


def test_an_episode_that_comes_back_is_opened_again(make_run, judge):
    """One component, one finding."""
    big = np.where((np.arange(N) // 40) % 2 == 1, 5e4, 1.0)
    columns = {"loss/a": np.ones(N), "loss/b": big, "grad_share/b": np.where(big > 1, 0.999, 0.5)}
    (finding,) = judge(make_run(columns), RULE)
    assert (finding.first_step, finding.last_step, finding.state) == (41, 160, "over")


def test_an_alarm_after_an_info_has_its_own_onset(make_run, judge):
    """What was worth knowing from the start is not when it became a sickness."""
    share = np.where(np.arange(N) < 140, 0.6, 0.999)
    columns = {"loss/a": np.where(np.arange(N) < 140, 200, 5e4), "loss/b": np.ones(N), "grad_share/a": share}
    info, alarm = judge(make_run(columns), RULE)
    assert (info.severity, info.first_step, info.state) == ("info", 1, "over")
    assert (alarm.severity, alarm.first_step, alarm.state) == ("critical", 141, "active")


def test_a_second_component_that_comes_late_changes_nothing(step_rows, play):
    """Rows count from the first one, whether the file is read at once or as it grows."""
    records = [*step_rows(7, loss__a=1.0), *step_rows(60, 8, loss__a=5e4, loss__b=1.0, grad_share__a=0.999)]
    whole, run, engine = Engine(), play([]), Engine()
    whole.feed(read := play(records))
    for record in records:
        engine.feed(play([record], run))
    found = [item for item in whole.findings(read) if item.rule == RULE]
    assert found == [item for item in engine.findings(run) if item.rule == RULE]
    assert [item.first_step for item in found] == [8]


@pytest.mark.parametrize("said", [{}, {"kl": {"unit": "nat"}}, {"kl": {"role": "regulariser"}}])
def test_a_role_counts_only_where_it_was_written(said, make_run, judge):
    """A unit says nothing of what a component is for: `task` is the default of a role that was left out."""
    columns = {"loss/pix": 1e5 * (0.5 + FALL), "loss/kl": np.full(N, 2.0)}
    assert [finding for finding in judge(make_run(columns, header={"components": said}), RULE) if finding.rank] == []
    told = make_run(columns, header={"components": {"kl": {"role": "task"}}})
    assert [finding.severity for finding in judge(told, RULE)] == ["critical"]


def test_a_weight_that_is_annealed_is_meant_to_be_small_for_now(make_run, judge):
    """By its own rows, or as it is declared; without roles."""
    share = np.where(np.arange(N) < 20, 0.9999, 0.5)
    columns = {"loss/recon": 100 * (1 + FALL), "loss/latent": np.full(N, 20.0), "grad_share/recon": share}
    rises = make_run(columns | {"weight/recon": 1.0, "weight/latent": np.minimum(np.arange(N) / 2000, 1)})
    declared = {"schedules": {"weight/latent": {"kind": "linear", "start": 0.0, "end": 1.0, "over_steps": 2000}}}
    steps = make_run(columns | {"weight/recon": 1.0, "weight/latent": 0.01 + np.arange(N) // 40 / 40}, header=declared)
    assert [judge(run, RULE) for run in (rises, steps)] == [[], []]


def test_one_block_of_gradients_is_no_proof(make_run, judge):
    """Severity grows with persistence; unless there is no more of the run."""
    share = np.where((np.arange(N) >= 40) & (np.arange(N) < 60), 0.999, 0.5)
    columns = {"loss/a": np.ones(N), "loss/b": np.where(share > 0.9, 5e4, 1.0), "grad_share/b": share}
    assert judge(make_run(columns), RULE) == []


@pytest.mark.parametrize(
    ("before", "share", "ratio", "alarms"), [(0.74, 0.91, 143, 0), (0.88, 0.97, 60, 0), (0.97, 0.97, 60, 1)]
)
def test_each_of_two_blocks_is_a_proof(before, share, ratio, alarms, make_run, judge):
    """Of two samples a step half a block is loud now and then: the one before stood out, and proved nothing."""
    early = np.arange(30) < 20
    shares = np.where(early, before, share)
    columns = {"loss/value": np.where(early, 27 * 5.0, ratio * 5.0), "loss/gradient": np.full(30, 5.0)}
    found = judge(make_run(columns | {"grad_share/value": shares, "grad_share/gradient": 1 - shares}), RULE)
    assert len([one for one in found if one.rank]) == alarms


def test_the_worst_is_told(make_run, judge):
    """The figures are those that the severity is of, though it gets better."""
    big = np.where(np.arange(N) < 100, 1.0, 5e4 * np.exp(-(np.arange(N) - 100.0) / 8))
    columns = {"loss/a": np.ones(N), "loss/b": big, "grad_share/b": np.where(big > 5, 0.99, 0.5)}
    (finding,) = judge(make_run(columns), RULE)
    assert (finding.severity, finding.state) == ("critical", "over")
    assert finding.evidence["ratio"] > 100


def test_a_start_that_soon_passes_is_an_info(make_run, judge):
    """Learned weights begin so: from the first row, while the loss falls."""
    share = np.where(np.arange(1000) < 60, 0.99, 0.5)
    columns = {"loss/a": np.ones(1000), "loss/b": np.where(share > 0.9, 5e3, 1.0), "grad_share/b": share}
    (falls,) = judge(make_run(columns | {"loss": 1 + columns["loss/b"]}), RULE)
    (stands,) = judge(make_run(columns | {"loss": np.ones(1000)}), RULE)
    assert (falls.severity, falls.state, stands.severity) == ("info", "over", "critical")


@pytest.mark.parametrize(
    ("ratio", "role", "end", "alarms"),
    [(200.0, "auxiliary", 2.5, 1), (200.0, "auxiliary", 1.0, 0), (200.0, "task", 2.5, 0), (50.0, "auxiliary", 2.5, 0)],
    ids=["", "the task is learned after it", "both are tasks", "less"],
)
def test_an_auxiliary_that_owned_the_start_and_left_the_task_unlearned(ratio, role, end, alarms, make_run, judge):
    """It is solved within a few rows, and the total falls by it; the task ends above where it began."""
    header = {"components": {"flow": {"role": "task"}, "class": {"role": role}}}
    early = np.arange(N) < 20
    columns = {"loss/flow": np.where(early, 2.0, end), "loss/class": np.where(early, 1.0, 0.5 / ratio)}
    columns |= {"weight/flow": np.ones(N), "weight/class": np.full(N, 2 * ratio)}
    columns |= {"grad_share/class": np.where(early, 0.999, 0.5), "grad_share/flow": np.where(early, 0.001, 0.5)}
    columns |= {"loss": columns["loss/flow"] + 2 * ratio * columns["loss/class"]}
    found = [finding for finding in judge(make_run(columns, header=header), RULE) if finding.rank]
    assert [(one.severity, one.first_step, one.state) for one in found] == [("critical", 1, "over")] * alarms


def test_the_share_over_the_parameters_proves_it_too(make_run, judge):
    """Where no other is recorded."""
    share = {"param_share/a": np.full(N, 0.001), "param_share/b": np.full(N, 0.999)}
    (finding,) = judge(make_run({"loss/a": 1 + FALL, "loss/b": np.full(N, 5e4), **share}), RULE)
    assert finding.evidence["gradient_share"] == pytest.approx(0.999)


@pytest.mark.parametrize(("by", "count"), [(3e3, 1), (10.0, 0)])
def test_a_giant_weight_makes_the_others_no_trifles(by, count, make_run, judge):
    """Theirs is 1; only a weight far below 1 says that a term is meant to be small."""
    columns = {
        "loss/a": np.full(N, 0.7),
        "loss/b": 0.05 + FALL / 20,
        "weight/a": np.ones(N),
        "weight/b": np.full(N, by),
    }
    share = np.full(N, 0.999 if count else 0.5)
    found = judge(make_run(columns | {"grad_share/b": share, "grad_share/a": 1 - share}), RULE)
    assert len([one for one in found if one.severity == "critical"]) == count


@pytest.mark.parametrize(("scale", "count"), [(1e4, 1), (1.0, 0)])
def test_a_prior_that_starves_once_its_weight_is_there(scale, count, make_run, judge):
    """A KL term in nats beside squared greys: as long as its schedule rises, nothing is said."""
    rise = np.minimum(np.arange(N) / 100, 1.0)
    columns = {"loss/recon": scale * (20 + 20 * FALL), "loss/kl": 5 + 40 * (1 - FALL)}
    columns |= {"weight/recon": np.ones(N), "weight/kl": 0.3 * rise}
    share = 0.3 / scale * rise
    columns |= {"grad_share/kl": share, "grad_share/recon": 1 - share}
    header = {
        "components": {"recon": {"role": "task"}, "kl": {"role": "regulariser"}},
        "schedules": {"weight/kl": {"kind": "linear", "start": 0.0, "end": 0.3, "over_steps": 100}},
    }
    found = [one for one in judge(make_run(columns, header=header), RULE) if one.rank]
    assert [(one.severity, one.first_step) for one in found] == [("warning", 101)] * count


@pytest.mark.parametrize(("weight", "count"), [(0.02, 0), (0.1, 0), (0.5, 1)])
def test_a_smoothness_that_was_given_a_small_weight_is_no_starved_prior(weight, count, make_run, judge):
    """A total variation in counts beside squared counts, a thousandfold and more of it: no more than it is meant to."""
    columns = {"loss/value": 3000 * (0.3 + FALL), "loss/variation": np.full(N, 1.8), "weight/variation": weight}
    columns |= {"weight/value": 1.0, "grad_share/value": np.full(N, 0.999), "grad_share/variation": np.full(N, 0.001)}
    header = {"components": {"value": {"role": "task"}, "variation": {"role": "regulariser"}}}
    assert len([one for one in judge(make_run(columns, header=header), RULE) if one.rank]) == count


@pytest.mark.parametrize(("policy", "count"), [(np.full(N, 100.0), 1), (100 * FALL, 0)])
def test_a_hundredfold_that_leads_while_nothing_else_improves(policy, count, make_run, judge):
    """Nine tenths of the gradient are enough then."""
    columns = {"loss/value": np.full(N, 4e4), "loss/surrogate": policy, "grad_share/value": np.full(N, 0.91)}
    found = judge(make_run(columns | {"grad_share/surrogate": np.full(N, 0.09)}), RULE)
    assert len([one for one in found if one.rank]) == count


@pytest.mark.parametrize(("share", "severity"), [(0.93, "warning"), (0.85, "info")])
def test_nine_tenths_of_the_gradient_at_thirty_times_the_sum(share, severity, make_run, judge):
    """Though one of the others still falls a little."""
    columns = {"loss/a": 1 - 0.3 * (1 - FALL), "loss/b": np.full(N, 60.0)}
    found = judge(make_run(columns | {"grad_share/b": np.full(N, share), "grad_share/a": np.full(N, 1 - share)}), RULE)
    assert [one.severity for one in found if one.rank] == [severity] * (severity == "warning")


@pytest.mark.parametrize(
    ("ratio", "norm", "role", "severity"),
    [(600.0, 200.0, "task", "critical"), (600.0, 5.0, "task", "info"), (20.0, 200.0, "task", "warning"),
     (20.0, 5.0, "task", "info"), (6.0, 200.0, "task", "none"), (600.0, 200.0, "auxiliary", "none")],
)  # fmt: skip
def test_a_giant_whose_gradient_is_clipped_to_nothing(ratio, norm, role, severity, make_run, judge):
    """Though the task below it still improves; no gradients of components are recorded."""
    header = {"max_grad_norm": 1.0, "components": {"b": {"role": "auxiliary"}, "a": {"role": role}}}
    columns = {"loss/a": 0.5 * (0.5 + FALL), "loss/b": ratio * 0.5 * (0.5 + FALL), "grad_norm": np.full(N, norm)}
    found = judge(make_run(columns, header=header), RULE)
    assert [finding.severity for finding in found] == [severity] * (severity != "none")


@pytest.mark.parametrize(("ratio", "severity"), [(60.0, "warning"), (20.0, "info")])
def test_a_task_must_be_louder_than_an_auxiliary_to_drown_another(ratio, severity, make_run, judge):
    """Both are there to be learned; an auxiliary is there to help."""
    header = {"max_grad_norm": 1.0, "components": {"b": {"role": "task"}, "a": {"role": "task"}}}
    columns = {"loss/a": 0.5 * (0.5 + FALL), "loss/b": ratio * 0.5 * (0.5 + FALL), "grad_norm": np.full(N, 200.0)}
    assert [finding.severity for finding in judge(make_run(columns, header=header), RULE)] == [severity]


@pytest.mark.parametrize(("total", "alarms"), [(300.0, True), (100.0, True), (1.0, False)])
def test_weights_that_nobody_told(total, alarms, make_run, judge):
    """The total shows that they are there: values far apart are balanced by them."""
    header = {"max_grad_norm": 1.0, "components": {name: {"role": "task"} for name in "ab"}}
    columns = {"loss/a": 0.5 * (0.5 + FALL), "loss/b": 300 * (0.5 + FALL), "grad_norm": np.full(N, 200.0)}
    run = make_run(columns | {"loss": total * (0.5 + FALL)}, header=header)
    assert bool(judge(run, RULE)) == alarms


@pytest.mark.parametrize(("scale", "rank"), [(1.0, False), (40.0, True)])
def test_a_small_error_beside_one_of_ordinary_size(scale, rank, make_run, judge):
    """Energies beside forces: both are normalised errors. Forty times as much is loud, though by the same ratio."""
    columns = {"loss/force": scale * (0.1 + 0.2 * FALL), "weight/force": np.full(N, 10.0), "grad_share/force": 0.97}
    columns |= {"loss/energy": scale * (0.001 + 0.003 * FALL), "weight/energy": 1.0, "grad_share/energy": 0.03}
    run = make_run({name: np.broadcast_to(values, N) for name, values in columns.items()})
    assert any(finding.rank for finding in judge(run, RULE)) == rank


@pytest.mark.parametrize(("weight", "scale", "rank"), [(0.1, 1.0, False), (0.1, 10.0, True), (0.2, 2.5, True)])
def test_an_unlearned_value_that_was_given_a_small_weight(weight, scale, rank, make_run, judge):
    """A spread of vectors at a tenth beside an ordinary cross-entropy: somebody chose it; no role is declared."""
    columns = {"loss/pairs": scale * (2.8 + 0.4 * FALL), "weight/pairs": 1.0, "grad_share/pairs": 0.98}
    columns |= {"loss/crowding": np.full(N, 2.5), "weight/crowding": weight, "grad_share/crowding": 0.02}
    run = make_run({name: np.broadcast_to(values, N) for name, values in columns.items()})
    assert any(finding.rank for finding in judge(run, RULE)) == rank


@pytest.mark.parametrize(("later", "rank"), [(400.0, False), (2.0, True)])
def test_what_a_later_stage_weighs_up_is_small_for_now(later, rank, make_run, judge):
    """To the scale of the large one; a little more of it is not enough."""
    stages = [{"start": 0, "weights": {"a": 1.0, "b": 1.0}}, {"start": 500, "weights": {"a": later, "b": 1.0}}]
    columns = {"loss/a": 1 + FALL, "loss/b": np.full(N, 300.0), "weight/a": np.ones(N), "weight/b": np.ones(N)}
    columns |= {"grad_share/b": np.full(N, 0.99)}
    run = make_run(columns, header={"curriculum": {"name": "A", "stages": stages}})
    assert any(finding.rank for finding in judge(run, RULE)) == rank


def test_a_thousandfold_from_the_first_row_on_needs_one_block(make_run, judge):
    """What it drowns explodes then, and is as large as it."""
    share = np.where(np.arange(N) < 20, 0.999, 0.5)
    columns = {"loss/a": np.where(share > 0.9, 1.0, 5e4), "loss/b": np.full(N, 1e5), "grad_share/b": share}
    (finding,) = judge(make_run(columns), RULE)
    assert (finding.severity, finding.first_step, finding.last_step, finding.state) == ("critical", 1, 20, "over")


@pytest.mark.parametrize(
    ("ratio", "planned", "alarms"), [(5e3, 48, 1), (500, 48, 0), (5e3, 200, 0)], ids=["", "less", "the run goes on"]
)
def test_a_thousandfold_in_the_last_block_of_few_rows(ratio, planned, alarms, make_run, judge):
    """What it drowns begins in the middle of a log of 48 rows, which has no second block for it."""
    there = np.arange(48) >= 20
    columns = {"loss/a": np.full(48, 5.0), "loss/b": np.where(there, 5 * ratio, 5.0)}
    columns |= {"grad_share/b": np.where(there, 0.999, 0.5), "grad_share/a": np.where(there, 0.001, 0.5)}
    columns |= {"weight/a": np.ones(48), "weight/b": np.ones(48)}
    found = judge(make_run(columns, header={"total_steps": planned}), RULE)
    assert len([one for one in found if one.rank]) == alarms


@pytest.mark.parametrize(("rise", "stages", "severity"), [(0.3, 1, "critical"), (0.002, 1, "info"), (0.3, 2, "info")])
def test_a_start_that_passes_while_a_task_ends_higher(rise, stages, severity, make_run, judge):
    """A non-task that falls from a hundred times the tasks: the task that it cost ends clearly above where it began; at
    its noise floor that is nothing, and a later stage may ask for more.
    """
    steps = np.arange(N)
    floor = (1 + rise * steps / N) * (1 + 1e-4 * np.random.default_rng(0).standard_normal(N))
    giant = np.where(steps < 20, 500.0, 0.5)
    share = np.where(steps < 20, 0.999, 0.3)
    columns = {
        "loss/a": floor,
        "loss/b": giant,
        "loss": floor + giant,
        "grad_share/b": share,
        "grad_share/a": 1 - share,
    }
    columns |= {"stage": np.minimum(steps * stages // N, stages - 1).astype(float)}
    header = {"components": {"a": {"role": "task"}, "b": {"role": "auxiliary"}}}
    (found,) = judge(make_run(columns, header=header), RULE)
    assert found.severity == severity
