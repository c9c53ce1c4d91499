"""The compare page without a browser: what it says, what it sends, and what it is not talked into."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dash")

import dash
from plotly.io.json import to_json_plotly

from dashboards.app import create_app
from dashboards.asked import Asked
from dashboards.live import Live
from dashboards.pages import compare as page
from dashboards.pages import sides
from dashboards.together import MOST, Bench, Chosen, Together
from tests.dashboards.conftest import broken, evaluation
from trainwatch.axis import ALIGNED

HOSTILE = "<script>alert(1)</script>"
KEYS = ("a.jsonl", "b.jsonl", "c.jsonl")
STEPS = 400


def search(*keys: str, more: str = "") -> str:
    return "?" + "&".join(f"run={key}" for key in keys) + more


def gathered(together: Together, *keys: str, baseline: str = "") -> tuple[Bench, dict[str, str]]:
    """The runs once all that are there have been read."""
    chosen = Chosen(keys, baseline)
    for _ in range(200):
        bench, left_out = together.gather(chosen)
        if not any("still being read" in why for why in left_out.values()):
            return bench, left_out
        time.sleep(0.05)
    raise AssertionError("the runs were not read")


def text_of(together: Together, *keys: str, more: str = "") -> str:
    gathered(together, *keys)
    return json.dumps(json.loads(to_json_plotly(page.layout(together, search(*keys, more=more)))))


@pytest.fixture
def folder(tmp_path: Path, write: Any, header: Any, row: Any, end: Any) -> Path:
    """Three runs: b differs from a by its seed, c by its learning rate, and its loss is higher from step 200 on."""
    for seed, (name, lr) in enumerate({"a": 5e-4, "b": 5e-4, "c": 1e-3}.items()):
        config = {"optimizer": {"lr": lr}, "seed": 0 if name == "c" else seed, "task": "peptide"}
        noise = np.random.default_rng(seed).normal(0, 0.02, STEPS + 1).tolist()
        rows = [
            row(step, STEPS, loss=(2.0 + noise[step]) * (1.8 if name == "c" and step >= 200 else 1.0))
            | {"lr/main": lr if step >= 150 else 5e-4, "epoch": step // 100}
            for step in range(1, STEPS + 1)
        ]
        rows = [{k: v for k, v in one.items() if not k.startswith(("loss/", "schedule/"))} for one in rows]
        write(tmp_path / f"{name}.jsonl", header(name, STEPS, config=config), *rows, evaluation(300, STEPS), end())
    return tmp_path


def test_the_verdict_says_where_they_part_first_and_what_is_suspect(folder: Path) -> None:
    bench, left_out = gathered(Together(Live(folder)), *KEYS)
    assert left_out == {}
    said = sides.sentence(bench)
    assert said.startswith("Of 2 runs only c parts from a, at step 150 in lr/main, and its loss from step ")
    assert said.endswith("; suspect: optimizer.lr (the only setting that differs).")
    assert bench.groups() == ((0, 1),)


def test_the_verdict_is_the_first_on_the_page(folder: Path) -> None:
    text = text_of(Together(Live(folder)), *KEYS)
    places = [
        text.index(word)
        for word in ("c parts from a", "Best validation", "not only what differs", "lr/main of the runs")
    ]
    assert places == sorted(places)


def test_another_baseline_keeps_names_and_colours(folder: Path) -> None:
    together = Together(Live(folder))
    bench, _ = gathered(together, *KEYS, baseline="c.jsonl")
    assert (bench.baseline, bench.order, bench.labels) == (2, (2, 0, 1), ("a", "b", "c"))
    assert sides.sentence(bench).startswith("2 of 2 runs part from c")
    assert {mark.run for mark in bench.marks("lr/main")} == {0, 1}


def test_two_seeds_do_not_part(folder: Path) -> None:
    bench, _ = gathered(Together(Live(folder)), "a.jsonl", "b.jsonl")
    assert bench.first() is None
    assert "no parting of the loss beyond noise" in sides.sentence(bench)


def test_settings_are_those_that_differ_or_all(folder: Path) -> None:
    together = Together(Live(folder))
    bench, _ = gathered(together, *KEYS)
    differing = to_json_plotly(sides.settings(bench, Chosen(KEYS)))
    everything = to_json_plotly(sides.settings(bench, Chosen(KEYS, settings=True)))
    assert "optimizer.lr" in differing
    assert "peptide" not in differing
    assert "peptide" in everything


def test_who_is_not_there_is_said_and_the_others_are_compared(folder: Path) -> None:
    (folder / "odd.jsonl").write_bytes(b"\x89PNG")
    keys = ("a.jsonl", "../../etc/passwd", "c.jsonl", "odd.jsonl")
    bench, left_out = gathered(Together(Live(folder)), *keys)
    assert bench.labels == ("a", "c")
    assert "Nothing that is called so" in left_out["../../etc/passwd"]
    assert "PNG picture" in left_out["odd.jsonl"]
    text = text_of(Together(Live(folder)), *keys)
    assert "../../etc/passwd" in text
    assert "2 runs compared" in text


@pytest.mark.parametrize("keys", [(), ("a.jsonl",), ("x", "y")])
def test_too_few_runs_are_a_page_that_says_so(folder: Path, keys: tuple[str, ...]) -> None:
    assert "at least two runs" in text_of(Together(Live(folder)), *keys)


def test_mixed_formats_are_compared(folder: Path) -> None:
    lines = [f"step,loss,lr\n{chr(10).join(f'{step},{2 + step % 7 / 100},0.001' for step in range(1, 300))}\n"]
    (folder / "other.csv").write_text("".join(lines))
    bench, left_out = gathered(Together(Live(folder)), "a.jsonl", "other.csv")
    assert left_out == {}
    assert bench.usual()["Losses"] == ["loss"]
    assert len(bench.views) == 2


def state_of(together: Together, query: str) -> tuple[dict[str, Any], list[str]]:
    seen = next(one.data for one in page.layout(together, query) if getattr(one, "id", "") == "compare-seen")
    kept = json.loads(json.dumps(seen))  # as it comes back from the browser
    return kept, kept["names"]


def sent(answer: Any, names: list[str]) -> dict[str, Any]:
    return {name: one for name, one in zip(names, answer[-1], strict=True) if one is not dash.no_update}


def numbers(values: Any) -> list[float]:
    """An array as plotly sends it."""
    if not isinstance(values, dict):
        return list(values)
    return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()


def test_only_what_changed_is_sent(tmp_path: Path, write: Any, header: Any, row: Any) -> None:
    keys = ("a.jsonl", "b.jsonl")
    for key in keys:
        write(tmp_path / key, header(key, STEPS), *(row(step, STEPS) for step in range(1, 60)))
    together = Together(Live(tmp_path))
    gathered(together, *keys)
    seen, names = state_of(together, search(*keys))
    pulse = {"options": Chosen(keys).kept, "shown": names[:2]}
    seen = page.update(together, pulse, list(keys), seen, names)[-2]
    with pytest.raises(dash.exceptions.PreventUpdate):
        page.update(together, pulse, list(keys), seen, names)
    write(tmp_path / "b.jsonl", row(60, STEPS))
    answer = page.update(together, pulse, list(keys), seen, names)
    assert set(sent(answer, names)) == set(names[:2])
    for one in sent(answer, names).values():  # of the two curves the one that has grown, and the layout
        changed = {tuple(part["location"]): part["params"]["value"] for part in one.to_plotly_json()["operations"]}
        assert set(changed) <= {("data", 1), ("data", 2), ("layout",)}
        assert numbers(changed["data", 1]["x"])[-1] == 60
    assert answer[10] is dash.no_update  # the plots as a whole


def test_a_new_channel_is_a_new_plot(tmp_path: Path, write: Any, header: Any, row: Any) -> None:
    keys = ("a.jsonl", "b.jsonl")
    for key in keys:
        write(tmp_path / key, header(key, STEPS), *(row(step, STEPS) for step in range(1, 60)))
    together = Together(Live(tmp_path))
    gathered(together, *keys)
    seen, names = state_of(together, search(*keys))
    for key in keys:
        write(tmp_path / key, evaluation(60, STEPS))
    for _ in range(100):
        answer = page.update(together, {"options": Chosen(keys).kept}, list(keys), {**seen, "face": ""}, names)
        if answer[10] is not dash.no_update:
            break
        time.sleep(0.05)
    assert "valid loss" in to_json_plotly(answer[10])


def test_options_change_the_figures(folder: Path) -> None:
    together = Together(Live(folder))
    bench, _ = gathered(together, *KEYS)

    def figure(**more: Any) -> Any:
        drawn = together.draw(bench, "loss", Chosen(KEYS, **more), Asked(against="epoch"))
        assert drawn is not None
        return json.loads(drawn.json)

    assert figure()["layout"]["xaxis"]["title"]["text"] == "epoch"
    assert figure(difference=True)["layout"]["yaxis"]["title"]["text"] == "less a"
    assert "mean of 2, as a" in [trace["name"] for trace in figure(seeds=True)["data"]]


def test_a_range_of_another_axis_is_led_there_by_the_baseline(folder: Path) -> None:
    together = Together(Live(folder))
    bench, _ = gathered(together, *KEYS)
    drawn = together.draw(bench, "loss", Chosen(KEYS), Asked(unit="samples", ends=(6400, 12800)))
    assert drawn is not None
    assert json.loads(drawn.json)["layout"]["xaxis"]["range"] == [100, 200]


def test_a_nan_of_any_run_is_on_the_page(tmp_path: Path, write: Any, header: Any, row: Any) -> None:
    for key in ("a.jsonl", "b.jsonl"):
        rows = [row(step, STEPS) for step in range(1, 60)]
        rows[40] = broken(rows[40], loss="nan") if key == "b.jsonl" else rows[40]
        write(tmp_path / key, header(key[0], STEPS), *rows)
    together = Together(Live(tmp_path))
    bench, _ = gathered(together, "a.jsonl", "b.jsonl")
    drawn = together.draw(bench, "loss", Chosen(("a.jsonl", "b.jsonl")), Asked())
    assert drawn is not None
    mark = next(one for one in json.loads(drawn.json)["data"] if one["name"] == "b: nan")
    assert numbers(mark["x"])[0] == 41


def test_what_an_address_says_is_kept() -> None:
    more = "&baseline=b&difference=1&seeds=1&settings=1&channel=x&channel=y"
    chosen = Chosen.at(search("a", "b", "a", more=more))
    assert chosen == Chosen(("a", "b"), "b", True, True, True, ("x", "y"))
    assert Chosen.of(["a", "b"], chosen.kept) == chosen
    assert Asked.at("?x=stage&stage=0.5-2", ALIGNED) == Asked(against="stage", unit="stage", ends=(0.5, 2.0))
    assert Asked.at("?x=stage") == Asked()  # the run's page has no such axis


@pytest.mark.parametrize("odd", [None, 3, "x", {"more": 3, "baseline": [], "seeds": "no"}, {"more": [None, {}]}, [[]]])
def test_what_a_page_sends_is_not_trusted(odd: Any) -> None:
    assert Chosen.of(odd, odd) == Chosen()
    assert len(Chosen.of([str(at) for at in range(99)], odd).keys) == MOST


def test_a_hostile_name_stays_text(tmp_path: Path, write: Any, header: Any, row: Any) -> None:
    for key in ("a.jsonl", "b.jsonl"):
        told = header(HOSTILE, components={HOSTILE: {"unit": HOSTILE}}, config={HOSTILE: key})
        write(tmp_path / key, told, *(row(step, **{f"loss/{HOSTILE}": 1.0}) for step in range(1, 30)))
    together = Together(Live(tmp_path))
    bench, _ = gathered(together, "a.jsonl", "b.jsonl")
    assert f"loss/{HOSTILE}" in bench.usual()["Losses"]
    drawn = together.draw(bench, f"loss/{HOSTILE}", Chosen(("a.jsonl", "b.jsonl")), Asked())
    assert drawn is not None
    assert "<script" not in json.dumps(json.loads(drawn.json))
    text = to_json_plotly(page.layout(together, search("a.jsonl", "b.jsonl")))
    assert "dangerously_allow_html" not in text
    assert '"type":"Markdown"' not in text


def test_the_address_shows_the_page(folder: Path, caller: Any) -> None:
    assert caller(create_app(folder), "/compare?run=a.jsonl&run=b.jsonl").startswith(b"<!DOCTYPE html>")


def test_settings_that_say_nothing_of_the_parting_are_counted(
    tmp_path: Path, write: Any, header: Any, row: Any
) -> None:
    for key, config in (("a.jsonl", {"x": 1, "y": 1}), ("b.jsonl", {"x": 2, "y": 2})):
        rows = [row(step, STEPS, loss=1.0 + (key == "b.jsonl" and step > 150)) for step in range(1, 300)]
        write(tmp_path / key, header(key[0], STEPS, config=config), *rows)
    bench, _ = gathered(Together(Live(tmp_path)), "a.jsonl", "b.jsonl")
    assert sides.sentence(bench).endswith("none of the 2 settings that differ speaks of it.")
