"""The engine: finds rules, withholds them, isolates them, and forgets nothing at a resume."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from trainwatch import engine as engine_module
from trainwatch.engine import Engine, Settings, SettingsError, catalogue
from trainwatch.rule import Rule, page
from trainwatch.run import Run


@dataclass
class HighLoss(Rule):
    """Says so at every row whose loss is above the limit."""

    needs: ClassVar[tuple[str, ...]] = ("loss",)
    limit: float = 1.0

    def update(self, chunk):
        for row in np.flatnonzero(chunk["loss"] > self.limit):
            step = int(chunk.step[row])
            yield self.finding("warning", "run", (step, step), f"high at {step}")


@dataclass
class Broken(Rule):
    """Raises on the first row."""

    name: ClassVar[str] = "broken"

    def update(self, chunk):
        raise ZeroDivisionError(f"oh: {len(chunk)} rows")


def run_of(*losses: float) -> Run:
    run = Run(Path("r.jsonl"))
    run.add_header({"kind": "run", "id": "a"})
    run.add_rows("train", np.arange(1, len(losses) + 1), {"loss": np.array(losses)})
    return run


@pytest.fixture
def rules(monkeypatch):
    """A catalogue of two rules of our own."""
    monkeypatch.setattr(engine_module, "catalogue", lambda: {"high": HighLoss, "broken": Broken})


@pytest.mark.usefixtures("rules")
def test_a_rule_that_breaks_is_left_out_and_named():
    """The others go on."""
    engine, run = Engine(), run_of(0.5, 2.0)
    engine.feed(run)
    assert [finding.message for finding in engine.findings(run)] == ["high at 2"]
    assert list(engine.failed.values()) == ["ZeroDivisionError: oh: 2 rows"]


@pytest.mark.usefixtures("rules")
def test_feeding_again_shows_only_what_is_new():
    """A live face feeds after every poll."""
    engine, run = Engine(Settings(off=frozenset({"broken"}))), run_of(2.0)
    engine.feed(run)
    run.add_rows("train", np.array([2]), {"loss": np.array([3.0])})
    engine.feed(run)
    engine.feed(run)
    assert [finding.first_step for finding in engine.findings(run)] == [1, 2]


@pytest.mark.usefixtures("rules")
def test_a_rule_without_its_channels_is_withheld():
    """And the engine says which channel would wake it."""
    engine = Engine(Settings(off=frozenset({"broken"})))
    run = Run(Path("r.jsonl"))
    run.add_rows("train", np.array([1]), {"lr/0": np.array([1.0])})
    engine.feed(run)
    assert list(engine.withheld(run).values()) == [["loss"]]


@pytest.mark.usefixtures("rules")
def test_a_resume_closes_what_it_superseded():
    """The finding stays, as history; rules begin with a fresh baseline."""
    engine, run = Engine(Settings(off=frozenset({"broken"}))), run_of(2.0, 0.5, 3.0)
    engine.feed(run)
    run.add_header({"kind": "run", "id": "a", "resumed_from": 2})
    engine.feed(run)
    kept, gone = engine.findings(run)
    assert (kept.first_step, kept.state, kept.severity) == (1, "active", "warning")
    assert (gone.first_step, gone.state, gone.severity) == (3, "over", "info")
    assert "resumed from step 2" in gone.message


def test_a_crash_is_history_when_the_run_was_resumed(play, judge):
    """Also when it happened at the very step of the checkpoint, and when nothing had started."""
    head = {"kind": "run", "id": "a"}
    crash = {"kind": "end", "status": "failed", "exception": {"type": "ValueError", "message": "no"}}
    row = {"kind": "step", "step": 1, "loss": 1.0}
    end = {"kind": "end", "status": "finished"}
    for again in ({"resumed_from": 1}, {"attempt": 2}):
        found = judge(play([head, row, crash, {**head, **again}, {**row, "step": 2}, end]))
        assert [finding.severity for finding in found if finding.rule == "crashed"] == ["info"]


def test_what_is_wrong_with_a_header_is_told_once_and_closed_when_mended(play, judge):
    """Two resumes do not make three findings; the mending is dated."""
    wrong = {"kind": "run", "id": "a", "curriculum": {"name": "A"}, "curriculum_running": {"name": "B"}}
    row = {"kind": "step", "loss": 1.0}
    again = [{**wrong, "resumed_from": step} for step in (2, 4)]
    records = [wrong, {**row, "step": 2}, again[0], {**row, "step": 4}, again[1], {**row, "step": 5}]
    (finding,) = judge(play(records), "curriculum-mismatch")
    assert (finding.first_step, finding.state) == (0, "active")
    mended = {**wrong, "curriculum_running": {"name": "A"}, "resumed_from": 5}
    (finding,) = judge(play([*records, mended, {**row, "step": 6}]), "curriculum-mismatch")
    assert (finding.first_step, finding.last_step, finding.state) == (0, 5, "over")


def test_ranks_above_zero_are_judged(play, judge):
    """A NaN and a crash on rank 3 alone."""
    rows = [{"kind": "step", "step": step, "loss": 1.0} for step in range(1, 9)]
    run = play([{"kind": "run", "id": "a"}, *rows, {"kind": "end", "status": "finished"}])
    run.ranks[3] = play([{"kind": "run", "id": "a", "rank": 3}, *rows, {"kind": "end", "status": "failed"}])
    run.ranks[3].train.mark(6, "loss", 1)
    found = [finding for finding in judge(run) if finding.rank]
    assert {(finding.rule, finding.subject) for finding in found} >= {
        ("non-finite-loss", "rank:3"),
        ("crashed", "rank:3"),
    }


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize("value", ["nan", "0", "-1", "inf"])
def test_a_threshold_that_can_never_work_is_refused(value):
    """It would silence the rule, or break it."""
    with pytest.raises(SettingsError, match="above 0"):
        Engine(Settings(thresholds={"high": {"limit": value}}))


@pytest.mark.usefixtures("rules")
def test_thresholds_can_be_set_and_a_slip_names_the_nearest():
    """`--set rule.field=value` ends here."""
    run = run_of(2.0)
    engine = Engine(Settings(thresholds={"high": {"limit": "5"}}, off=frozenset({"broken"})))
    engine.feed(run)
    assert engine.findings(run) == []
    with pytest.raises(SettingsError, match="did you mean 'limit'"):
        Engine(Settings(thresholds={"high": {"limti": 5}}))
    with pytest.raises(SettingsError, match="did you mean 'high'"):
        Engine(Settings(off=frozenset({"hihg"})))
    with pytest.raises(SettingsError, match="must be a number"):
        Engine(Settings(thresholds={"high": {"limit": "much"}}))


def test_every_file_below_rules_is_found():
    """Folders are walked: no list to keep."""
    folder = Path(engine_module.rules_package.__path__[0])
    files = [path for path in folder.rglob("*.py") if path.name != "__init__.py"]
    assert len(catalogue()) == len(files) >= 12
    assert all(name == rule().name for name, rule in catalogue().items())


def test_a_page_is_parted():
    """What the dashboard's tooltip and the report show."""
    parts = page(catalogue()["curriculum-mismatch"])
    assert parts[""].startswith("The curriculum that runs")
    assert "identity" in parts["What it sees"]


