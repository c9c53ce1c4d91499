"""What a figure of several runs may never lose, and how runs are aligned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainwatch.axis import aligned, axes
from trainwatch.figures import overlay as over
from trainwatch.figures import style
from trainwatch.figures.overlay import Mark, Overlay, channels, overlay
from trainwatch.run import Run
from trainwatch.schema import NONFINITE

PLAIN = Overlay()
HOSTILE = "<b>x</b><img src=x onerror=alert(1)>%{y}"


def run_of(rows: int = 100, first: int = 1, every: int = 1, **columns: Any) -> Run:
    """A run with these channels (``__`` for ``/``), a row every so many steps."""
    run = Run(Path("x.jsonl"))
    run.add_header({"kind": "run", "run": "x"})
    steps = first + every * np.arange(rows)
    named = {name.replace("__", "/"): np.broadcast_to(np.asarray(v, float), rows) for name, v in columns.items()}
    run.add_rows("train", steps, named)
    return run


def breaks(run: Run, name: str, row: int, kind: str = "nan") -> Run:
    run.train[name][row] = np.nan
    run.train.mark(row, name, NONFINITE[kind])
    return run


def drawn(channel: str, runs: list[Run], how: Overlay = PLAIN, marks: Any = ()) -> dict[str, Any]:
    figure = overlay(channel, runs, [f"run {index}" for index in range(len(runs))], how, marks)
    assert figure is not None
    return {one.name: one for one in figure.data}


def test_each_run_has_a_line_of_its_own() -> None:
    looks = {(line["color"], line["dash"]) for line in map(style.line, range(20))}
    assert len(looks) == 20


@pytest.mark.parametrize(("first", "kind"), [(1, "log"), (0, None)])
def test_a_log_axis_across_is_for_all_runs_or_none(first: int, kind: str | None) -> None:
    runs = [run_of(loss=1.0), run_of(first=first, loss=2.0)]
    figure = overlay("loss", runs, ["a", "b"], Overlay(log_x=True))
    assert figure is not None
    assert figure.layout.xaxis.type == kind
    assert ("would lose 0" in figure.layout.xaxis.title.text) == (kind is None)


def test_runs_without_the_channel_are_not_drawn_and_none_is_no_figure() -> None:
    traces = drawn("loss", [run_of(loss=1.0), run_of(other=1.0), run_of(loss=2.0)])
    assert set(traces) == {"run 0", "run 2"}
    assert traces["run 2"].line.color == style.line(2)["color"]
    assert overlay("nothing", [run_of(loss=1.0)], ["a"], Overlay()) is None


@pytest.mark.parametrize("how", [Overlay(), Overlay(difference=True), Overlay(groups=((0, 1),)), Overlay(baseline=1)])
@pytest.mark.parametrize("who", [0, 1, 2])
def test_what_is_not_finite_stands_at_its_exact_step_however_runs_are_drawn(how: Overlay, who: int) -> None:
    runs = [run_of(50_000, loss=np.linspace(1, 2, 50_000)) for _ in range(3)]
    breaks(runs[who], "loss", 31_337, "inf")
    mark = drawn("loss", runs, how)[f"run {who}: inf"]
    assert mark.x[0] == 31_338
    assert mark.marker.color == style.line(who)["color"]


@given(at=st.integers(0, 19_999), runs=st.integers(2, 20))
def test_extremes_are_kept(at: int, runs: int) -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    values[at] = 99.0
    trace = drawn("loss", [run_of(20_000, loss=values)] + [run_of(50, loss=1.0)] * (runs - 1))["run 0"]
    assert 99.0 in trace.y
    assert trace.x[list(trace.y).index(99.0)] == at + 1
    assert len(trace.x) <= 500


def test_a_difference_is_taken_on_a_line_between_the_baselines_rows_and_nowhere_else() -> None:
    base = run_of(10, first=10, every=10, loss=np.arange(10.0))  # steps 10 .. 100
    other = run_of(120, loss=5.0)
    breaks(base, "loss", 4)  # step 50
    line = drawn("loss", [base, other], Overlay(difference=True))["run 1"]
    got = dict(zip(line.x.tolist(), line.y.tolist(), strict=True))
    assert got[15] == pytest.approx(4.5)
    assert got[100] == pytest.approx(-4.0)
    assert not {9, 101, 45, 50, 55} & set(got)  # beyond its ends, and beside its NaN
    assert {40, 60} <= set(got)


def test_a_difference_needs_a_baseline_with_the_channel() -> None:
    assert overlay("loss", [run_of(other=1.0), run_of(loss=1.0)], ["a", "b"], Overlay(difference=True)) is None


def test_seeds_are_a_mean_within_their_least_and_most() -> None:
    runs = [run_of(loss=value) for value in (1.0, 2.0, 6.0)] + [run_of(loss=4.0)]
    figure = overlay("loss", runs, ["a", "b", "c", "d"], Overlay(groups=((0, 1, 2),)))
    assert figure is not None
    low, high, mean, other = figure.data
    assert (low.y[0], mean.y[0], high.y[0], other.y[0]) == (1.0, 3.0, 6.0, 4.0)
    assert (high.fill, mean.name, other.name) == ("tonexty", "mean of 3, as a", "d")


def test_a_mean_is_drawn_only_where_all_of_its_runs_are() -> None:
    trace = drawn("loss", [run_of(100, loss=1.0), run_of(60, loss=2.0)], Overlay(groups=((0, 1),)))[
        "mean of 2, as run 0"
    ]
    assert trace.x[-1] == 60


def test_a_band_is_a_difference_as_well() -> None:
    runs = [run_of(loss=value) for value in (1.0, 3.0, 7.0)]
    figure = overlay("loss", runs, ["a", "b", "c"], Overlay(groups=((0, 1),), difference=True))
    assert figure is not None
    low, high, mean, other = figure.data
    assert (low.y[0], mean.y[0], high.y[0], other.y[0]) == (-1.0, 0.0, 1.0, 5.0)
    assert figure.layout.yaxis.title.text == "less mean of 2, as a"


def test_clocks_of_runs_of_different_length_have_one_unit() -> None:
    short, long = run_of(11, time=100.0 + np.arange(11)), run_of(11, time=5e9 + 3600.0 * np.arange(11))
    one, two = axes([short, long], "time")
    assert one is not None
    assert two is not None
    assert one.title == two.title == "hours since the first row"
    assert (one.at(11), two.at(11)) == (pytest.approx(10 / 3600), pytest.approx(10.0))


def test_stages_are_units_and_one_under_way_is_as_far_as_the_longest_was() -> None:
    done = run_of(60, stage=np.repeat([0, 1, 2], [10, 20, 30]))
    slow = run_of(45, stage=np.repeat([0, 1], [30, 15]))
    one, two = axes([done, slow], "stage")
    assert one is not None
    assert two is not None
    assert one.at([1, 11, 31, 61]).tolist() == [0, 1, 2, 3]
    assert two.at([1, 31, 46]).tolist() == pytest.approx([0, 1, 1.75])
    assert axes([run_of(10, loss=1.0)], "stage") == [None]


def test_runs_are_aligned_by_what_two_of_them_tell() -> None:
    many = {"epoch": np.arange(100) // 10, "samples": np.arange(100) * 8}
    assert aligned([run_of(**many), run_of(loss=1.0)]) == ("step",)
    assert aligned([run_of(**many), run_of(epoch=many["epoch"]), run_of(loss=1.0)]) == ("step", "epoch")


def test_a_run_without_the_axis_is_left_out() -> None:
    runs = [run_of(loss=1.0, samples=8.0 * np.arange(100)), run_of(loss=1.0)]
    assert set(drawn("loss", runs, Overlay("samples"))) == {"run 0"}


def test_a_range_is_the_common_axis_and_is_drawn_in_detail() -> None:
    runs = [run_of(100_000, loss=np.random.default_rng(seed).normal(size=100_000)) for seed in range(2)]
    figure = overlay("loss", runs, ["a", "b"], Overlay(ends=(500.0, 700.0)))
    assert figure is not None
    assert figure.layout.xaxis.range == (500.0, 700.0)
    assert all(len(one.x) > 150 for one in figure.data)


def test_partings_are_marked_and_the_first_says_so() -> None:
    marks = [Mark(1, 40, "run 1 parts at step 40", first=True), Mark(2, 60, "run 2 parts"), Mark(3, 70, "absent")]
    runs = [run_of(loss=1.0), run_of(loss=2.0), run_of(loss=3.0), run_of(other=1.0)]
    figure = overlay("loss", runs, ["a", "b", "c", "d"], Overlay(), marks)
    assert figure is not None
    stars = figure.data[-1]
    assert (stars.meta, list(stars.x)) == ("partings", [40.0, 60.0])
    assert [shape.label.text for shape in figure.layout.shapes] == ["first to part", None]
    without = overlay("loss", runs, ["a", "b", "c", "d"], Overlay(baseline=3), marks)
    assert without is not None
    assert not without.layout.shapes


def test_evaluations_are_channels_by_their_split() -> None:
    run = run_of(loss=1.0)
    run.add_rows("eval", np.array([50, 50, 100]), {"loss": np.array([3.0, 4.0, 2.0])})
    run.eval.text["split"] = {0: "valid", 1: "valid set 2", 2: "valid"}
    assert channels(run) == ["loss", "valid loss", "valid set 2 loss"]
    assert drawn("valid loss", [run])["run 0"].y.tolist() == [3.0, 2.0]
    assert drawn("valid set 2 loss", [run])["run 0"].y.tolist() == [4.0]


def test_names_are_text() -> None:
    runs = [breaks(run_of(**{HOSTILE: np.arange(1.0, 101.0)}), HOSTILE, 5) for _ in range(2)]
    figure = overlay(HOSTILE, runs, [HOSTILE, HOSTILE], Overlay(difference=True), [Mark(1, 5, HOSTILE, first=True)])
    assert isinstance(figure, go.Figure)
    assert "<b>x" not in figure.to_json().replace("\\u003c", "<")
    assert "<img" not in figure.to_json().replace("\\u003c", "<")


def test_many_runs_are_told_by_their_marks_and_not_by_a_legend_over_the_curves() -> None:
    few = overlay("loss", [run_of(loss=1.0)] * 3, ["a"] * 3, Overlay())
    many = overlay("loss", [run_of(loss=1.0)] * (over.LEGEND + 1), ["a"] * 20, Overlay())
    assert few is not None
    assert many is not None
    assert (few.layout.showlegend, many.layout.showlegend) == (True, False)
