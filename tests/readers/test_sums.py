"""What the sums of a log prove of its names, and that a log says the same while it is written as afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainwatch.readers import console, jsonl

EPOCHS = 12


def losses(**columns: str) -> list[str]:
    """A line for each epoch; each column is a format of ``a``, ``b`` (random) and ``t``, their sum."""
    random = np.random.default_rng(0)
    lines = []
    for epoch in range(1, EPOCHS + 1):
        a, b = (round(float(value), 4) for value in random.uniform(0.5, 2.0, 2))
        told = {name: form.format(a=a, b=b, t=a + b, c=float(random.uniform(0, 1))) for name, form in columns.items()}
        lines.append(f"Epoch {epoch}/100 - " + ", ".join(f"{name}: {value}" for name, value in told.items()) + "\n")
    return lines


def channels(path: Path, lines: list[str], pieces: int) -> list[str]:
    """The channels of the run after it was written and read ``pieces`` lines at a time."""
    path.write_text("")
    source = console.open_file(path)
    for begin in range(0, len(lines), pieces):
        with path.open("a") as log:
            log.writelines(lines[begin : begin + pieces])
        source.poll()
    source.close()
    [run] = source.runs
    assert run.train.size == EPOCHS
    return sorted(run.train.channels)


@pytest.mark.parametrize("pieces", [1, 4, EPOCHS])
def test_components_are_the_same_while_the_log_is_written_and_afterwards(tmp_path, pieces):
    lines = losses(**{"Train Loss": "{t:.4f}", "Signal": "{a:.4f}", "Peak": "{b:.4f}", "Acc": "{c:.4f}"})
    found = channels(tmp_path / "train.log", lines, pieces)
    assert found == ["epoch", "logged/Acc", "loss", "loss/Peak", "loss/Signal"]


@pytest.mark.parametrize(
    "columns",
    [
        {"loss": "{t:.4f}", "top1": "{a:.4f}", "top5": "{c:.4f}"},  # they do not sum to it
        {"loss": "{t:.4f}", "top1": "{a:.4f}"},  # one is no sum
        {"loss": "1.5000", "top1": "1.0000", "top5": "0.5000"},  # one and the same row shows nothing
        {"loss": "0.0000", "top1": "0.0000", "top5": "0.0000"},
    ],
    ids=str,
)
@pytest.mark.parametrize("pieces", [1, EPOCHS])
def test_measures_that_prove_nothing_stay_measures(tmp_path, columns, pieces):
    found = channels(tmp_path / "train.log", losses(**columns), pieces)
    assert not [name for name in found if name.startswith("loss/")]


def test_a_weight_is_one_only_where_the_total_is_the_weighted_sum(tmp_path):
    """Read in one piece and row by row; weighted already, the value is what stands in the total."""
    for name, factor in (("raw", 1.0), ("weighted", 0.2)):
        row = '{{"step": {0}, "loss": {1}, "ce_loss": 1.5, "kl_loss": {2}, "kl_weight": 0.2}}\n'
        lines = [row.format(step, 1.5 + 0.2 * step, step * factor) for step in range(1, EPOCHS + 1)]
        for pieces in (1, EPOCHS):
            path = tmp_path / f"{name}{pieces}.jsonl"
            path.write_text(lines[0])
            source = jsonl.open_file(path)
            for begin in range(1, len(lines), pieces):
                source.poll()
                path.write_text("".join(lines[: begin + pieces]))
            source.poll()
            source.close()
            assert ("weight/kl" in source.runs[-1].train) == (name == "raw")
