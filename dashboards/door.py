"""Who may ask the dashboard, what they may ask, and what a browser may do with the answer.

On this machine alone the name in the address is checked; beyond it a token is asked for. The token comes once, in a
link; from then on a cookie holds it, so that no address in a history or on a screen does.
"""

from __future__ import annotations

import os
import secrets
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import dash
import flask
from dash.exceptions import DashException
from werkzeug.exceptions import HTTPException

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
TOKEN_VARIABLE: Final = "TRAINWATCH_TOKEN"
TOKEN_LETTERS: Final = 16  # a chosen token that is shorter could be guessed by trying
LARGEST_BODY: Final = 1_000_000  # bytes; what a page sends of itself is some thousands
LARGEST_ADDRESS: Final = 8_000  # letters
CALLBACKS: Final = "/_dash-update-component"
LASTING: Final = ("/_dash-component-suites/", "/assets/")  # the same for every folder of logs

# Scripts: this server's files, and by its hash the one line that Dash starts with; nothing inline, nothing evaluated.
# Styles: plotly, ag-grid and Mantine write their own into the page, each differently at every drawing: no hash fits.
# Images: plotly turns a plot into a PNG by way of data: and blob:.
POLICY: Final = (
    "default-src 'none'; script-src 'self' {hashes}; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data: blob:; font-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
NEEDS_TOKEN: Final = "trainwatch asks for its token: open the link that `trainwatch dash` printed.\n"


class TokenError(Exception):
    """The token that was chosen is no good; the text is one sentence that says why."""


def token_for(host: str) -> str | None:
    """The token that whoever asks at ``host`` must bring; None on this machine, unless one was chosen."""
    chosen = os.environ.get(TOKEN_VARIABLE, "")
    if not chosen:
        return None if host in LOOPBACK else secrets.token_urlsafe(32)
    if len(chosen) < TOKEN_LETTERS:
        raise TokenError(f"{TOKEN_VARIABLE} has {len(chosen)} letters; take at least {TOKEN_LETTERS}.")
    return chosen


def link(address: str, token: str | None) -> str:
    """What to open first."""
    return f"{address}/?{urlencode({'token': token})}" if token else address


def close(app: dash.Dash, token: str | None, anywhere: bool) -> None:
    """Let nothing through but what the dashboard itself asks; to be called once its callbacks are known.

    ``anywhere``: it is served beyond this machine, under whatever name leads to it.
    """
    server: flask.Flask = app.server
    server.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY
    policy = POLICY.format(hashes=" ".join(app.csp_hashes()))

    @server.before_request
    def check() -> flask.Response | None:
        if not anywhere and _name(flask.request.host) not in LOOPBACK:
            # a page elsewhere whose name was pointed at this machine must not read the logs (DNS rebinding)
            return _said("trainwatch answers to this machine only.\n", 403)
        return (_known(token) if token else None) or _sane(app)

    @server.after_request
    def protect(response: flask.Response) -> flask.Response:
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        if response.status_code >= 400 or not flask.request.path.startswith(LASTING):
            response.headers["Cache-Control"] = "no-store"
        return response

    server.register_error_handler(Exception, _in_a_sentence)


def _said(text: str, status: int) -> flask.Response:
    return flask.Response(text, status, mimetype="text/plain")


def _name(host: str) -> str:
    """The name in a Host header, its port taken off."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # [::
        return ""


def _host_of(origin: str) -> str | None:
    """Name and port in an Origin header; None for one that is absent or "null"."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _known(token: str) -> flask.Response | None:
    """None for who has the token; else what to answer."""
    request = flask.request
    cookie = f"trainwatch-{request.environ['SERVER_PORT']}"  # cookies do not part ports: two dashboards, two names
    if _same(request.cookies.get(cookie), token):
        return None if "token" not in request.args or request.method == "POST" else _without_token()
    if request.method in ("GET", "HEAD") and _same(request.args.get("token"), token):
        response = _without_token()
        response.set_cookie(cookie, token, httponly=True, samesite="Strict")
        return response
    if request.method == "GET" and request.headers.get("Sec-Fetch-Site") == "cross-site":
        # a link in a page elsewhere: a browser keeps a strict cookie back then, and sends it if this page asks anew
        again = f'<!doctype html><meta http-equiv="refresh" content="0"><title>trainwatch</title><p>{NEEDS_TOKEN}'
        return flask.Response(again, 401)
    return _said(NEEDS_TOKEN, 401)


def _same(given: str | None, token: str) -> bool:
    return given is not None and secrets.compare_digest(given.encode(errors="replace"), token.encode())


def _without_token() -> flask.Response:
    """Go on to the same address without the token; an address of this server, whatever the path looks like."""
    kept = [(name, value) for name, value in flask.request.args.items(multi=True) if name != "token"]
    path = "/" + quote(flask.request.path.lstrip("/"))
    response = _said("", 303)
    response.headers["Location"] = f"{path}?{urlencode(kept)}" if kept else path
    return response


def _sane(app: dash.Dash) -> flask.Response | None:
    """None for a request that a page of this dashboard could have made."""
    request = flask.request
    if len(request.full_path) > LARGEST_ADDRESS:
        return _said("that address is too long.\n", 414)
    if request.method != "POST":
        return None
    if _host_of(request.headers.get("Origin", "")) != request.host:
        return _said("trainwatch answers to its own pages only.\n", 403)
    if request.path == CALLBACKS and not _is_callback(app):
        return _said("that is not what a page of trainwatch asks.\n", 400)
    return None


def _is_callback(app: dash.Dash) -> bool:
    """Whether the body has the shape that Dash goes through without looking."""
    try:
        body = flask.request.get_json()
    except RecursionError:
        return False
    if not isinstance(body, dict) or not isinstance(body.get("output"), str):
        return False
    known = app.callback_map.get(body["output"])
    changed, outputs = body.get("changedPropIds", []), body.get("outputs")
    if known is None or not isinstance(changed, list) or not all(isinstance(one, str) for one in changed):
        return False
    given = [(body.get("inputs", []), known["inputs"]), (body.get("state", []), known["state"])]
    if not all(isinstance(items, list) and len(items) == len(wanted) for items, wanted in given):
        return False
    several = outputs if isinstance(outputs, list) else [outputs]
    return all(_is_place(item) for items in (several, *(items for items, _ in given)) for item in items)


def _is_place(item: Any) -> bool:
    """A property of a component; where a pattern asked for several, a list of them."""
    places = item if isinstance(item, list) else [item]
    return all(
        isinstance(place, dict) and isinstance(place.get("property"), str) and isinstance(place.get("id"), str | dict)
        for place in places
    )


def _in_a_sentence(error: Exception) -> flask.Response:
    """What went wrong, for whoever asked; where in the program is told in the terminal alone."""
    if isinstance(error, HTTPException):
        return _said(f"{error.description or error.name}\n", error.code or 500)
    if isinstance(error, DashException):  # other outputs than the callback has
        return _said("that is not what a page of trainwatch asks.\n", 400)
    flask.current_app.logger.exception("%s %s", flask.request.method, flask.request.path)
    return _said("trainwatch could not answer this; its terminal says why.\n", 500)
