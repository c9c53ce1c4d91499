"""What can be taken away from the dashboard: a plot's numbers as CSV, and a run's post-mortem. No Dash in here."""

from __future__ import annotations

import io
import math
import re
from typing import Any
from urllib.parse import quote

import flask
import numpy as np
import pandas as pd

from dashboards.live import Live, Watched
from trainwatch.figures import FIGURES, Look
from trainwatch.report import Subject, rendered

KINDS = {"html": "text/html", "md": "text/markdown"}


def register(server: flask.Flask, live: Live) -> None:
    """The addresses below ``/take``."""

    @server.get("/take/csv")
    def csv() -> flask.Response:
        file, name = _file(live), flask.request.args.get("figure", "")
        with file.lock:
            figure = file.figure(name, Look(points=None)) if name in FIGURES else None
        if figure is None:
            flask.abort(404, "the run has no such figure.")
        return _attached(numbers(figure), "text/csv", f"{file.followed.path.stem}-{name}.csv")

    @server.get("/take/post-mortem.<kind>")
    def post_mortem(kind: str) -> flask.Response:
        file = _file(live)
        if kind not in KINDS or file.view.run is None or file.view.diagnosis is None:
            flask.abort(404, "there is no such post-mortem.")
        with file.lock:
            text = rendered([Subject(file.view.run, file.view.diagnosis)], kind)
        return _attached(text, KINDS[kind], f"{file.followed.path.stem}-post-mortem.{kind}")


def _file(live: Live) -> Watched:
    file = live.file(flask.request.args.get("path", ""))
    if file is None:
        flask.abort(404, "there is no such run.")
    file.refresh()
    return file


def _attached(text: str, kind: str, name: str) -> flask.Response:
    plain = re.sub(r"[^\w.-]+", "_", name)
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(plain)}"}
    return flask.Response(text, mimetype=kind, headers=headers)


def numbers(figure: Any) -> str:
    """The curves of a figure as CSV, a row for each step; what is not finite stands there as it was written."""
    columns: dict[str, pd.Series[Any]] = {}
    for trace in figure.data:
        if trace.meta in ("findings", "interventions"):
            continue
        if trace.type == "heatmap":
            rows = zip(trace.y, np.asarray(trace.z), strict=True)
            columns |= {name: pd.Series(values, index=trace.x, dtype=object) for name, values in rows}
        elif trace.meta == "edge":
            label, what = trace.name.rsplit(": ", 1)
            at = sorted({int(step) for step in trace.x if step is not None and not math.isnan(step)})
            marked = pd.Series([what] * len(at), index=at, dtype=object)
            columns[label] = _joined(columns.get(label), marked)
        else:
            columns[trace.name] = _joined(columns.get(trace.name), pd.Series(trace.y, index=trace.x, dtype=object))
    frame = pd.DataFrame({name: one[~one.index.duplicated(keep="last")] for name, one in columns.items()})
    written = io.StringIO()
    frame.sort_index().to_csv(written, index_label="step")
    return written.getvalue()


def _joined(one: pd.Series[Any] | None, other: pd.Series[Any]) -> pd.Series[Any]:
    return other if one is None else pd.concat([one, other])
