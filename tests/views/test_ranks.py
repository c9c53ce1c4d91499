"""Ranks side by side: every common step once, however the files are read, and one process at a time."""

from pathlib import Path

import numpy as np
import pytest

from trainwatch.run import Run
from trainwatch.views.ranks import Alignment


def begin(ranks=2, **header):
    run = Run(Path("r.jsonl"))
    run.ranks = {rank: Run(Path(f"r.rank{rank}.jsonl")) for rank in range(1, ranks)}
    resume(run, world_size=ranks, **header)
    return run


def resume(run, **header):
    for rank, one in {0: run, **run.ranks}.items():
        one.add_header({"kind": "run", "id": "a", "rank": rank, **header})


def write(run, rank, *steps):
    one = run if rank == 0 else run.ranks[rank]
    one.add_rows("train", np.array(steps), {"loss": 100.0 * rank + np.array(steps)})


def shown(alignment, run, process=0):
    """(step, rank 0's loss, the last rank's loss) of what is new."""
    found = []
    for rows in alignment.advance(run, process):
        losses = rows["loss"]
        found += [tuple(map(int, row)) for row in zip(rows.step, losses[0], losses[-1], strict=True)]
    return found


def test_a_step_is_shown_when_the_last_rank_has_written_it():
    run, alignment = begin(3), Alignment()
    write(run, 0, 1, 2, 3)
    write(run, 1, 1, 2)
    assert shown(alignment, run) == []
    write(run, 2, 1)
    assert shown(alignment, run) == [(1, 1, 201)]
    write(run, 2, 2, 3)
    write(run, 1, 3)
    assert shown(alignment, run) == [(2, 2, 202), (3, 3, 203)]
    assert shown(alignment, run) == []


def test_steps_that_a_rank_lacks_are_left_out():
    run = begin()
    write(run, 0, 1, 2, 3, 4, 5)
    write(run, 1, 1, 3, 5, 6)
    assert shown(Alignment(), run) == [(1, 1, 101), (3, 3, 103), (5, 5, 105)]


def test_each_process_is_walked_through_by_itself():
    """After a resume the same steps come again, and a rank that joined then has only those."""
    run = begin()
    for rank in (0, 1):
        write(run, rank, 1, 2, 3, 4)
    resume(run, world_size=2, resumed_from=2)
    for rank in (1, 0):
        write(run, rank, 3, 4)
    alignment = Alignment()
    assert [step for step, *_ in shown(alignment, run, 0)] == [1, 2, 3, 4]
    assert [step for step, *_ in shown(alignment, run, 1)] == [3, 4]


def test_a_rank_without_a_file_is_waited_for_and_then_left_out():
    run, alignment = begin(2), Alignment()
    run.headers[0].raw["world_size"] = 3
    write(run, 0, *range(1, 100))
    write(run, 1, *range(1, 100))
    assert shown(alignment, run) == []
    write(run, 0, *range(100, 300))
    assert len(shown(alignment, run)) == 99


def test_a_file_of_another_run_is_none_of_its_ranks():
    run = begin()
    write(run, 0, 1)
    write(run, 1, 1)
    run.ranks[1].headers.clear()
    run.ranks[1].add_header({"kind": "run", "id": "older"})
    assert shown(Alignment(), run) == []


@pytest.mark.parametrize("seed", range(5))
def test_how_the_files_are_read_changes_nothing(seed):
    random = np.random.default_rng(seed)
    steps = [np.flatnonzero(random.random(300) < share) + 1 for share in (1.0, 0.9, 1.0)]
    whole, run, alignment, found = begin(3), begin(3), Alignment(), []
    for rank in range(3):
        write(whole, rank, *steps[rank])
    left = [list(one) for one in steps]
    while any(left):
        rank = int(random.integers(3))
        count = int(random.integers(1, 30))
        if left[rank]:
            write(run, rank, *left[rank][:count])
            left[rank] = left[rank][count:]
        found += shown(alignment, run)
    assert found == shown(Alignment(), whole)
