"""stale-data: batches that are not what their stage asks for."""

import numpy as np
import pytest

STEPS = np.arange(1, 401)


def head(ramp="step", **more):
    ranges = [([7, 10], [0, 0]), ([7, 14], [2, 2]), ([12, 30], [5, 5])]
    stages = [{"start": 100 * i, "name": f"s{i}", "data": {"length": a, "noise": b}} for i, (a, b) in enumerate(ranges)]
    return {"total_steps": 400, "curriculum": {"name": "P", "ramp": ramp, "stages": stages}, **more}


def batches(seed, stage):
    """What a loader gives that draws from ``stage`` at every step."""
    random = np.random.default_rng(seed)
    low, high = np.array([7, 7, 12])[stage], np.array([10, 14, 30])[stage]
    lengths = random.integers(low[:, None], high[:, None] + 1, (len(stage), 8))
    noise = np.array([0, 2, 5])[stage]
    columns = {f"data/noise/{which}": noise for which in ("min", "mean", "max")}
    return columns | {"data/length/min": lengths.min(axis=1), "data/length/max": lengths.max(axis=1)}


def stages(steps):
    return np.clip(steps // 100, 0, 2)


@pytest.mark.parametrize("seed", range(3))
def test_workers_that_keep_the_first_stage(make_run, judge, seed):
    """One finding for all that is stale, at the step of the first boundary."""
    (found,) = judge(make_run(batches(seed, np.zeros(400, int)), header=head()), "stale-data")
    assert (found.severity, found.subject, found.first_step, found.last_step) == ("warning", "run", 100, 400)
    assert "they fit stage 's0'" in found.message
    assert "noise is 0 in the batch of step 400, and stage 's2' asks for 5:" in found.message
    assert found.state == "active"


@pytest.mark.parametrize("seed", range(3))
def test_old_lengths_that_only_some_batches_betray(make_run, judge, seed):
    """The range before overlaps with the new one: most batches are outside, and not all."""
    columns = batches(seed, np.minimum(stages(STEPS), 1))
    lengths = {name: values for name, values in columns.items() if "length" in name}
    (found,) = judge(make_run(lengths, header=head()), "stale-data")
    assert 200 <= found.first_step <= 203


@pytest.mark.parametrize("late", [0, 1, 12])
@pytest.mark.parametrize("seed", range(10))
def test_data_as_asked(make_run, judge, seed, late):
    """Also where the batches that waited in a queue still come, and where skipped steps let the loader run ahead."""
    columns = batches(seed, stages(STEPS - late))
    assert judge(make_run(columns, header=head()), "stale-data") == []
    columns |= {"applied": np.maximum(STEPS - 10, 0)}
    assert judge(make_run(columns, header=head()), "stale-data") == []


def test_an_odd_batch_is_none_and_another_unit_is_mentioned(make_run, judge):
    """One outlier in twenty; lengths that count the padding from the first row on."""
    columns = batches(0, stages(STEPS))
    odd = {**columns, "data/length/max": np.where(STEPS % 20 == 0, 99, columns["data/length/max"])}
    assert judge(make_run(odd, header=head()), "stale-data") == []
    (found,) = judge(make_run({**columns, "data/length/max": np.full(400, 32)}, header=head()), "stale-data")
    assert (found.severity, found.first_step) == ("info", 1)


def test_a_ramp_and_an_end(make_run, judge):
    """While a plan ramps, the range before is right; a loader that hears of its stage late is over."""
    assert judge(make_run(batches(0, stages(STEPS - 60)), header=head(ramp="linear")), "stale-data") == []
    (found,) = judge(make_run(batches(0, stages(STEPS - 60)), header=head()), "stale-data")
    assert (found.first_step, found.state) == (100, "over")


@pytest.mark.parametrize(("late", "alarms"), [(0.2, 1), (0.4, 0), (0.21, 0)])
def test_old_data_inside_a_wider_range(late, alarms, make_run, judge):
    """Batches filled the first stage's range, and no later one leaves it."""
    random = np.random.default_rng(0)
    noise = np.where(STEPS < 100, 0.2, late)[:, None] * random.random((400, 32))
    stages = [{"start": 100 * i, "name": f"s{i}", "data": {"noise": [0.0, 0.2 * (i + 1)]}} for i in (0, 1)]
    columns = {f"data/noise/{which}": getattr(noise, which)(axis=1) for which in ("min", "mean", "max")}
    head = {"total_steps": 400, "curriculum": {"name": "P", "ramp": "step", "stages": stages}}
    found = judge(make_run(columns, header=head), "stale-data")
    assert [one.first_step for one in found] == [101] * alarms


def test_a_log_with_a_row_in_fifty(make_run, judge):
    """The window is 2 % of the planned steps, however many rows tell of them."""
    plan = head()
    for stage in plan["curriculum"]["stages"]:
        stage["start"] *= 50
    columns = batches(0, np.where(STEPS < 250, stages(STEPS), 1)) | {"step": 50 * STEPS}
    columns = {name: values[:330] for name, values in columns.items()}
    (found,) = judge(make_run(columns, header=plan | {"total_steps": 100_000}), "stale-data")
    assert found.first_step == 12_500


@pytest.mark.parametrize(("drawn", "alarms"), [(0, 1), (1, 0), (2, 0)])
def test_stages_that_are_short_count_together(drawn, alarms, make_run, judge):
    """Each range holds the one before; two stages of thirty rows have as many batches as one of sixty."""
    tops = np.array([7, 10, 12])
    stages = [{"start": 30 * i, "name": f"s{i}", "data": {"length": [5, int(top)]}} for i, top in enumerate(tops)]
    stage = np.minimum(np.minimum(np.arange(90) // 30, 2), drawn)
    lengths = np.random.default_rng(0).integers(5, tops[stage][:, None] + 1, (90, 16))
    columns = {"data/length/min": lengths.min(axis=1), "data/length/max": lengths.max(axis=1)}
    plan = {"total_steps": 90, "curriculum": {"name": "P", "ramp": "step", "stages": stages}}
    found = judge(make_run(columns, header=plan), "stale-data")
    assert [(one.severity, one.first_step) for one in found] == [("warning", 31)] * alarms


def opened(drawn, asked=(0.0, 4.0)):
    """Least and largest of forty values, of which none is near the upper end; the lower end moves at row 100."""
    random, low = np.random.default_rng(4), np.where(drawn, 0.7, 0.0)
    values = low[:, None] + np.minimum(random.exponential(0.6, (len(drawn), 40)), 3.0)
    header_stages = [
        {"start": 0, "name": "far", "data": {"x": [0.7, 4.0]}},
        {"start": 100, "name": "all", "data": {"x": list(asked)}},
    ]
    header = {"total_steps": 200, "curriculum": {"name": "P", "ramp": "step", "stages": header_stages}}
    return {"data/x/min": values.min(axis=1), "data/x/max": values.max(axis=1)}, header


@pytest.mark.parametrize(("stale", "asked", "alarms"), [(200, (0, 4), 1), (100, (0, 4), 0), (200, (0.68, 4), 0)])
def test_one_end_moves_and_no_batch_with_it(stale, asked, alarms, make_run, judge):
    """All batches came close to the old end; one that hardly moves tells nothing."""
    columns, header = opened(np.arange(200) < stale, asked)
    assert len(judge(make_run(columns, header=header), "stale-data")) == alarms


@pytest.mark.parametrize(
    ("late", "every", "alarms"), [(0.06, 10, 1), (0.15, 10, 0), (0.08, 10, 0), (0.06, 15, 0), (0.06, 30, 0)]
)
def test_a_few_looks_at_large_batches(late, every, alarms, make_run, judge):
    """Three that reached the end that moves, and five and more since that stay below it."""
    random, row = np.random.default_rng(2), np.arange(90)
    moved = 0.02 + (np.where(row < 30, 0.06, late)[:, None] - 0.02) * random.random((90, 40))
    values = {"min": moved.min(axis=1), "max": moved.max(axis=1)}
    columns = {f"data/moved/{name}": np.where(row % every == 0, value, np.nan) for name, value in values.items()}
    forms = (0, "calm", 0.06), (30, "shaken", 0.15), (60, "late", 0.15)
    plan = [{"start": start, "name": name, "data": {"moved": [0.02, most]}} for start, name, most in forms]
    head = {"total_steps": 90, "curriculum": {"name": "P", "ramp": "step", "stages": plan}}
    found = judge(make_run(columns, header=head), "stale-data")
    assert [(one.severity, one.first_step) for one in found] == [("warning", 31)] * alarms


@pytest.mark.parametrize(
    ("every", "late", "near", "alarms"),
    [(2, 0.2, 3, 1), (2, 0.4, 3, 0), (3, 0.2, 3, 1), (5, 0.2, 3, 0), (2, 0.2, 1, 0)],
)
def test_a_range_that_stays_in_a_log_of_few_rows(every, late, near, alarms, make_run, judge):
    """Fifteen batches in the sixty steps since: a loader's queue is shorter, and chance does not keep them within;
    unless few before came near the end: a tail thins out.
    """
    random, row = np.random.default_rng(0), np.arange(120)
    noise = np.where(row < 60, 0.2, late)[:, None] * random.random((120, 32))
    stages = [{"start": 60 * i, "name": f"s{i}", "data": {"noise": [0.0, 0.2 * (i + 1)]}} for i in (0, 1)]
    values = {f"data/noise/{which}": getattr(noise, which)(axis=1)[::every] for which in ("min", "mean", "max")}
    values["data/noise/max"][: 60 // every : near] = 0.155
    head = {"total_steps": 120, "curriculum": {"name": "P", "ramp": "step", "stages": stages}}
    found = judge(make_run(values | {"step": 1 + row[::every]}, header=head), "stale-data")
    assert len(found) == alarms
