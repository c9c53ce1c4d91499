"""The Dash app around the pages, and the server that shows it: to this machine alone, or to who has the token."""

from __future__ import annotations

import errno
import gzip
import logging
import socket
import threading
import webbrowser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import dash
import dash_mantine_components as dmc
import flask
from dash import dcc, html
from dash.dependencies import Input, Output
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from dashboards import door, take
from dashboards.asked import Asked
from dashboards.listing import Listing
from dashboards.live import Live
from dashboards.pages import compare as compare_page
from dashboards.pages import finding as finding_card
from dashboards.pages import run as run_page
from dashboards.pages import runs as runs_page
from dashboards.together import Together
from trainwatch.engine import Settings

PORT = 8050
PORTS_TRIED = 50
EVERY_ADDRESS = ("0.0.0.0", "::")
WORTH_COMPRESSING = 2000  # bytes
ASSETS = Path(__file__).parent / "assets"
REQUEST_SECONDS = 60.0  # who sends nothing for so long is not listened to any more


class ServeError(Exception):
    """The dashboard cannot be served as asked; the text is one sentence that says why."""


def create_app(
    folder_or_files: Path | list[Path],
    settings: Settings | None = None,
    token: str | None = None,
    anywhere: bool = False,
) -> dash.Dash:
    """The dashboard of every run below a folder, or of some files; ``token`` and ``anywhere`` as in door.close."""
    live = Live(folder_or_files, settings)
    together = Together(live)
    app = dash.Dash(
        "trainwatch",
        title="trainwatch",
        update_title=None,
        assets_folder=str(ASSETS),
        serve_locally=True,
        suppress_callback_exceptions=True,
        meta_tags=[{"name": "color-scheme", "content": "light dark"}],
    )
    app.layout = _frame()
    app.server.after_request(_smaller)
    take.register(app.server, live)
    finding_card.register(app.server)
    listing = Listing(live)
    runs_page.register(app, listing)
    run_page.register(app, live)
    compare_page.register(app, together)

    @app.callback(Output("page", "children"), Input("where", "pathname"), Input("where", "search"))  # type: ignore[untyped-decorator]
    def show(pathname: Any, search: Any) -> Any:
        search = search if isinstance(search, str) else ""
        asked = parse_qs(search.lstrip("?"))
        if pathname == "/run":
            return run_page.layout(live, asked.get("path", [""])[0], Asked.at(search))
        if pathname == "/compare":
            return compare_page.layout(together, search)
        return runs_page.layout(listing)

    door.close(app, token, anywhere)
    return app


def _frame() -> Any:
    """What stays while pages change: the bar on top, and the place for a page."""
    mark = html.Span(
        [html.Span(className=f"bar bar{n}") for n in (1, 2, 3)], className="mark", **{"aria-hidden": "true"}
    )
    toggle = dmc.ColorSchemeToggle(
        lightIcon="☾", darkIcon="☀", variant="subtle", color="gray", size=36, **{"aria-label": "Switch light and dark"}
    )
    bar = html.Header([dcc.Link([mark, "trainwatch"], href="/", className="brand"), html.Div(id="crumb"), toggle])
    skip = html.A("Skip to content", href="#page", className="skip")
    # dcc.Location with refresh="callback-nav": a link changes the page without loading it anew
    where = dcc.Location(id="where", refresh="callback-nav")
    lost = html.Div("The dashboard's server does not answer: what you see is old.", id="lost", role="alert")
    page = html.Main(id="page", tabIndex="-1", children=html.P("Reading the runs …", className="empty"))
    parts = [where, skip, bar, lost, page, _keys()]
    return dmc.MantineProvider(parts, defaultColorScheme="auto")


KEYS = {
    "n, p": "next and previous finding",
    "0": "the whole run again",
    "/": "search",
    "e": "tags and note of the run that has the focus in the table",
    "?": "these keys",
    "Tab, Enter": "walk and press",
}


def _keys() -> Any:
    """What the keys of assets/plots.js do; a key shows it."""
    rows = [html.Div([html.Dt(html.Kbd(key)), html.Dd(what)]) for key, what in KEYS.items()]
    return html.Div([html.H2("Keys"), html.Dl(rows)], id="keys", className="card")


def _smaller(response: flask.Response) -> flask.Response:
    """Compress an answer of the callbacks: for whoever looks through a tunnel."""
    accepted = "gzip" in flask.request.headers.get("Accept-Encoding", "")
    if accepted and response.mimetype == "application/json" and len(response.get_data()) > WORTH_COMPRESSING:
        response.set_data(gzip.compress(response.get_data(), 1))
        response.headers["Content-Encoding"] = "gzip"
    return response


class _Quiet(WSGIRequestHandler):
    """A page that asks every second would fill the terminal."""

    timeout = REQUEST_SECONDS

    def log_request(self, *_: Any) -> None:
        return


def start(
    folder_or_files: Path | list[Path],
    port: int = PORT,
    host: str = door.LOOPBACK[0],
    settings: Settings | None = None,
    token: str | None = None,
) -> tuple[BaseWSGIServer, str]:
    """Serve from a thread of its own; returns the server, to shut it down, and its address. Raises ServeError."""
    anywhere = host not in door.LOOPBACK
    if anywhere and not token:
        raise ServeError(f"beyond this machine, on {host!r}, the dashboard is served only with a token.")
    for path in folder_or_files if isinstance(folder_or_files, list) else [folder_or_files]:
        if not path.exists():
            raise ServeError(f"{path}: there is no such file or folder.")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    free = _free_port(host, port)
    app = create_app(folder_or_files, settings, token, anywhere)
    server = make_server(host, free, app.server, threaded=True, request_handler=_Quiet)
    threading.Thread(target=server.serve_forever, name="trainwatch-dash", daemon=True).start()
    name = socket.gethostname() if host in EVERY_ADDRESS else host
    return server, f"http://{f'[{name}]' if ':' in name else name}:{server.port}"


def _free_port(host: str, port: int) -> int:
    """The first port from ``port`` on that nobody listens on; 0 lets the system choose."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + PORTS_TRIED, 65536)) if port else [0]:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, candidate))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise ServeError(f"cannot listen on {host}, port {candidate} ({error.strerror}).") from None
            return candidate
    raise ServeError(f"no port from {port} to {port + PORTS_TRIED - 1} is free on {host}; name another with --port.")


def serve(
    folder: Path | list[Path],
    port: int = PORT,
    host: str = door.LOOPBACK[0],
    open_browser: bool = False,
    settings: Settings | None = None,
) -> None:
    """Serve until Ctrl-C, which is the caller's to answer; says where. Raises ServeError."""
    try:
        token = door.token_for(host)
    except door.TokenError as error:
        raise ServeError(str(error)) from None
    server, address = start(folder, port, host, settings, token)
    if port and server.port != port:
        print(f"port {port} is taken, so this is {server.port}")
    what = folder if isinstance(folder, Path) else f"{len(folder)} files"
    print(f"trainwatch shows {what} at {door.link(address, token)} (Ctrl-C ends it)")
    if host not in door.LOOPBACK:
        print("Whoever has this link can read the runs; it is not encrypted: `ssh -L` is.")
    try:
        if open_browser:
            webbrowser.open(door.link(address, token))
        threading.Event().wait()
    finally:
        server.shutdown()
        server.server_close()
