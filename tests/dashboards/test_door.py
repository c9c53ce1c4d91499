"""Who is let in, and that whatever else is asked gets a short refusal: no traceback, no file, no foreign page."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("dash")

from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dashboards import app as app_module
from dashboards import door
from dashboards.app import ServeError, create_app, start

TOKEN = "a-token-of-thirty-two-characters"
HERE = {"Host": "127.0.0.1:8050", "Origin": "http://127.0.0.1:8050"}
ADDRESSES = (
    "/",
    "/run?path=peptide.jsonl",
    "/nowhere",
    "/assets/style.css",
    "/assets/none.css",
    "/_dash-layout",
    "/_dash-dependencies",
    "/_dash-component-suites/dash/deps/react.js",
    "/_favicon.ico",
    "/take/csv?path=peptide.jsonl&figure=loss",
    "/take/post-mortem.html?path=peptide.jsonl",
)


@pytest.fixture
def client(finished: Path) -> FlaskClient:
    """Asks an app that is served to this machine alone."""
    client: FlaskClient = create_app(finished).server.test_client()
    client.environ_base["HTTP_HOST"] = HERE["Host"]
    return client


@pytest.fixture
def stranger(finished: Path) -> FlaskClient:
    """Asks an app that is served everywhere, with a token."""
    client: FlaskClient = create_app(finished, token=TOKEN, anywhere=True).server.test_client()
    return client


def body(app_client: FlaskClient, output: str) -> dict[str, Any]:
    """What a page would ask of a callback, with nothing in it."""
    known = app_client.get("/_dash-dependencies", headers=HERE).get_json()
    found = next(one for one in known if output in one["output"] and not one["clientside_function"])
    several = found["output"].startswith("..")
    outputs = [
        {"id": one.rpartition(".")[0], "property": one.rpartition(".")[2]}
        for one in found["output"].strip(".").split("...")
    ]
    return {
        "output": found["output"],
        "outputs": outputs if several else outputs[0],
        "inputs": [{**one, "value": None} for one in found["inputs"]],
        "state": [{**one, "value": None} for one in found["state"]],
        "changedPropIds": [],
    }


def test_beyond_this_machine_nothing_is_served_without_a_token(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="only with a token"):
        start(tmp_path, 0, "0.0.0.0")


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("brought", ["", "wrong", TOKEN[:-1], TOKEN + "x", "ü"])
def test_without_the_token_every_address_says_what_to_do(stranger: FlaskClient, address: str, brought: str) -> None:
    join = "&" if "?" in address else "?"
    answer = stranger.get(f"{address}{join}token={brought}" if brought else address)
    assert (answer.status_code, answer.text) == (401, door.NEEDS_TOKEN)
    assert "Set-Cookie" not in answer.headers
    stranger.set_cookie("trainwatch-80", brought)
    assert stranger.get(address).status_code == 401


def test_without_the_token_no_callback_is_answered(stranger: FlaskClient) -> None:
    asked = {"json": {"output": "page.children"}, "headers": {"Origin": "http://localhost"}}
    assert stranger.post(f"{door.CALLBACKS}?token={TOKEN}", **asked).status_code == 401


def test_the_token_is_exchanged_for_a_cookie_and_leaves_the_address(stranger: FlaskClient) -> None:
    answer = stranger.get(f"/run?path=a%20b&token={TOKEN}&step=1-9")
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/run?path=a+b&step=1-9"
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert stranger.get("/").status_code == 200
    assert stranger.get("/_dash-layout").status_code == 200
    assert stranger.get(f"/?token={TOKEN}").headers["Location"] == "/"


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example/", "///evil.example", "/%2f/evil.example"])
def test_the_way_on_never_leads_elsewhere(stranger: FlaskClient, path: str) -> None:
    answer = stranger.get("/", query_string={"token": TOKEN}, environ_overrides={"PATH_INFO": path})
    assert answer.status_code in (303, 404)
    where = answer.headers.get("Location", "/")
    assert re.match(r"/(?![/\\])", where)
    assert urlsplit(where).netloc == ""


def test_a_link_in_a_page_elsewhere_asks_anew_for_the_strict_cookie(stranger: FlaskClient) -> None:
    answer = stranger.get("/run?path=a", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 401
    assert 'http-equiv="refresh"' in answer.text
    assert "refresh" not in stranger.get("/run?path=a", headers={"Sec-Fetch-Site": "same-origin"}).text


def test_a_token_is_made_or_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(door.TOKEN_VARIABLE, raising=False)
    assert [door.token_for(host) for host in door.LOOPBACK] == [None, None, None]
    made = door.token_for("0.0.0.0")
    assert made
    assert len(made) > 40
    assert made != door.token_for("0.0.0.0")
    monkeypatch.setenv(door.TOKEN_VARIABLE, TOKEN)
    assert door.token_for("0.0.0.0") == door.token_for("127.0.0.1") == TOKEN
    monkeypatch.setenv(door.TOKEN_VARIABLE, "short")
    with pytest.raises(door.TokenError, match="at least 16"):
        door.token_for("127.0.0.1")


def test_what_is_printed_is_the_link(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []

    def open_and_stop(address: str) -> None:
        opened.append(address)
        raise KeyboardInterrupt

    monkeypatch.delenv(door.TOKEN_VARIABLE, raising=False)
    monkeypatch.setattr(app_module.webbrowser, "open", open_and_stop)
    with pytest.raises(KeyboardInterrupt):
        app_module.serve(finished, 0, "0.0.0.0", open_browser=True)
    said = capsys.readouterr().out
    assert opened[0] in said
    assert re.fullmatch(rf"http://{socket.gethostname()}:\d+/\?token=[\w-]{{43}}", opened[0])
    assert "not encrypted" in said


def test_an_address_of_another_machine_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"cannot listen on 203\.0\.113\.1"):
        start(tmp_path, 0, "203.0.113.1", token=TOKEN)


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8050", 200), ("localhost", 200), ("[::1]:8050", 200), ("[::1]", 200)]
    + [(host, 403) for host in ("evil.example", "127.0.0.1.evil.example:8050", "evil.example:127.0.0.1", "[::", "")],
)
def test_only_names_of_this_machine_are_answered(client: FlaskClient, host: str, status: int) -> None:
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == status or (status == 403 and answer.status_code == 400)
    assert "peptide" not in answer.text


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:8051", "http://127.0.0.1", "http://[", ""]
)
def test_a_page_elsewhere_calls_no_callback(client: FlaskClient, origin: str | None) -> None:
    asked = body(client, "page.children")
    headers = {"Host": HERE["Host"]} | ({"Origin": origin} if origin is not None else {})
    assert client.post(door.CALLBACKS, json=asked, headers=HERE).status_code == 200
    assert client.post(door.CALLBACKS, json=asked, headers=headers).status_code == 403


def test_every_answer_tells_the_browser_what_not_to_do(client: FlaskClient) -> None:
    for address in (*ADDRESSES, "/take/csv"):
        answer = client.get(address)
        answer.close()
        headers = answer.headers
        policy = headers["Content-Security-Policy"]
        scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
        assert "unsafe" not in scripts
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert (headers["Cache-Control"] == "no-store") or address.startswith(door.LASTING)


OUTSIDE = ["../secret", "/etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "peptide.jsonl%00", "a/../../x", "%ff", "~"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize(
    "address",
    [
        "/take/csv?figure=loss&path={}",
        "/take/post-mortem.html?path={}",
        "/assets/{}",
        "/static/{}",
        "/take/post-mortem.{}",
    ],
)
def test_nothing_outside_the_folder_can_be_asked_for(client: FlaskClient, address: str, name: str) -> None:
    answer = client.get(address.format(name))
    # an address that is none of the server's own is the empty frame of a page
    assert answer.status_code in (308, 400, 404) or "_dash-config" in answer.text
    assert "root:" not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("name", [*OUTSIDE, "x" * 5000])
def test_a_page_about_something_outside_the_folder_says_that_there_is_none(client: FlaskClient, name: str) -> None:
    asked = body(client, "page.children")
    asked["inputs"][0]["value"], asked["inputs"][1]["value"] = "/run", f"?path={name}"
    answer = client.post(door.CALLBACKS, json=asked, headers=HERE)
    assert answer.status_code == 200
    assert "There is no such run" in answer.text


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"[" * 100_000, 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff", 400),
        (b"{}", 400),
        (b'{"output": 5}', 400),
        (b'{"output": "none.such"}', 400),
        (b'{"output": "page.children"}', 400),
        (b'{"output": "page.children", "inputs": [1, 2]}', 400),
        (b" " * (door.LARGEST_BODY + 1), 413),
    ],
)
def test_a_body_of_absurd_shape_is_refused(client: FlaskClient, sent: bytes, status: int) -> None:
    answer = client.post(door.CALLBACKS, data=sent, content_type="application/json", headers=HERE)
    assert answer.status_code == status
    assert len(answer.text) < 300


def test_an_address_of_absurd_length_is_refused(client: FlaskClient) -> None:
    assert client.get("/run?path=" + "x" * 20_000).status_code == 414


@pytest.mark.parametrize("address", ["/_dash-component-suites/os/path.py", "/_dash-component-suites/dash/../x.py"])
def test_only_the_page_s_own_files_are_served(client: FlaskClient, address: str) -> None:
    answer = client.get(address)
    assert answer.status_code == 400
    assert len(answer.text) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    "output",
    [
        "page.children",
        "verdict.children",
        "runs-news.data",
        "runs-edited.data",
        "compare-seen.data",
    ],
)
@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_of_absurd_shape_break_no_callback(client: FlaskClient, output: str, data: st.DataObject) -> None:
    asked = json.loads(json.dumps(body(client, output)))
    for item in (*asked["inputs"], *asked["state"]):
        item["value"] = data.draw(JSON)
    answer = client.post(door.CALLBACKS, json=asked, headers=HERE)
    assert answer.status_code in (200, 204, 400)


def test_what_broke_is_told_in_the_terminal_alone(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(app_module.runs_page, "layout", lambda _: 1 / 0)
    answer = client.post(door.CALLBACKS, json=body(client, "page.children"), headers=HERE)
    assert answer.status_code == 500
    assert "ZeroDivisionError" not in answer.text
    assert "ZeroDivisionError" in caplog.text
