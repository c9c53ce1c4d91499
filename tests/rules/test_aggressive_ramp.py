"""aggressive-ramp: a weight that brings in more than everything before, at the step it rises."""

import numpy as np
import pytest

RULE = "aggressive-ramp"
N = 300
STEP = np.arange(1, N + 1)


def columns(weight, raw, **more):
    base = {"loss/ce": 1 + np.exp(-STEP / 80), "weight/ce": np.ones(N), "loss/mass": np.full(N, raw)}
    return {**base, "weight/mass": weight, **{name.replace("__", "/"): value for name, value in more.items()}}


def test_a_step_onto_a_raw_unit_is_named_at_the_boundary(make_run, judge):
    """0.2 x 80,000 ppm beside a cross-entropy."""
    (finding,) = judge(make_run(columns(np.where(STEP >= 80, 0.2, 0.0), 80_000.0)), RULE)
    assert (finding.subject, finding.first_step, finding.severity) == ("component:mass", 80, "critical")
    assert finding.last_step <= 80 + 25
    assert finding.evidence["growth"] > 1000


def shares(of_mass):
    return {"grad_share__mass": of_mass, "grad_share__ce": 1 - of_mass}


ENTERS = np.where(STEP >= 80, 1.0, 0.0)


def test_a_takeover_with_a_larger_loss_is_named(make_run, judge):
    """Somewhat larger than all that was learned, and the whole gradient."""
    share = np.where(STEP >= 80, 0.95, 0.0)
    (finding,) = judge(make_run(columns(ENTERS, 3.0, **shares(share))), RULE)
    assert (finding.severity, finding.first_step, finding.state) == ("warning", 80, "active")
    assert judge(make_run(columns(ENTERS, 0.5, **shares(share))), RULE) == []


def test_it_is_over_when_the_component_no_longer_leads(make_run, judge):
    """By its share of the gradient; where none is recorded, by its contribution."""
    share = np.where(STEP >= 80, np.where(STEP >= 200, 0.4, 0.95), 0.0)
    falling = np.where(STEP >= 200, 0.5, 50.0)
    for more in (shares(share), {}):
        (finding,) = judge(make_run(columns(ENTERS, 50.0, **more) | {"loss/mass": falling}), RULE)
        assert (finding.first_step, finding.state) == (80, "over")


def test_a_new_task_is_no_ramp(make_run, judge):
    """As large as the old one was at first, with half of the gradient or none recorded."""
    old = {"loss/ce": 0.3 + 2.2 * np.exp(-STEP / 20)}
    assert judge(make_run(columns(ENTERS, 2.5) | old), RULE) == []
    share = np.where(STEP >= 80, 0.5, 0.0)
    assert judge(make_run(columns(ENTERS, 2.5, **shares(share)) | old), RULE) == []
    share = np.where(STEP >= 80, 0.95, 0.0)
    assert judge(make_run(columns(ENTERS, 2.0, **shares(share)) | old), RULE) == []


def test_after_a_resume_the_largest_loss_is_not_known(make_run, judge):
    """A new task beside one that is nearly solved; a raw unit is named there as well."""
    solved = {"loss/ce": np.full(N, 0.1)}
    resumed = {"resumed_from": 0}
    assert judge(make_run(columns(ENTERS, 2.5) | solved), RULE)
    assert judge(make_run(columns(ENTERS, 2.5) | solved, header=resumed), RULE) == []
    assert judge(make_run(columns(ENTERS, 80_000.0) | solved, header=resumed), RULE)


def test_a_return_to_an_earlier_weight_is_no_ramp(make_run, judge):
    """Off for a stage, and on again."""
    weight = np.where((STEP >= 80) & (STEP < 160), 0.0, 1.0)
    assert judge(make_run(columns(weight, 500.0)), RULE) == []


def test_a_warm_up_of_fifty_steps_is_no_ramp(make_run, judge):
    """From nothing to a little more than the other loss."""
    assert judge(make_run(columns(np.minimum(1, STEP / 50), 4.0)), RULE) == []


def test_what_has_taken_over_is_not_told_again(make_run, judge):
    """Three boundaries of one component, one finding."""
    weight = np.select([STEP >= 220, STEP >= 150, STEP >= 80], [2.0, 0.5, 0.1], 0.0)
    share = np.where(STEP >= 80, 0.999, 0.0)
    for recorded in (share, np.where(STEP % 25 == 5, share, np.nan)):
        (finding,) = judge(make_run(columns(weight, 80_000.0, **shares(recorded))), RULE)
        assert finding.first_step == 80


def test_a_steep_ramp_is_one_finding(make_run, judge):
    """It rises in every row; each of its blocks outweighs what was before."""
    weight = np.clip((STEP - 79) / 100, 0, 1)
    assert [finding.first_step for finding in judge(make_run(columns(weight, 80_000.0)), RULE)] == [80]


def test_a_total_in_frames_is_judged_all_the_same(make_run, judge):
    """2 % of a billion frames would be a window that no run fills."""
    steps = np.arange(1, 5001)
    weight = np.where(steps >= 2000, 1.0, 0.0)
    run = {"loss/x": np.ones(5000), "weight/x": np.ones(5000), "loss/y": np.full(5000, 500.0), "weight/y": weight}
    (finding,) = judge(make_run(run, header={"total_steps": 10**9}), RULE)
    assert (finding.first_step, finding.severity) == (2000, "critical")


def test_silent_on_a_planned_small_step(make_run, judge):
    """What EXTENDED does."""
    assert judge(make_run(columns(np.where(STEP >= 80, 0.05, 0.0), 0.6)), RULE) == []


