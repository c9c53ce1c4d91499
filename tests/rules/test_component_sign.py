"""component-sign: a task that is maximised, a loss without a floor; bonuses and rewards are no more than an info."""

import numpy as np
import pytest

RULE = "component-sign"
N = 200
ROW = np.arange(N)
FALL = 1 + 2 * np.exp(-ROW / 30)


def columns(name, raw, weight, seed=0):
    noise = np.exp(0.05 * np.random.default_rng(seed).standard_normal(N))
    return {"loss/a": FALL * noise, "weight/a": np.ones(N), f"loss/{name}": raw * noise, f"weight/{name}": weight}


@pytest.mark.parametrize("seed", range(5))
def test_a_maximised_task_is_named_from_the_first_negative_weight(seed, make_run, judge):
    """It grows a hundred times: critical."""
    weight = np.where(ROW < 50, 1.0, -1.0)
    raw = 2.3 * np.exp(np.maximum(ROW - 50, 0) / 25)
    (finding,) = judge(make_run(columns("class", raw, weight, seed)), RULE)
    assert (finding.severity, finding.subject, finding.first_step, finding.state) == (
        *("critical", "component:class", 51),
        "active",
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_density_without_a_floor_is_named(seed, make_run, judge):
    """It falls far below 0, faster and faster."""
    (finding,) = judge(make_run(columns("nll", 1 - ROW**2 / 20.0, np.ones(N), seed)), RULE)
    assert (finding.severity, finding.subject) == ("warning", "component:nll")
    assert finding.first_step <= 20


INFO = {
    "an entropy bonus": ("entropy", 1.4 * np.exp(-ROW / 80), np.full(N, -0.01)),
    "a reward that is learned": ("reward", 0.1 + 50 * (1 - np.exp(-ROW / 40)), np.full(N, -1.0)),
    "a similarity that comes to its bound": ("agreement", 1 - 0.9 * np.exp(-ROW / 20), np.full(N, -1.0)),
}


@pytest.mark.parametrize("name", INFO)
def test_one_info_on(name, make_run, judge):
    """Worth knowing, no alarm."""
    (finding,) = judge(make_run(columns(*INFO[name])), RULE)
    assert (finding.severity, finding.first_step) == ("info", 1)


HEALTHY = {
    "a negative likelihood": ("nll", 3000 - 8000 * (1 - np.exp(-ROW / 40)), np.ones(N)),
    "a Gaussian": ("nll", 0.1 - 3 * (1 - np.exp(-ROW / 40)), np.ones(N)),
    "a critic that drifts": ("critic", -(ROW**2) / 20.0, np.ones(N)),
    "a policy's surrogate": ("policy", 0.02 * np.cos(ROW**2), np.ones(N)),
    "a loss": ("b", FALL, np.ones(N)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on(name, make_run, judge):
    """Negative values are no wrong sign."""
    assert judge(make_run(columns(*HEALTHY[name])), RULE) == []


@pytest.mark.parametrize(("end", "severity"), [(5_000.0, "critical"), (50.0, "info")])
def test_a_regulariser_that_runs_away_is_none(end, severity, make_run, judge):
    """It may rise under a negative weight, within bounds."""
    raw = 0.5 * (end / 0.5) ** (ROW / N)
    header = {"components": {"commitment": {"role": "regulariser"}}}
    (found,) = judge(make_run(columns("commitment", raw, np.full(N, -1.0)), header=header), RULE)
    assert found.severity == severity


@pytest.mark.parametrize(("name", "severity"), [("value", "critical"), ("q", "info")])
def test_an_auxiliary_is_not_meant_by_being_one(name, severity, make_run, judge):
    """The error of a value is never wanted; the value itself may be."""
    header = {"components": {name: {"role": "auxiliary"}, "a": {"role": "task"}}}
    (finding,) = judge(make_run(columns(name, 0.5 * np.exp(ROW / 25), np.full(N, -0.5)), header=header), RULE)
    assert finding.severity == severity


@pytest.mark.parametrize(("depth", "count"), [(1e9, 1), (50.0, 0)])
def test_a_regulariser_with_its_sign_lost(depth, count, make_run, judge):
    """It falls a thousandfold and more below 0, then stands where all is lost."""
    raw = -0.1 * (depth / 0.1) ** np.minimum(ROW / 100, 1.0)
    header = {"components": {"kl": {"role": "regulariser"}, "a": {"role": "task"}}}
    assert len(judge(make_run(columns("kl", raw, np.full(N, 0.3)), header=header), RULE)) == count


@pytest.mark.parametrize(
    ("cosine", "raw", "role", "severity"),
    [
        (-0.8, np.full(N, 0.87), "task", "warning"),  # an overlap's loss, whose bound is 1
        (0.7, 0.1 + 0.8 * (1 - np.exp(-ROW / 40)), "task", "info"),  # a score, that is sought and found
        (-0.8, np.full(N, 0.87), "regulariser", "info"),
    ],
)
def test_a_bounded_task_that_is_maximised(cosine, raw, role, severity, make_run, judge):
    """It cannot grow; but turned round its gradient would agree with that of the task which it undoes."""
    header = {"components": {"dice": {"role": role}, "a": {"role": "task"}}}
    more = {"grad_cosine/a~dice": cosine + 0.05 * np.random.default_rng(1).standard_normal(N)}
    (finding,) = judge(make_run(columns("dice", raw, np.full(N, -1.0)) | more, header=header), RULE)
    assert (finding.severity, finding.first_step) == (severity, 1)


@pytest.mark.parametrize(
    ("name", "cosine", "raw", "severity"),
    [
        ("dice", -0.8, np.full(N, 0.93), "warning"),
        ("mask_iou", -0.8, np.full(N, 0.93), "warning"),
        ("dice", 0.7, np.full(N, 0.93), "info"),  # a score that agrees with the error of the same outputs
        ("ssim", -0.8, 0.2 + 0.7 * (1 - np.exp(-ROW / 40)), "info"),  # it is found, against what a rate costs
        ("entropy", -0.8, np.full(N, 0.93), "info"),  # a bonus pulls against the task by design
    ],
)
def test_an_overlap_that_is_an_auxiliary_and_maximised(name, cosine, raw, severity, make_run, judge):
    """It runs against another auxiliary, an error of the same outputs, which is learned."""
    header = {"components": {name: {"role": "auxiliary"}, "a": {"role": "auxiliary"}}}
    more = {f"grad_cosine/a~{name}": cosine + 0.05 * np.random.default_rng(1).standard_normal(N)}
    (finding,) = judge(make_run(columns(name, raw, np.full(N, -0.5)) | more, header=header), RULE)
    assert finding.severity == severity


@pytest.mark.parametrize(
    ("name", "role", "end", "severity"),
    [
        ("class", "task", 0.7, "warning"),
        ("class", "task", 2.5, "info"),  # it stays where it was
        ("class", "auxiliary", 0.7, "info"),
        ("entropy", "task", 0.7, "info"),  # what a policy loses as it learns
        ("domain", "task", 0.7, "info"),  # an opponent learns it
    ],
)
def test_a_task_that_comes_down_although_it_is_maximised(name, role, end, severity, make_run, judge):
    """The others make it smaller, against its own gradient: its sign is wrong."""
    header = {"components": {name: {"role": role}, "a": {"role": "task"}}}
    raw = end + (2.6 - end) * np.exp(-ROW / 40)
    (finding,) = judge(make_run(columns(name, raw, np.full(N, -0.5)), header=header), RULE)
    assert finding.severity == severity


@pytest.mark.parametrize(
    ("name", "unit", "role", "severity"),
    [
        *(("spectral", "", "auxiliary", "warning"), ("hard", "nat", "task", "warning")),
        *(
            ("hard", "", "task", "info"),
            ("spectral", "", "regulariser", "info"),
            ("entropy", "nat", "auxiliary", "info"),
            ("coverage", "nat", "auxiliary", "info"),
        ),
        ("cross_entropy", "", "task", "warning"),
    ],
)
def test_nobody_wants_more_of_an_error(name, unit, role, severity, make_run, judge):
    """It rises by two fifths, and stays there."""
    header = {"components": {name: {"unit": unit, "role": role}, "a": {"role": "task"}}}
    run = make_run(columns(name, 1.4 - 0.4 * np.exp(-ROW / 10), np.full(N, -2.0)), header=header)
    assert [found.severity for found in judge(run, RULE)] == [severity]


@pytest.mark.parametrize(("name", "severity"), [("l2", "warning"), ("spread", "info")])
def test_nobody_wants_many_times_an_error(name, severity, make_run, judge):
    """It rises twentyfold and outgrows the others, and its role is that of a regulariser."""
    header = {"components": {name: {"role": "regulariser"}, "a": {"role": "task"}}}
    run = make_run(columns(name, np.linspace(1.0, 20.0, N), np.full(N, -2.0)), header=header)
    assert [found.severity for found in judge(run, RULE)] == [severity]


def test_a_rise_ends_with_the_rate(make_run, judge):
    """Twenty times what it was, and flat at last."""
    run = make_run(columns("b", 0.5 + 10 * np.sin(np.pi * ROW / 2 / N), np.full(N, -1.0)))
    assert [found.severity for found in judge(run, RULE)] == ["warning"]


@pytest.mark.parametrize(("name", "severity"), [("kl", "warning"), ("weight_decay", "warning"), ("coverage", "info")])
def test_a_penalty_is_never_meant_to_rise(name, severity, make_run, judge):
    """A divergence from a reference, of the weight -0.5, that leads at last; of other regularisers it may be meant."""
    header = {"components": {name: {"role": "regulariser"}, "a": {"role": "task"}}}
    run = make_run(columns(name, 0.5 + ROW / 20, np.full(N, -0.5)), header=header)
    assert [found.severity for found in judge(run, RULE)] == [severity]


@pytest.mark.parametrize(
    ("own", "severity"),
    [(1.4 - ROW / 1000, "warning"), (1.4 + ROW / 1000, "info"), (0.2 - ROW / 200, "info")],
    ids=["falls", "moves with it, as in a minimax game", "a score"],
)
@pytest.mark.parametrize("channel", ["discriminator/loss", "loss/d"])
def test_a_players_loss_that_both_sides_push_up(channel, own, severity, make_run, judge):
    """The opponent's own loss tells a game from a sign that is wrong."""
    raw = 0.7 + ROW / 1500
    run = make_run(columns("adversarial", raw, np.full(N, -0.03)) | {channel: own, "weight/d": np.zeros(N)})
    assert [found.severity for found in judge(run, RULE) if "adversarial" in found.subject] == [severity]


@pytest.mark.parametrize(("turns", "valid", "told"), [(1, 1, "warning"), (-1, 1, "info"), (1, -1, "info")])
@pytest.mark.parametrize("seed", range(3))
def test_what_rises_with_all_other_tasks_is_no_score(turns, valid, told, seed, make_run, judge):
    """From below 0, so that it has no times; a score rises as errors fall, or while validation gets better."""
    away = 1 + 0.5 * turns * ROW / N
    run = make_run(
        columns("ratio", 1.0, -0.2, seed) | {"loss/a": away, "loss/ratio": -9 + 30 * ROW / N, "loss/b": 2 + 0 * ROW},
        header={"components": {name: {"role": "task"} for name in ("a", "b", "ratio")}},
        evals=[{"step": step, "split": "valid", "loss": 5 + valid * step / N} for step in range(10, N, 20)],
    )
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.subject, finding.first_step) == (told, "component:ratio", 1)


@pytest.mark.parametrize(("within", "told"), [(0.3, "info"), (0.0, "info"), (-0.3, "warning")])
def test_a_score_comes_down_as_data_gets_harder(within, told, make_run, judge):
    """From stage to stage; within one it rises, or stands. What the others learn away falls within it, too."""
    stage = ROW // 67
    raw = (12 - 4 * stage) * (1 + within * (ROW % 67) / 67)
    plan = {"name": "harder", "stages": [{"start": 67 * number, "name": str(number)} for number in range(3)]}
    header = {"components": {name: {"role": "task"} for name in ("a", "ratio")}, "curriculum": plan}
    run = make_run(columns("ratio", raw, np.full(N, -0.2)) | {"stage": stage}, header=header)
    (finding,) = judge(run, RULE)
    assert (finding.severity, finding.subject) == (told, "component:ratio")


@pytest.mark.parametrize(
    ("task", "valid", "psnr", "told"),
    [(1, 1, -1, "warning"), (-1, 1, -1, "info"), (1, -1, -1, "info"), (1, 1, 1, "info")],
)
@pytest.mark.parametrize("name", ["variation", "diversity"])
def test_what_is_maximised_to_the_harm_of_all(name, task, valid, psnr, told, make_run, judge):
    """Whatever its role; overfitting costs no training, and what is sought for its good is better by some measure."""
    run = make_run(
        columns(name, 1 + ROW / N, np.full(N, -10.0)) | {"loss/a": 1 + 0.5 * task * ROW / N},
        header={"components": {"a": {"role": "task"}, name: {"role": "regulariser"}}},
        evals=[
            {"step": step, "loss": 5 + valid * step / N, "metric/psnr": 20 + 5 * psnr * step / N}
            for step in range(10, N, 10)
        ],
    )
    (finding,) = judge(run, RULE)
    assert finding.severity == (told if name == "variation" else "info")


@pytest.mark.parametrize(("rows", "severity"), [(24, "warning"), (18, "info")])
def test_a_player_that_both_sides_push_up_in_a_log_of_few_rows(rows, severity, make_run, judge):
    """The opponent's own loss goes against it in twenty rows and more."""
    row = np.linspace(0, N, rows)
    few = {name: values[:rows] for name, values in columns("adversarial", 1.0, np.full(N, -0.03)).items()}
    few |= {"loss/adversarial": 0.7 + row / 1500, "discriminator/loss": 1.4 - row / 1000}
    assert [one.severity for one in judge(make_run(few), RULE) if "adversarial" in one.subject] == [severity]
