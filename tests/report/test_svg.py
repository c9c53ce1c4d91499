"""A static picture shows what the figure shows: each value at its place, nothing that is not finite left out."""

from __future__ import annotations

import re

import numpy as np
import plotly.graph_objects as go
import pytest

from trainwatch.figures import FIGURES, Look
from trainwatch.report.svg import ACROSS, MARKS, drawing


def points(d: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", d)]


def test_a_curve_is_where_its_values_are(make_run):
    run = make_run({"loss": np.linspace(4.0, 1.0, 101)})
    told = drawing(FIGURES["loss"].draw(run, ()))
    curve = points(told.paths[0].d)
    assert curve[0][0] == 0
    assert curve[-1][0] == ACROSS
    rows = {tick.text: tick.at for tick in told.yticks}
    assert curve[0][1] == pytest.approx(rows["4"], abs=0.1)
    assert curve[-1][1] == pytest.approx(rows["1"], abs=0.1)
    assert "loss (weighted sum)" in [key.name for key in told.keys]


def test_a_log_axis_has_powers_of_ten(make_run):
    run = make_run({"loss": np.full(50, 1e-2), "loss/a": np.full(50, 1e4)})
    told = drawing(FIGURES["loss"].draw(run, ()))
    assert {"0.01", "1", "100", "10,000"} & {tick.text for tick in told.yticks}
    assert "log" in told.unit


def test_what_is_not_finite_is_a_mark_at_its_step(make_run):
    loss = np.ones(200)
    loss[99] = np.inf
    run = make_run({"loss": loss, "loss/a": np.ones(200)})
    told = drawing(FIGURES["loss"].draw(run, ()))
    [mark] = [mark for mark in told.marks if "inf" in mark.title]
    assert mark.x == pytest.approx(100 * 99 / 199, abs=0.1)
    assert "step 100" in mark.title


def test_marks_without_end_become_strokes(make_run):
    loss = np.ones(4000)
    loss[::8] = np.inf
    told = drawing(FIGURES["loss"].draw(make_run({"loss": loss}), (), Look(points=None)))
    assert len(told.marks) <= MARKS
    assert any(path.d.count("v8") > 400 for path in told.paths)


def test_shares_lie_on_each_other(make_run):
    run = make_run({"loss": np.ones(50), "grad_share/a": np.full(50, 0.25), "grad_share/b": np.full(50, 0.75),
                    "loss/a": np.ones(50), "loss/b": np.ones(50)})  # fmt: skip
    told = drawing(FIGURES["share"].draw(run, ()))
    areas = [path for path in told.paths if path.fill != "none"]
    assert len(areas) == 2
    assert points(areas[0].d)[0][1] == pytest.approx(0.75 * told.height)
    assert points(areas[1].d)[0][1] == pytest.approx(0)


def test_a_heat_map_is_rectangles(make_run):
    run = make_run({"loss": np.ones(50), "grad_cosine/a~b": np.linspace(-1, 1, 50)})
    told = drawing(FIGURES["cosine"].draw(run, ()))
    assert [tick.text for tick in told.yticks] == ["a and b"]
    assert len({path.fill for path in told.paths}) > 5


def test_names_are_plain_text_until_the_template_escapes_them():
    figure = go.Figure({"data": [{"type": "scatter", "mode": "lines", "x": [1, 2], "y": [1, 2], "name": "&lt;b&gt;",
                                  "line": {"color": "#111111"}}], "layout": {}})  # fmt: skip
    assert drawing(figure).keys[0].name == "<b>"


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_are_a_picture_too(rows, make_run):
    run = make_run({"loss": np.ones(rows), "loss/a": np.zeros(rows), "lr/main": np.ones(rows)})
    for figure in FIGURES.values():
        drawn = figure.draw(run, ())
        assert drawn is None or drawing(drawn).height > 0


@pytest.mark.parametrize("top", [5e-4, 0.5, 50.0, 5e4, 5e8])
def test_ticks_are_told_apart(top, make_run):
    run = make_run({"loss": np.linspace(0, top, 50)})
    ticks = [tick.text for tick in drawing(FIGURES["loss"].draw(run, ())).yticks]
    assert len(set(ticks)) == len(ticks) > 2
    assert all(tick == "0" or float(tick.replace(",", "")) > 0 for tick in ticks)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_mark_is_beside_the_name_of_its_row(count):
    rows = list(range(count))
    figure = go.Figure(go.Scatter(x=rows, y=rows, mode="markers"))
    axis = {"tickvals": rows, "ticktext": [f"row {row}" for row in rows], "range": [count - 0.4, -0.6]}
    told = drawing(figure.update_layout(yaxis=axis))
    assert [mark.y for mark in told.marks] == pytest.approx([tick.at for tick in told.yticks], abs=0.1)
