"""What `--redact` hides, wherever it stands; and what it leaves."""

from __future__ import annotations

import json

import pytest

from trainwatch.cli import main
from trainwatch.report.redaction import HIDDEN, PATH, Redactor

SECRETS = (
    "alice",
    "gpu-node-17",
    "secret-project",
    "203.0.113.9",
    "Quadro T9000",
    "deadbeefcafe",
    "acme-team",
    "s3://",
)


def records() -> list[dict]:
    home = "/home/alice/secret-project"
    trace = f'Traceback (most recent call last):\n  File "{home}/train.py", line 3, in main\nOSError: {home}/x.csv'
    head = {
        "kind": "run",
        "schema": 1,
        "run": "mine",
        "id": "x",
        "time": 1e9,
        "host": "gpu-node-17.cluster.example.org",
        "command": ["python", f"{home}/train.py", "--data", "data/secret-project/a.csv"],
        "device": {"name": "Quadro T9000", "memory": 2**30},
        "git": {"commit": "deadbeefcafe0123456789", "dirty": True},
        "python": "3.11.9",
        "config": {
            "data": {"path": f"{home}/x.csv", "bucket": "s3://secret-project/b"},
            "wandb": {"entity": "acme-team"},
            "lr": 1e-3,
            "note": "on gpu-node-17 at 203.0.113.9 by alice@example.org",
        },
        "components": {"loss/a": {}},
    }
    rows = [{"kind": "step", "step": step, "loss": 1 / step, "loss/a": 1 / step} for step in range(1, 100)]
    exception = {"type": "OSError", "message": f"no space on gpu-node-17: {home}/x.csv of alice", "traceback": trace}
    return [
        head,
        *rows,
        {"kind": "checkpoint", "step": 50, "path": f"{home}/ckpt/50.pt"},
        {"kind": "event", "event": "exception", "step": 99, **exception},
        {"kind": "end", "status": "failed", "step": 99, "exception": exception},
    ]


@pytest.mark.parametrize("target", ["r.html", "r.md", "plotly.html"])
def test_nothing_private_is_left(target, write_run, tmp_path):
    options = ["--interactive"] if target == "plotly.html" else []
    path = write_run(records(), "secret-project.jsonl")
    assert main(["report", str(path), "--redact", "-o", str(tmp_path / target), *options]) == 0
    text = (tmp_path / target).read_text(encoding="utf-8").partition("<script>")[0]  # plotly knows the colour aliceblue
    for secret in (*SECRETS, str(tmp_path), tmp_path.name):
        assert secret not in text, text[max(text.find(secret) - 200, 0) : text.find(secret) + 60]
    assert "OSError" in text
    assert "line 3, in main" in text.replace("\\", "")


def test_the_same_is_there_without_it(write_run, tmp_path):
    path = write_run(records(), "secret-project.jsonl")
    assert main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert all(secret in text for secret in SECRETS)


def test_the_embedded_findings_are_still_json(write_run, tmp_path):
    path = write_run(records())
    assert main(["report", str(path), "--redact", "-o", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    data = text.partition('id="trainwatch">')[2].partition("</script>")[0]
    [run] = json.loads(data)["runs"]
    assert run["source"] == "[path]"
    assert run["status"] == "failed"


@pytest.mark.parametrize(
    "said",
    [
        "loss/precursor is 3.2e+06 at step 1,200 / 5,000",
        "weight x raw loss; grad_share/a, 12.5 steps/s and/or N/A",
        "recall@5 fell to 0.5 (mAP@0.5)",
        "the root cause: optimizer.lr 0.001, ratio 3/4",
        "grad_cosine/a~b is -0.9",
        "data/mass/min is 3",
        "torch 2.13.0, float16",
    ],
)
def test_what_is_no_secret_stays(said):
    assert Redactor().text(said) == said


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("open(/data/x y)", "open([path] y)"),
        ('File "/data/my runs/x.py", line 3', 'File "[path]", line 3'),
        (r"C:\Users\bob\x.txt is missing", "[path] is missing"),
        (r"\\server\share\x", "[path]"),
        ("~/runs/1", "[path]"),
        ("../other/x", "[path]"),
        ("data/train.csv", "[path]"),
        ("data/arc-aug-1000/train is missing", "[path] is missing"),
        ("No such file or directory: 'data/train'", "No such file or directory: [path]"),
        ("https://me:pw@example.org/x", "[url]"),
        ("HF_TOKEN=abc", "[hidden]"),
        ("at 10.0.0.7:29500", "at [address]"),
        ("file:///a/b", "[url]"),
    ],
)
def test_what_looks_private_goes(said, left):
    assert Redactor().text(said) == left


def test_a_user_in_a_path_takes_what_is_behind_it_along():
    redactor = Redactor({"ada": HIDDEN, "exp7": PATH})
    assert redactor.text("see /home/ada/thesis/notes.txt, says ada") == f"see {PATH}, says {HIDDEN}"
    assert redactor.text("reads /data/exp7/patients.csv of exp7") == f"reads {PATH} of {PATH}"
