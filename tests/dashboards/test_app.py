"""The pages without a browser: what they hold, what they refuse, and that a name stays a name."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dash")

import dash
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from plotly.io.json import to_json_plotly

from dashboards.app import ServeError, create_app, start
from dashboards.asked import SCALES, SMOOTH, WHOLE, X_SCALES, Asked
from dashboards.listing import Listing
from dashboards.live import Live
from dashboards.pages import run as run_page
from dashboards.pages import runs as runs_page
from dashboards.pages.finding import as_yaml, card, nested, plain
from dashboards.words import number
from tests.dashboards.conftest import broken
from trainwatch.axis import AGAINST
from trainwatch.foreign import channels, mapping
from trainwatch.schema import Finding
from trainwatch.text.wording import duration

HOSTILE = "<script>alert(1)</script>"


def page_of(live: Live, key: str, asked: Asked = WHOLE) -> str:
    for _ in range(100):
        view = live.view(key)
        if view is None or view.diagnosis or view.error:
            break
        time.sleep(0.05)
    return str(to_json_plotly(run_page.layout(live, key, asked)))


def test_a_run_page_tells_the_root_cause_first(finished: Path) -> None:
    text = page_of(Live(finished), "peptide.jsonl")
    view = Live(finished).view("peptide.jsonl", 20.0)
    assert view is not None
    assert view.diagnosis is not None
    assert view.diagnosis.root_cause is not None
    assert text.index(view.diagnosis.root_cause.rule) < text.index("Loss by component")
    assert "Show in the plots" in text


def test_a_page_is_updated_only_by_what_changed(tmp_path: Path, write: Any, row: Any, header: Any) -> None:
    path = write(tmp_path / "a.jsonl", header(), *(row(step) for step in range(1, 30)))
    live = Live(tmp_path)
    page_of(live, "a.jsonl")
    seen: dict[str, Any] = {}
    *_, seen, graphs, panels = run_page.update(live, {}, "a.jsonl", seen)
    assert sum(graph is not dash.no_update for graph in graphs) >= 6
    with pytest.raises(dash.exceptions.PreventUpdate):
        run_page.update(live, {}, "a.jsonl", seen)
    write(path, row(30))
    *_, after, graphs, panels = run_page.update(live, {"shown": ["loss"]}, "a.jsonl", seen)
    sent = dict(zip(run_page.NAMES, graphs, strict=True))
    assert [name for name, graph in sent.items() if graph is not dash.no_update] == ["loss"]
    assert len(json.dumps(sent["loss"])) < 60_000
    assert after != seen
    assert len(panels) == len(graphs)


def test_a_plot_below_the_first_ones_is_sent_when_it_comes_on_screen(finished: Path) -> None:
    live = Live(finished)
    page_of(live, "peptide.jsonl")
    stores = [one["props"] for one in _components(run_page.layout(live, "peptide.jsonl")) if one["type"] == "Store"]
    seen = next(one["data"] for one in stores if one["id"] == "seen")
    later = [name for name in run_page.NAMES if seen[name] == run_page.LATER]
    assert "loss" not in later
    assert len(later) > 3
    *_, seen, graphs, _ = run_page.update(live, {}, "peptide.jsonl", seen)
    assert all(sent is dash.no_update for sent in graphs)
    *_, after, graphs, _ = run_page.update(live, {"shown": [later[0]]}, "peptide.jsonl", seen)
    assert [name for name, sent in zip(run_page.NAMES, graphs, strict=True) if sent is not dash.no_update] == later[:1]
    assert after[later[0]] not in ("", run_page.LATER)


def test_a_zoom_sends_the_steps_it_asked_for(finished: Path) -> None:
    live = Live(finished)
    page_of(live, "peptide.jsonl")
    *_, graphs, _ = run_page.update(live, {"span": {"unit": "step", "ends": [100, 140]}}, "peptide.jsonl", {})
    sent = [graph for graph in graphs[1:] if graph is not dash.no_update]  # the first is the root cause's own
    assert len(sent) >= 6
    assert all(graph["layout"]["xaxis"]["range"] == [100, 140] for graph in sent)


@pytest.mark.parametrize(
    ("search", "asked"),
    [
        ("?path=a&step=331-505", Asked(ends=(331, 505))),
        ("?x=epoch&epoch=0.5-2.25", Asked(against="epoch", unit="epoch", ends=(0.5, 2.25))),
        ("?x=time&y=log&smooth=50", Asked(against="time", scale="log", smooth=50)),
        ("?x=samples&xscale=log", Asked(against="samples", x_scale="log")),
        *((f"?step={bad}", WHOLE) for bad in ("5-5", "9-1", "x", "", "1-2-3", "1e9-2")),
        ("?x=price&xscale=cube&y=cube&smooth=-3", WHOLE),
        ("", WHOLE),
    ],
)
def test_an_address_says_what_is_looked_at(search: str, asked: Asked) -> None:
    assert Asked.at(search) == asked


@given(
    against=st.sampled_from(AGAINST),
    scale=st.sampled_from(sorted(SCALES)),
    x_scale=st.sampled_from(sorted(X_SCALES)),
    smooth=st.sampled_from([int(one) for one in SMOOTH]),
    unit=st.sampled_from(AGAINST),
    ends=st.none() | st.tuples(st.integers(0, 500), st.integers(501, 10**9)),
)
def test_what_a_page_keeps_is_what_was_asked(
    against: str, scale: str, x_scale: str, smooth: int, unit: str, ends: tuple[int, int] | None
) -> None:
    asked = Asked(against, scale, smooth, unit if ends else "step", ends, x_scale)
    assert Asked.of(*asked.kept) == asked


ODD = [None, "1-2", [1], {"ends": [2, 1]}, {"ends": ["a", "b"]}, {"unit": [], "ends": [float("nan"), 3]}, {"ends": {}}]


@pytest.mark.parametrize("value", ODD)
def test_what_a_page_sends_is_not_trusted(value: Any) -> None:
    assert Asked.of(value, value) == WHOLE


def test_a_range_of_another_axis_is_answered_with_its_steps(finished: Path) -> None:
    live = Live(finished)
    page_of(live, "peptide.jsonl")
    file = live.file("peptide.jsonl")
    assert file is not None
    assert file.look(Asked(unit="samples", ends=(6400, 12800))).span == (100, 200)
    look = file.look(Asked(against="samples", ends=(100, 200)))
    drawn = file.draw("loss", look)
    assert drawn is not None
    figure = json.loads(drawn.json)["layout"]
    assert (figure["xaxis"]["title"]["text"], figure["xaxis"]["range"]) == ("samples", [6400, 12800])


def test_numbers_of_a_plot_are_taken_away_whole(tmp_path: Path, write: Any, row: Any, header: Any) -> None:
    rows = [row(step) for step in range(1, 2001)]
    rows[999] = broken(rows[999], loss__sequence="nan")
    write(tmp_path / "a.jsonl", header(), *rows)
    with create_app(tmp_path).server.test_client() as client:
        client.get("/take/csv?path=a.jsonl&figure=loss")  # the first one reads
        answer = client.get("/take/csv?path=a.jsonl&figure=loss")
        taken = pd.read_csv(io.StringIO(answer.text), index_col="step", keep_default_na=False)
        assert "attachment" in answer.headers["Content-Disposition"]
        assert taken["sequence [nat]"].loc[1000] == "nan"
        assert len(taken) == 2000
        assert float(taken["sequence [nat]"].loc[7]) == pytest.approx(rows[6]["loss/sequence"], rel=1e-6)
        for bad in ("path=a.jsonl&figure=x", "path=../a.jsonl&figure=loss", "", "path=a.jsonl&figure=ranks"):
            assert client.get(f"/take/csv?{bad}").status_code == 404


@pytest.mark.parametrize(("kind", "begins"), [("html", "<!doctype html>"), ("md", "# ")])
def test_the_post_mortem_is_taken_away(finished: Path, kind: str, begins: str) -> None:
    with create_app(finished).server.test_client() as client:
        answer = client.get(f"/take/post-mortem.{kind}?path=peptide.jsonl")
        assert answer.status_code == 200
        assert answer.text.lower().startswith(begins)
        assert client.get("/take/post-mortem.exe?path=peptide.jsonl").status_code == 404


def test_a_page_tells_what_happened_and_how_it_ended(tmp_path: Path, write: Any, row: Any, header: Any) -> None:
    saved = {"kind": "checkpoint", "time": 0.0, "step": 20, "path": "ckpt/20.pt", "metric": 0.5, "best": True}
    sample = {"kind": "sample", "time": 0.0, "step": 25, "outputs": ["GGGG", HOSTILE]}
    failed = {"type": "ValueError", "message": "boom", "traceback": "Traceback ...\nValueError: boom"}
    last = {"kind": "end", "time": 0.0, "status": "failed", "exception": failed}
    write(tmp_path / "a.jsonl", header(), *(row(step) for step in range(1, 30)), saved, sample, last)
    live = Live(tmp_path)
    text = page_of(live, "a.jsonl")
    for told in ("20.pt", "GGGG", "What the model said at step 25", "ValueError: boom", "End of the log"):
        assert told in text


def test_an_unknown_run_is_a_page_not_an_error(finished: Path) -> None:
    assert "There is no such run" in page_of(Live(finished), "../../etc/passwd")


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    text = to_json_plotly(runs_page.layout(Listing(Live(tmp_path))))
    assert "trainwatch.Recorder" in text


def test_a_log_of_another_trainer_is_a_run_like_any(tmp_path: Path) -> None:
    rows = [f"{step},{3 / step:.4f},{2 + 1 / step:.4f}" for step in range(1, 60)]
    (tmp_path / "progress.csv").write_text("step,loss,dev_thing\n" + "\n".join(rows) + "\n")
    with channels.told(mapping.places(["val=dev_thing"])):
        live = Live(tmp_path)
        text = page_of(live, "progress.csv")
    assert "loss (validation)" in text
    assert "progress" in to_json_plotly(runs_page.layout(Listing(live)))


def test_an_unreadable_file_is_a_row_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "odd.jsonl").write_bytes(b"\x89PNG")
    live = Live(tmp_path)
    live.view("odd.jsonl", 20.0)
    text = to_json_plotly(runs_page.layout(Listing(live)))
    assert "this is a PNG picture" in text


def test_a_hostile_name_stays_text(tmp_path: Path, write: Any, row: Any, header: Any) -> None:
    told = header(HOSTILE, components={HOSTILE: {"unit": HOSTILE}}, config={HOSTILE: HOSTILE})
    write(tmp_path / "a.jsonl", told, *(row(step, **{f"loss/{HOSTILE}": 1.0}) for step in range(1, 30)))
    live = Live(tmp_path)
    page_of(live, "a.jsonl")
    for part in _components(run_page.layout(live, "a.jsonl")):
        assert part.get("type") not in ("Markdown", "Script", "Iframe", "Object", "Embed")
        assert "dangerously_allow_html" not in part.get("props", {})
    _, graphs = run_page.update(live, {}, "a.jsonl", {})[-3:-1]
    assert "<script" not in json.dumps([graph for graph in graphs if graph is not dash.no_update])


def _components(page: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    waiting = [json.loads(to_json_plotly(page))]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            found += [item] if "namespace" in item else []
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return found


def finding(**more: Any) -> Finding:
    return Finding("loss-scale-imbalance", "warning", "component:a", 5, 9, "over", "it is too large", **more)


def test_a_finding_shows_its_patch_as_yaml() -> None:
    text = to_json_plotly(card(finding(patch={"loss.weights.a": 0.1, "optimizer.lr": 5e-5}), 0, ((1, 2), "loss")))
    assert "loss:\\n  weights:\\n    a: 0.1\\noptimizer:\\n  lr: 5.0e-05" in text


def test_a_rule_brings_its_own_page(finished: Path) -> None:
    assert "About this rule" in to_json_plotly(card(finding(), 0, ((1, 2), None)))
    asked = create_app(finished).server.test_client()
    told = asked.get("/rule/loss-scale-imbalance", headers={"Host": "127.0.0.1"}).get_json()
    assert "When it is wrong" in [part["head"] for part in told]
    assert all(isinstance(piece, str) for part in told for texts in part["paragraphs"] for piece in texts)
    assert asked.get("/rule/no-rule", headers={"Host": "127.0.0.1"}).status_code == 404


def test_what_stays_on_every_page_is_small(finished: Path) -> None:
    # whenever anything changes, Dash looks at each of its components again
    assert len(list(create_app(finished).layout._traverse())) < 100


def test_paths_that_contradict_each_other_stay_flat() -> None:
    assert nested({"a": 1, "a.b": 2}) == {"a": 1, "a.b": 2}
    assert as_yaml(object()).startswith("<object")


def test_backticks_are_code_and_nothing_else_is() -> None:
    assert [type(part).__name__ for part in plain("set `lr` <b>")] == ["str", "Code", "str"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.0, "3"),
        (1234.5, "1,234.50"),
        (0.000123461, "0.0001235"),
        (float("nan"), "NaN"),
        ("-inf", "-∞"),
        (True, "True"),
    ],
)
def test_numbers_read_well(value: Any, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (190, "3 min"), (7500, "2 h 5 min"), (400_000, "4 d")])
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="no such file or folder"):
        start(tmp_path / "nowhere", 0)


def test_a_taken_port_gives_way_to_the_next(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server, address = start(tmp_path, port)
        server.shutdown()
        server.server_close()
    assert not address.endswith(f":{port}")


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path, caller: Callable[[Any, str], bytes]) -> None:
    page = caller(create_app(tmp_path), "/").decode()
    assert "//cdn" not in page
    assert "https://" not in page
