"""A run that goes wrong, and a service on this machine that is told of it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@pytest.fixture(autouse=True)
def _own_memory(tmp_path, monkeypatch):
    """What was told is remembered for this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def service():
    """An HTTP server: ``url`` as apprise writes it, ``got`` what was posted, ``code`` what it answers."""

    class Service:
        code, got = 200, []
        held = threading.Event()

    said = Service()
    said.got = []
    said.held.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            said.held.wait(20)
            said.got.append(json.loads(body))
            self.send_response(said.code)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    said.url = f"json://127.0.0.1:{server.server_port}/hook"
    yield said
    said.held.set()
    server.shutdown()
    server.server_close()


def row(step, bad=False):
    return {
        "kind": "step",
        "step": step,
        "time": 1e9 + step,
        "elapsed": 0.5 * step,
        "loss": None if bad else 3.0 + 1 / step,
        "loss/mass": None if bad else 2.0 + 1 / step,
        "loss/length": 1.0,
        "grad_norm": 0.5 + 0.01 * (step % 7),
        **({"nonfinite": {"loss": "nan", "loss/mass": "nan"}} if bad else {}),
    }


@pytest.fixture
def records():
    """``records(steps, bad=range(...), name=..., **header)``: a run whose mass loss is NaN on some steps."""

    def make(steps=120, bad=range(100, 1000), name="sick", **more):
        head = {"kind": "run", "schema": 1, "run": name, "id": name, "time": 1e9, "total_steps": 200, **more}
        return [head, *(row(step, step in bad) for step in range(1, steps + 1))]

    return make