@dataclass
class InBlocks(Rule):
    """Tells how many rows it got, and how many were left."""

    block: ClassVar[int] = 4

    def update(self, chunk):
        for step in chunk.step[:: self.block]:
            yield self.finding("info", "run", (int(step), int(step) + self.block - 1), f"{len(chunk) % self.block}")

    def finish(self, run, rest):  # noqa: ARG002
        if len(rest):
            yield self.finding("info", "run", (int(rest.step[0]), int(rest.step[-1])), f"{len(rest)} left")


@pytest.mark.parametrize("pieces", [[11], [3, 3, 5], [1] * 11, [4, 7]])
def test_a_rule_with_blocks_gets_whole_ones(monkeypatch, pieces):
    """However the rows come; they begin anew with each process."""
    monkeypatch.setattr(engine_module, "catalogue", lambda: {"blocks": InBlocks})
    engine, run, step = Engine(), run_of(), 0
    for resumed in (None, 11):
        if resumed:
            run.add_header({"kind": "run", "id": "a", "resumed_from": resumed})
        for rows in pieces:
            run.add_rows("train", np.arange(step + 1, step + rows + 1), {"loss": np.ones(rows)})
            step += rows
            engine.feed(run)
    found = engine.findings(run)
    assert [(f.first_step, f.last_step) for f in found] == [(1, 4), (5, 8), (12, 15), (16, 19), (20, 22)]
    assert [f.message for f in found] == ["0", "0", "0", "0", "3 left"]