def test_silent_on_a_slow_ramp_to_the_same_weight(make_run, judge):
    """The same end over most of the run."""
    slow = np.clip((STEP - 20) / 270, 0, 1) * 0.5
    assert judge(make_run(columns(slow, 5.0), header={"total_steps": N}), RULE) == []


def test_silent_where_only_the_raw_loss_jumps(make_run, judge):
    """No weight rose: another rule's matter."""
    run = make_run(columns(np.full(N, 0.2), 1.0) | {"loss/mass": np.where(STEP > 100, 1e5, 1.0)})
    assert judge(run, RULE) == []


def test_silent_on_a_weight_that_is_there_from_the_first_row(make_run, judge):
    """There is no before."""
    assert judge(make_run(columns(np.full(N, 0.2), 80_000.0)), RULE) == []


def test_a_component_of_another_scale_is_another_rule_s(make_run, judge):
    """Its weight is an ordinary one, and no ramp would mend its value; a weight out of all proportion is a ramp."""
    share = np.where(STEP >= 80, 0.999, 0.0)
    assert [one.severity for one in judge(make_run(columns(ENTERS, 80_000.0, **shares(share))), RULE)] == ["info"]
    assert [one.severity for one in judge(make_run(columns(8e4 * ENTERS, 1.0, **shares(share))), RULE)] == ["critical"]


def test_a_log_with_a_row_in_fifty(make_run, judge):
    """The window is 2 % of the planned steps, however many rows tell of them."""
    sharp = columns(np.where(STEP >= 80, 0.2, 0.0), 80_000.0)
    (finding,) = judge(make_run(sharp | {"step": 50 * STEP}, header={"total_steps": 20_000}), RULE)
    assert (finding.first_step, finding.severity) == (4000, "critical")


def test_a_penalty_that_enters_and_is_made_good(make_run, judge):
    """A divergence switched on after a warm-up takes half of the gradient, as it is to; so does a critic's penalty."""
    for player, weight in (("ce", 0.001), ("critic", 0.0)):
        share = np.where(STEP >= 150, 0.6, 0.002)
        table = {f"loss/{player}": np.ones(N), f"weight/{player}": np.ones(N), f"grad_share/{player}": 1 - share}
        table |= {
            "loss/mass": np.full(N, 6.0),
            "weight/mass": np.where(STEP >= 150, 1.0, weight),
            "grad_share/mass": share,
        }
        assert judge(make_run(table, header={"components": {"mass": {"role": "regulariser"}}}), RULE) == []


@pytest.mark.parametrize(
    ("role", "weight", "share", "player", "count"),
    [
        ("regulariser", 3.0, 0.72, "actor", 1),
        ("regulariser", 3.0, 0.4, "actor", 0),
        ("regulariser", 0.2, 0.72, "actor", 0),  # less than ten times what it was
        ("auxiliary", 3.0, 0.72, "actor", 0),
        ("regulariser", 3.0, 0.72, "ce", 0),  # where the loss's height is what was learned, that is the measure
    ],
)
def test_a_penalty_that_takes_a_game_over(role, weight, share, player, count, make_run, judge):
    """The surrogate's height says nothing: a hundred times the weight, and most of the gradient, does."""
    shared = np.where(STEP >= 150, share, 0.05)
    table = {f"loss/{player}": np.full(N, -3.0), f"weight/{player}": np.ones(N), f"grad_share/{player}": 1 - shared}
    table |= {
        "loss/mass": np.full(N, 0.3),
        "weight/mass": np.where(STEP >= 150, weight, 0.03),
        "grad_share/mass": shared,
    }
    found = judge(make_run(table, header={"components": {"mass": {"role": role}}}), RULE)
    assert [(one.severity, one.first_step) for one in found] == count * [("warning", 150)]


@pytest.mark.parametrize(
    ("role", "cost", "growth", "count"),
    [
        ("regulariser", 2.0, 10.0, 1),
        ("regulariser", 1.2, 10.0, 0),
        ("regulariser", 2.0, 2.0, 0),
        ("auxiliary", 2.0, 10.0, 0),
    ],
)
def test_a_regulariser_that_drowns_what_was_learned(role, cost, growth, count, make_run, judge):
    """Where no gradients are recorded: it is most of the sum, and all else stays worse by half."""
    learned = (0.5 + 9.5 * np.exp(-STEP / 20)) * np.where(STEP >= 150, cost, 1.0)
    table = columns(np.where(STEP >= 150, growth, 0.01), 0.5) | {"loss/ce": learned}
    found = judge(make_run(table, header={"components": {"mass": {"role": role}}}), RULE)
    assert [(one.severity, one.first_step) for one in found] == count * [("warning", 150)]


@pytest.mark.parametrize(("back", "verdict"), [(1.1, ("info", "over")), (2.0, ("warning", "active"))])
def test_what_was_drowned_finds_back(back, verdict, make_run, judge):
    """The regulariser is soon satisfied; all else is as good again, or it is not."""
    cost = np.interp(STEP, [149, 150, 180, 220], [1.0, 3.0, 3.0, back])
    table = columns(np.where(STEP >= 150, 10.0, 0.01), np.interp(STEP, [150, 200, 220], [0.5, 0.5, 0.01]))
    learned = (0.5 + 9.5 * np.exp(-STEP / 20)) * cost
    (found,) = judge(
        make_run(table | {"loss/ce": learned}, header={"components": {"mass": {"role": "regulariser"}}}), RULE
    )
    assert (found.severity, found.state) == verdict
