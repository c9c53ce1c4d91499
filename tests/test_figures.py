"""What a figure may never lose, and what it may never render."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwatch import figures
from trainwatch.run import Run
from trainwatch.schema import NONFINITE, Finding

HOSTILE = "<b>x</b><a href='javascript:1'>%{y}"


def finding(**more: Any) -> Finding:
    told = {"rule": "loss-scale-imbalance", "severity": "critical", "subject": "component:mass", "first_step": 500}
    return Finding(**{**told, "last_step": 900, "state": "active", "message": "mass takes it all", **more})


def run_of(rows: int = 1000, header: dict[str, Any] | None = None, **columns: Any) -> Run:
    """A run with these channels (``__`` for ``/``), one row a step."""
    run = Run(Path("x.jsonl"))
    run.add_header({"kind": "run", "run": "x", **(header or {})})
    steps = np.arange(1, rows + 1)
    named = {name.replace("__", "/"): np.broadcast_to(np.asarray(v, float), rows) for name, v in columns.items()}
    run.add_rows("train", steps, {"applied": steps.astype(float), **named})
    return run


def trace(figure: go.Figure, name: str) -> Any:
    return next(one for one in figure.data if one.name == name)


def named(figure: go.Figure) -> list[str]:
    return [one.name for one in figure.data]


def test_a_run_without_channels_has_no_figure() -> None:
    run = run_of(0)
    assert all(one.draw(run, [finding()]) is None for one in figures.FIGURES.values())
    assert figures.for_finding(run, finding()) is None


def test_every_figure_has_a_title_and_a_line() -> None:
    assert all(one.title and one.about.endswith(".") for one in figures.FIGURES.values())


@pytest.mark.parametrize("step", [1, 777, 123_456, 199_999])
def test_a_single_nan_among_many_rows_stands_at_its_exact_step(step: int) -> None:
    run = run_of(200_000, loss__mass=1.0)
    run.train["loss/mass"][step - 1] = np.nan
    run.train.mark(step - 1, "loss/mass", NONFINITE["nan"])
    figure = figures.FIGURES["loss"].draw(run, [])
    assert figure is not None
    mark = trace(figure, "mass: nan")
    assert mark.x[0] == mark.x[1] == step
    assert mark.hovertext[0] == f"mass: nan at step {step:,}"
    assert step not in trace(figure, "mass").x
    table = figures.FIGURES["nonfinite"].draw(run, [])
    assert table is not None
    assert table.data[0].x[0] == step


def test_a_long_stretch_of_infinities_keeps_both_ends() -> None:
    run = run_of(5000, grad_norm=1.0)
    for row in range(1000, 4000):
        run.train["grad_norm"][row] = np.nan
        run.train.mark(row, "grad_norm", NONFINITE["inf"])
    figure = figures.FIGURES["norm"].draw(run, [])
    assert figure is not None
    mark = trace(figure, "whole: inf")
    assert (mark.x[0], mark.x[1]) == (1001, 4000)
    assert "3,000 steps" in mark.hovertext[0]


def test_a_curve_is_sampled_and_keeps_its_extremes() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    values[54_321] = 99.0
    figure = figures.FIGURES["loss"].draw(run_of(100_000, loss=values), [])
    assert figure is not None
    line = figure.data[0]
    assert len(line.x) <= 500
    assert 99.0 in line.y
    assert line.x[list(line.y).index(99.0)] == 54_322


def test_a_span_is_drawn_with_its_own_detail() -> None:
    run = run_of(100_000, loss=np.arange(100_000.0))
    figure = figures.FIGURES["loss"].draw(run, [], figures.Look((5000, 5100)))
    assert figure is not None
    assert list(figure.data[0].x) == list(range(4999, 5102))
    assert tuple(figure.layout.xaxis.range) == (5000, 5100)


def test_superseded_rows_are_not_in_the_curve() -> None:
    run = run_of(100, loss=7.0)
    run.add_header({"kind": "run", "run": "x", "resumed_from": 60})
    run.add_rows("train", np.arange(61, 81), {"loss": np.full(20, 3.0)})
    figure = figures.FIGURES["loss"].draw(run, [])
    assert figure is not None
    assert list(figure.data[0].x) == list(range(1, 81))
    assert set(figure.data[0].y[60:]) == {3.0}


def test_a_log_axis_says_what_it_cannot_show() -> None:
    weight = np.where(np.arange(1000) < 400, 0.0, 0.5)
    figure = figures.FIGURES["contribution"].draw(run_of(loss__mass=2.0, weight__mass=weight), [])
    assert figure is not None
    below = trace(figure, "mass: 0 or less, below any log axis")
    assert (below.x[0], below.x[1]) == (1, 400)
    assert min(trace(figure, "mass").x) == 401


def test_declared_weights_stand_beside_those_applied() -> None:
    stages = [{"start": 0, "weights": {"mass": 0.1}}, {"start": 500, "weights": {"mass": 0.4}}]
    run = run_of(header={"curriculum": {"name": "c", "stages": stages}}, loss__mass=2.0, weight__mass=0.1)
    figure = figures.FIGURES["weights"].draw(run, [])
    assert figure is not None
    plan = trace(figure, "mass, declared")
    assert plan.y[list(plan.x).index(500)] == pytest.approx(0.4)
    assert plan.y[0] == pytest.approx(0.1)
    assert [shape.label.text for shape in figure.layout.shapes] == ["1", "2"]


def test_a_schedule_stands_beside_its_declaration() -> None:
    declared = {"lr/main": {"kind": "linear", "start": 1.0, "end": 0.0, "over_steps": 1000}}
    figure = figures.FIGURES["lr"].draw(run_of(header={"schedules": declared}, lr__main=1.0), [])
    assert figure is not None
    assert trace(figure, "main, declared").y[-1] == pytest.approx(0.0)


def test_shares_stack_on_common_steps() -> None:
    noise = np.random.default_rng(1).uniform(size=5000)
    run = run_of(5000, loss__a=1, loss__b=1, grad_share__a=noise, grad_share__b=1 - noise)
    figure = figures.FIGURES["share"].draw(run, [])
    assert figure is not None
    first, second = trace(figure, "a"), trace(figure, "b")
    assert list(first.x) == list(second.x)
    assert np.allclose(first.y + second.y, 1.0, atol=1e-6)


def test_findings_stand_at_their_first_step_with_their_message() -> None:
    figure = figures.FIGURES["loss"].draw(run_of(loss=1.0), [finding(), finding(severity="info", first_step=7)])
    assert figure is not None
    marks = trace(figure, "findings")
    assert sorted(marks.x) == [7, 500]
    assert "mass takes it all" in marks.hovertext[1]
    assert [shape.x0 for shape in figure.layout.shapes if shape.type == "line"] == [500]


def test_names_and_messages_are_text_not_markup() -> None:
    header = {
        "components": {HOSTILE: {"unit": "<i>"}},
        "curriculum": {"name": "c", "stages": [{"start": 0, "name": HOSTILE, "weights": {HOSTILE: 1.0}}]},
        "schedules": {"lr/" + HOSTILE: {"kind": "constant", "start": 1.0}},
    }
    run = run_of(header=header)
    families = ("loss/", "weight/", "grad_share/", "grad_norm/", "lr/", "schedule/", "clock/", "time/", "memory/")
    families += ("grad_cosine/", "update_ratio/", "weight_norm/", "absmax/", "amp/scale")
    written = {family + HOSTILE: np.full(10, 1.0) for family in families}
    written |= {f"data/{HOSTILE.replace('/', '')}/mean": np.ones(10), "loss/b": np.ones(10), "weight/b": np.ones(10)}
    run.add_rows("train", np.arange(1001, 1011), {**written, "time/step": np.ones(10)})
    run.add_rows("sample", np.arange(5), {"quality/" + HOSTILE: np.ones(5)})
    run.ranks[1] = run_of(header={"run": HOSTILE})
    run.ranks[1].add_rows("train", np.arange(1001, 1011), {"time/step": np.ones(10)})
    run.train.mark(1005, "loss/" + HOSTILE, NONFINITE["nan"])
    metrics = dict.fromkeys((f"metric/{HOSTILE}", f"metric/{HOSTILE}_length_7_10"), np.ones(5))
    run.add_rows("eval", np.arange(5), {"loss": np.ones(5), **metrics})
    run.eval.text["split"] = dict.fromkeys(range(5), HOSTILE)
    drawn = [
        one.draw(run, [finding(message=HOSTILE, rule=HOSTILE, first_step=1001)]) for one in figures.FIGURES.values()
    ]
    assert sum(figure is not None for figure in drawn) == len(drawn)
    for figure in drawn:
        assert "<a" not in figure.to_json().replace("\\u003c", "<")  # type: ignore[union-attr]
        assert "<i>" not in figure.to_json().replace("\\u003c", "<")  # type: ignore[union-attr]


def test_steps_that_go_backwards_and_huge_steps_are_drawn() -> None:
    run = run_of(0)
    run.add_rows("train", np.array([5, 3, 2**61, 4]), {"loss": np.array([1.0, 2.0, 3.0, 4.0])})
    figure = figures.FIGURES["loss"].draw(run, [])
    assert figure is not None
    assert list(figure.data[0].y) == [2.0, 4.0, 1.0, 3.0]


def test_a_thousand_channels_are_not_a_thousand_lines() -> None:
    run = run_of(50, **{f"grad_norm__m{n}": 1.0 for n in range(300)})
    run.train.mark(3, "grad_norm/m299", NONFINITE["nan"])
    figure = figures.FIGURES["norm"].draw(run, [])
    assert figure is not None
    assert len(figure.data) <= 20
    assert "m299: nan" in named(figure)


@pytest.mark.parametrize(
    ("rule", "subject", "name"),
    [
        ("loss-scale-imbalance", "component:mass", "share"),
        ("non-finite-loss", "component:mass", "loss"),
        ("aggressive-ramp", "component:mass", "contribution"),
        ("clock-desync", "clock:dqn", "clocks"),
        ("curriculum-weight-drift", "component:mass", "weights"),
        ("lr-decay", "config:optimizer.lr", "lr"),
        ("whatever", "run", "loss"),
    ],
)
def test_a_finding_is_proved_by_its_own_figure(rule: str, subject: str, name: str) -> None:
    columns = {"loss__mass": 1, "weight__mass": 1, "grad_share__mass": 1, "clock__dqn": 1, "lr__main": 1}
    run = run_of(**columns)
    assert figures.proof(run, finding(rule=rule, subject=subject)) == name
    assert figures.for_finding(run, finding(rule=rule, subject=subject)) is not None


def test_a_finding_is_shown_with_the_steps_before_it() -> None:
    first, last = figures.span_of(run_of(10_000, loss=1.0), finding(first_step=5000, last_step=9999))
    assert 4000 < first < 5000 < last < 10_000


def test_a_figure_carries_no_default_look() -> None:
    figure = figures.FIGURES["loss"].draw(run_of(loss=1.0), [])
    assert figure is not None
    assert len(figure.to_json()) < 12_000


STEPS = st.lists(st.integers(1, 10**6), min_size=2, max_size=60, unique=True).map(sorted)


@given(steps=STEPS, gains=st.lists(st.floats(0.01, 1e4), min_size=60, max_size=60))
def test_a_position_leads_back_to_its_step(steps: list[int], gains: list[float]) -> None:
    run = run_of(0)
    run.add_rows("train", np.array(steps), {"samples": np.cumsum(gains[: len(steps)])})
    axis = figures.axis(run, "samples")
    assert axis is not None
    first, last = axis.span(*axis.at([steps[0], steps[-1]]))
    assert abs(first - steps[0]) <= 1
    assert abs(last - steps[-1]) <= 1
    assert np.all(np.diff(axis.at(np.arange(0, 10**6, 999))) >= 0)


def test_whole_epochs_are_counted_through() -> None:
    run = run_of(0)
    run.add_rows("train", np.arange(1, 26), {"epoch": np.repeat([0.0, 1.0, 2.0], [10, 10, 5])})
    axis = figures.axis(run, "epoch")
    assert axis is not None
    assert axis.at([1, 6, 11, 21]).tolist() == pytest.approx([0, 0.5, 1, 2])
    assert axis.at([25])[0] == pytest.approx(2.4)


def test_a_figure_against_another_axis_keeps_every_mark_at_its_place() -> None:
    run = run_of(header={"curriculum": {"name": "c", "stages": [{"start": 0, "end": 5, "weights": {"a": 1}}]}})
    values = np.where(np.arange(10) == 4, np.nan, 2.0)
    run.add_rows("train", np.arange(1001, 1011), {"loss": values, "samples": 8.0 * np.arange(1, 11)})
    run.train.mark(run.train.size - 6, "loss", NONFINITE["nan"])
    figure = figures.FIGURES["loss"].draw(run, [finding(first_step=1004)], figures.Look(against="samples"))
    assert figure is not None
    assert figure.layout.xaxis.title.text == "samples"
    marked = {trace.meta: trace.x[0] for trace in figure.data if trace.meta}
    assert marked == {"edge": 40.0, "findings": 32.0}
    assert figure.data[0].customdata[0] == 1001  # hovering tells the step
    assert figures.known(run) == ["step", "samples"]


def test_a_smoothed_curve_says_so_and_keeps_the_raw_one_behind_it() -> None:
    run = run_of(0)
    noisy = 1 + 0.5 * np.random.default_rng(0).standard_normal(500)
    run.add_rows("train", np.arange(1, 501), {"loss": noisy})
    figure = figures.FIGURES["loss"].draw(run, [], figures.Look(smooth=50))
    assert figure is not None
    raw, smooth = figure.data
    assert (raw.opacity, raw.showlegend) == (0.3, False)
    assert smooth.name == "loss (weighted sum), smoothed over 50"
    assert np.std(smooth.y[50:]) < 0.2 * np.std(raw.y)
    assert smooth.y[0] == pytest.approx(noisy[0])


@pytest.mark.parametrize("log", [True, False])
def test_the_scale_that_is_asked_for_is_drawn(log: bool) -> None:
    run = run_of(0)
    run.add_rows("train", np.arange(1, 11), {"loss": np.linspace(3, 1, 10), "grad_norm": np.linspace(3, 1, 10)})
    for name in ("loss", "norm"):
        figure = figures.FIGURES[name].draw(run, [], figures.Look(log=log))
        assert figure is not None
        assert figure.layout.yaxis.type == ("log" if log else None)


LOG_X = figures.Look(log_x=True)


def test_a_log_axis_across_shows_the_first_steps_as_finely_as_the_last_ones() -> None:
    run = run_of(100_000, loss=np.random.default_rng(0).random(100_000) + 1)
    figure = figures.FIGURES["loss"].draw(run, [finding(first_step=0)], LOG_X)
    assert figure is not None
    across = figure.layout.xaxis
    assert (across.type, across.title.text, list(across.range)) == ("log", "step, log", [0.0, 5.0])
    drawn = np.asarray(figure.data[0].x)
    early, late = (np.count_nonzero((drawn >= low) & (drawn < 10 * low)) for low in (100, 10_000))
    assert early > 0.6 * late
    assert next(one.x[0] for one in figure.data if one.meta == "findings") == 1  # of a header: at the first step


def test_a_log_axis_parts_what_it_has_room_for() -> None:
    run = run_of(100_000, loss__mass=1.0)
    for step in (3, 20, 99_990, 99_999):
        run.train["loss/mass"][step - 1] = np.nan
        run.train.mark(step - 1, "loss/mass", NONFINITE["nan"])
    figure = figures.FIGURES["loss"].draw(run, [], LOG_X)
    assert figure is not None
    edge = next(one for one in figure.data if one.meta == "edge")
    assert [step for step in edge.x if step is not None] == [3, 3, 20, 20, 99_990, 99_999]


@pytest.mark.parametrize("name", ["cosine", "part", "share", "lr", "nonfinite", "evaluation"])
def test_every_figure_can_stand_on_a_log_axis(name: str) -> None:
    columns = dict.fromkeys(("loss__a", "loss__b", "weight__a", "weight__b", "grad_cosine__a~b", "lr__main"), 0.5)
    plan = {"lr/main": {"kind": "linear", "start": 1, "end": 0, "over_steps": 1000}}
    run = run_of(1000, {"schedules": plan}, **columns, grad_share__a=0.5, grad_share__b=0.5, loss=1.0)
    run.train.mark(499, "loss", NONFINITE["nan"])
    run.add_rows("eval", np.array([10, 1000]), {"loss": np.array([2.0, 1.0])})
    figure = figures.FIGURES[name].draw(run, [], LOG_X)
    assert figure is not None
    assert figure.layout.xaxis.type == "log"
    assert all(x is None or x > 0 for one in figure.data for x in one.x)


@pytest.mark.parametrize("first", [0, -5])
def test_a_log_axis_loses_no_step(first: int) -> None:
    run = run_of(100, loss=1.0)
    run.add_rows("eval", np.array([first, 50]), {"loss": np.array([2.0, 1.0])})
    figure = figures.FIGURES["loss"].draw(run, [], LOG_X)
    assert figure is not None
    assert figure.layout.xaxis.type is None
    assert figure.layout.xaxis.title.text == f"step<br>(linear: a log axis would lose {first})"
    zoomed = figures.FIGURES["loss"].draw(run, [], figures.Look((10, 50), log_x=True))
    assert zoomed is not None
    assert zoomed.layout.xaxis.type == "log"


def test_the_share_of_the_loss_is_of_what_is_differentiated() -> None:
    run = run_of(0)
    columns = {"loss/a": 2.0, "weight/a": 3.0, "loss/b": -4.0, "weight/b": 0.5}
    run.add_rows("train", np.arange(1, 4), {name: np.full(3, value) for name, value in columns.items()})
    run.add_rows(
        "train", np.array([4]), {name: np.array([value]) for name, value in columns.items() if name != "loss/a"}
    )
    run.train.mark(3, "loss/a", NONFINITE["nan"])  # a step of which nobody can say who made the loss
    figure = figures.FIGURES["part"].draw(run, [])
    assert figure is not None
    areas = {trace.name: list(trace.y) for trace in figure.data if not trace.meta}
    assert areas == {"a": [0.75] * 3, "b": [0.25] * 3}
    assert [trace.x[0] for trace in figure.data if trace.meta == "edge"] == [4]


def test_the_agreement_of_gradients_is_a_mean_of_what_was_measured() -> None:
    run = run_of(0)
    cosine = np.where(np.arange(1000) % 2, np.linspace(-1, 1, 1000), np.nan)
    run.add_rows("train", np.arange(1, 1001), {"grad_cosine/a~b": cosine})
    figure = figures.FIGURES["cosine"].draw(run, [])
    assert figure is not None
    cells = np.array(figure.data[0].z)[0]
    assert list(figure.data[0].y) == ["a and b"]
    assert (np.diff(cells) > 0).all()
    assert cells[0] == pytest.approx(-1, abs=0.02)


def test_skipped_steps_stand_at_the_edge_of_the_loss_scale() -> None:
    run = run_of(0)
    skipped = (np.arange(10) == 3).astype(float)
    run.add_rows("train", np.arange(1, 11), {"amp/scale": np.full(10, 65536.0), "amp/skipped": skipped})
    figure = figures.FIGURES["amp"].draw(run, [])
    assert figure is not None
    assert next(trace.x for trace in figure.data if trace.meta == "edge")[0] == 4


def test_batches_stand_beside_what_their_stage_asks_for() -> None:
    stages = [{"start": 0, "end": 5, "data": {"length": [7, 9]}}, {"start": 5, "data": {"length": [7, 12]}}]
    run = run_of(0, header={"curriculum": {"name": "c", "stages": stages}})
    lengths = {f"data/length/{part}": np.full(10, value) for part, value in (("min", 7.0), ("mean", 8.0), ("max", 9.0))}
    run.add_rows("train", np.arange(1, 11), {**lengths, "applied": np.arange(10.0)})
    figure = figures.FIGURES["data"].draw(run, [])
    assert figure is not None
    asked = next(trace for trace in figure.data if trace.name == "length, max asked")
    assert (asked.y[0], asked.y[-1]) == (9, 12)


def test_what_single_precision_cannot_hold_stays_finite() -> None:
    from trainwatch.figures.plot import _light

    assert _light(np.array([1.0, np.nan])).dtype == np.float32
    assert _light(np.array([1.0, 1e300]))[1] == 1e300


STOP = {
    "kind": "event",
    "event": "intervention",
    "step": 640,
    "action": "stop",
    "by": f"a watch {HOSTILE}",
    "why": "mass takes it all",
    "rule": "gradient-dominance",
    "subject": "component:mass",
}


@pytest.mark.parametrize("look", [figures.Look(), figures.Look(against="samples"), figures.Look(log_x=True)])
def test_an_intervention_is_a_mark_on_every_plot(look: figures.Look) -> None:
    run = run_of(loss=1.0, grad_norm=2.0, samples=np.arange(1, 1001) * 64.0)
    run.add_event(STOP)
    for name in ("loss", "norm"):
        figure = figures.FIGURES[name].draw(run, [], look)
        assert figure is not None
        mark = trace(figure, "interventions")
        where = 640 * 64 if look.against == "samples" else 640
        assert (list(mark.x), mark.marker.symbol) == ([where], ("octagon",))
        assert "at step 640" in mark.hovertext[0]
        assert "mass takes it all" in mark.hovertext[0].replace("<br>", " ")
        assert "<a href" not in mark.hovertext[0]
        assert [shape.x0 for shape in figure.layout.shapes] == [where]


def test_an_intervention_outside_the_span_is_not_drawn() -> None:
    run = run_of(loss=1.0)
    run.add_event(STOP)
    figure = figures.FIGURES["loss"].draw(run, [], figures.Look((100, 200)))
    assert figure is not None
    assert "interventions" not in named(figure)
    assert not figure.layout.shapes


def test_what_somebody_recorded_by_hand_is_an_intervention_too() -> None:
    run = run_of(loss=1.0)
    run.add_event({"kind": "event", "event": "intervention", "step": 5, "what": "halved the rate", "odd": None})
    figure = figures.FIGURES["loss"].draw(run, [])
    assert figure is not None
    assert trace(figure, "interventions").hovertext[0].endswith("what halved the rate")


def evaluated(splits: tuple[str, ...], **values: float) -> Run:
    """A run with ten evaluations of each split; a later one is better."""
    run = run_of(100, loss=1.0)
    for step in range(10, 101, 10):
        for split in splits:
            columns = {f"metric/{name}": np.array([value * step / 100]) for name, value in values.items()}
            row = run.add_rows("eval", np.array([step]), columns)
            run.eval.text.setdefault("split", {})[row] = split
    return run


BY_LENGTH = {
    "token_accuracy_length_11_14": 0.7,
    "token_accuracy_length_7_10": 0.9,
    "sequence_accuracy_length_7_10": 0.5,
}


def test_an_evaluation_by_length_has_a_figure_of_its_own() -> None:
    run = evaluated(("validation", "ema"), token_accuracy=0.8, **BY_LENGTH)
    figure = figures.FIGURES["lengths"].draw(run, [])
    assert figure is not None
    shown = [one.name for one in figure.data if one.visible is None]
    assert shown == [f"{ends}, {split}" for ends in ("7-10", "11-14") for split in ("validation", "ema")]
    short, same = trace(figure, shown[0]), trace(figure, shown[1])
    assert (short.line.color, short.line.dash != same.line.dash) == (same.line.color, True)
    assert trace(figure, shown[2]).line.color != short.line.color
    aside = [one for one in figure.data if one.name.startswith("sequence accuracy 7-10")]
    assert [(one.visible, one.legendgroup, one.showlegend) for one in aside] == [
        ("legendonly", "sequence_accuracy", True),
        ("legendonly", "sequence_accuracy", False),
    ]
    assert list(short.x) == list(range(10, 101, 10))
    metrics = figures.FIGURES["metrics"].draw(run, [])
    assert metrics is not None
    assert named(metrics) == ["token_accuracy (validation)", "token_accuracy (ema)"]


def test_a_run_that_is_not_evaluated_by_length_has_no_such_figure() -> None:
    run = evaluated(("validation",), token_accuracy=0.8, length_7=0.4, share_length_9_3=0.1)
    assert figures.FIGURES["lengths"].draw(run, []) is None
    metrics = figures.FIGURES["metrics"].draw(run, [])
    assert metrics is not None
    assert len(named(metrics)) == 3
