"""Run against run: what parted, when, and which setting is suspect."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from trainwatch.cli import main
from trainwatch.compare import ABSENT, compare, differences
from trainwatch.compare.settings import about_seed
from trainwatch.compare.values import should_fall
from trainwatch.diagnosis import diagnose
from trainwatch.parting import part
from trainwatch.text import comparison as faces
from trainwatch.text import partings
from trainwatch.text.names import named

STEPS = np.arange(1, 1001)


def curve(seed: int, noise: float = 0.05, steps: int = 1000) -> np.ndarray:
    """A loss that falls and flattens, with noise in proportion to its level."""
    t = np.arange(1, steps + 1)
    return (3 * np.exp(-t / (0.2 * steps)) + 0.5) * (1 + np.random.default_rng(seed).normal(0, noise, steps))


def slow(seed: int, steps: int = 1000) -> np.ndarray:
    """Noise that wanders: each row remembers nine tenths of the last one."""
    wander = np.zeros(steps)
    pushes = np.random.default_rng(seed).normal(0, 0.04, steps)
    for row in range(1, steps):
        wander[row] = 0.9 * wander[row - 1] + pushes[row]
    return curve(0, 0.0, steps) * (1 + wander)


@pytest.mark.parametrize("make", [curve, slow])
@pytest.mark.parametrize("seed", range(0, 20, 2))
def test_two_seeds_do_not_part(make: Callable[[int], np.ndarray], seed):
    assert part(STEPS, make(seed), make(seed + 1)).parting is None


def test_the_same_numbers_are_the_same_to_the_end():
    pair = part(STEPS, curve(0), curve(0))
    assert (pair.parting, pair.same_until, pair.differs) == (None, 1000, False)


@pytest.mark.parametrize("at", [60, 300, 700, 940])
@pytest.mark.parametrize("seed", [1, 3])
def test_a_parting_is_dated(at, seed):
    other = curve(seed)
    other[at:] *= 1.6
    parting = part(STEPS, curve(seed + 1), other).parting
    assert parting is not None
    assert abs(parting.step - (at + 1)) <= 20
    assert parting.difference > 3 * parting.noise


def test_one_seed_until_the_setting_acts():
    """The same numbers up to step 400, twice the loss afterwards."""
    other = curve(0)
    other[400:] *= 2
    pair = part(STEPS, curve(0), other)
    assert pair.same_until == 400
    assert pair.parting is not None
    assert abs(pair.parting.step - 401) <= 5


def test_a_spike_that_heals_is_no_parting():
    other = curve(1)
    other[500:560] *= 3
    assert part(STEPS, curve(0), other).parting is None


def test_one_run_that_learns_a_little_later_does_not_part():
    assert part(STEPS, curve(0), np.concatenate([curve(1)[:10], curve(1)[:-10]])).parting is None


def test_a_loss_that_becomes_nan_parts_there_and_one_nan_does_not():
    broken, blip = curve(1), curve(1)
    broken[650:] = np.nan
    blip[650] = np.nan
    parting = part(STEPS, curve(0), broken).parting
    assert parting is not None
    assert parting.step == 651
    assert part(STEPS, curve(0), blip).parting is None


@pytest.mark.parametrize("rows", [0, 1, 5, 19, 20, 39, 40, 41, 45])
def test_short_runs_do_not_break_it(rows):
    assert part(STEPS[:rows], curve(0)[:rows], curve(1)[:rows]).parting is None


def test_planned_values_part_at_the_first_difference():
    pair = part(STEPS, np.ones(1000), np.where(STEPS > 200, 0.5, 1.0), exact=True)
    assert (pair.same_until, pair.parting and pair.parting.step) == (200, 201)


def test_differences_tell_absent_from_null():
    found = differences([{"a": {"b": 1, "c": None}, "d": [1]}, {"a": {"b": 2}, "d": [1]}])
    assert [(item.path, item.values) for item in found] == [("a.b", (1, 2)), ("a.c", (None, ABSENT))]


@pytest.mark.parametrize("pair", range(40))
def test_forty_pairs_of_seeds_do_not_part(pair):
    """One config, two seeds: noise of 2 to 15 %, and one run some rows ahead of the other."""
    random = np.random.default_rng(1000 + pair)
    steps = int(random.choice([400, 1000, 2500]))
    noise, late = random.uniform(0.02, 0.15), int(random.integers(0, 1 + steps // 100))
    a, b = (curve(int(random.integers(1 << 30)), noise, steps + late) for _ in range(2))
    assert part(np.arange(1, steps + 1), a[:steps], b[late:]).parting is None


@pytest.mark.parametrize("steps", [300, 1000, 2000])
@pytest.mark.parametrize("decay", [0.05, 0.15, 0.5])
def test_a_loss_that_is_higher_from_the_first_step_on_is_dated_there(steps, decay):
    """However steeply both fall, 1.3 times as high is 1.3 times as high."""
    falls = 2 * np.exp(-np.arange(steps) / (decay * steps)) + 0.3
    a, b = (falls * (1 + np.random.default_rng(seed).normal(0, 0.03, steps)) for seed in (1, 6))
    parting = part(np.arange(1, steps + 1), a, 1.3 * b).parting
    assert parting is not None
    assert parting.step <= 5
    assert parting.difference > 0


def test_an_earlier_spike_does_not_date_a_later_parting():
    other = curve(1)
    other[400:440] *= 3
    other[700:] *= 1.6
    parting = part(STEPS, curve(0), other).parting
    assert parting is not None
    assert abs(parting.step - 701) <= 20


def test_curves_that_are_not_positive_part_by_their_difference():
    """A negative log-likelihood of a density goes through zero."""
    random = np.random.default_rng(0)
    falls = 2 * np.exp(-STEPS / 200) - 1.5
    a, b = (falls + random.normal(0, 0.05, 1000) for _ in range(2))
    assert part(STEPS, a, b).parting is None
    b[300:] += 0.4
    parting = part(STEPS, a, b).parting
    assert parting is not None
    assert abs(parting.step - 301) <= 10
    assert parting.difference == pytest.approx(0.4, abs=0.05)


def test_too_few_rows_are_no_verdict():
    assert part(STEPS[:39], curve(0)[:39], 5 * curve(1)[:39]).too_few
    assert not part(STEPS[:40], curve(0)[:40], curve(1)[:40]).too_few
    assert not part(STEPS[:39], curve(0)[:39], curve(0)[:39]).too_few
    assert part(STEPS[:40], curve(0)[:40], 5 * curve(1)[:40]).parting is not None


def run_records(weight: float = 0.1, seed: int = 0, **config: object) -> list[dict]:
    """Two stages; from step 301 on the second component counts, by ``weight``."""
    stages = [
        {"start": 0, "end": 300, "name": "warm", "weights": {"a": 1.0, "b": 0.0}},
        {"start": 300, "end": 1000, "name": "full", "weights": {"a": 1.0, "b": weight}},
    ]
    head = {
        "kind": "run",
        "schema": 1,
        "run": f"w{weight}-s{seed}",
        "id": f"{weight}{seed}",
        "total_steps": 1000,
        "config": {"seed": seed, "loss": {"b": {"unit": "Da"}}, **config},
        "curriculum_running": {"name": f"plan {weight}", "stages": stages},
    }
    a, b = curve(seed), 4 * curve(seed + 100)
    weights = np.where(STEPS > 300, weight, 0.0)
    rows = [
        {
            "kind": "step",
            "step": int(step),
            "applied": int(step),
            "loss": a[i] + weights[i] * b[i],
            "loss/a": a[i],
            "loss/b": b[i],
            "weight/a": 1.0,
            "weight/b": weights[i],
        }
        for i, step in enumerate(STEPS)
    ]
    evals = [{"kind": "eval", "step": 1000, "split": "valid", "loss": a[-1], "metric/accuracy": 0.5 + seed / 100}]
    return [head, *rows, *evals, {"kind": "end", "status": "finished"}]


def judged(play, *runs):
    return compare([(run, diagnose(run)) for run in map(play, runs)])


def test_the_curriculum_is_the_suspect(play):
    said = judged(play, run_records(0.1), run_records(5.0))
    steps = {item.channel: item.step for item in said.partings}
    assert steps["weight/b"] == 301
    assert abs(steps["loss"] - 301) <= 20
    assert steps["contribution/a"] is None
    assert {item.path.partition(".")[0] for item in said.suspects} == {"curriculum_running"}


def test_the_only_setting_that_differs_is_the_suspect(play):
    worse = run_records(seed=2, lr=1e-4)
    for row in worse[300:-2]:
        row["loss"] *= 2
    said = judged(play, run_records(seed=1, lr=1e-3), worse)
    assert [(item.path, item.why) for item in said.suspects] == [("lr", "the only setting that differs")]


def test_no_setting_is_suspected_where_nothing_parts(play):
    assert judged(play, run_records(seed=1, lr=1e-3), run_records(seed=2, lr=1e-4)).suspects == ()


def test_seeds_of_one_setting_are_told_by_mean_and_spread(play):
    said = judged(play, run_records(seed=1), run_records(seed=2), run_records(seed=3), run_records(5.0, seed=4))
    assert said.seeds == ((0, 1, 2),)
    accuracy = next(item for item in said.values if item.channel == "valid metric/accuracy")
    assert accuracy.spread["0+1+2"] == (pytest.approx(0.52), pytest.approx(0.01))
    assert said.suspects == tuple(item for item in said.suspects if item.run == 3)
    assert all(item.step is None for item in said.partings if item.run in (1, 2))


def test_best_is_smallest_for_a_loss_and_largest_for_a_metric(make_run):
    run = make_run(
        {"loss": [3.0, 1.0, 2.0]},
        evals=[{"step": step, "split": "valid", "metric/accuracy": value} for step, value in ((1, 0.2), (2, 0.1))],
    )
    values = {item.channel: item for item in compare([(run, diagnose(run))] * 2).values}
    assert (values["loss"].final[0], values["loss"].best[0], values["loss"].best_step[0]) == (2.0, 1.0, 2)


@pytest.mark.parametrize("format_", ["text", "json", "markdown"])
def test_every_format(format_, write_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    paths = [write_run(run_records(0.1), "a.jsonl"), write_run(run_records(5.0), "b.jsonl")]
    assert main(["compare", *map(str, paths), "--format", format_]) == 0
    out = capsys.readouterr().out
    if format_ == "json":
        whole = json.loads(out)
        assert whole["version"] == 1
        assert {"runs", "config", "values", "findings", "partings", "suspects"} <= set(whole)
    else:
        assert "parts at step 30" in out
        assert "curriculum" in out


def test_runs_without_a_common_step_are_said(write_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    early = write_run([*run_records()[:100]], "a.jsonl")
    late = write_run([run_records()[0], *run_records()[500:600]], "b.jsonl")
    assert main(["compare", str(early), str(late)]) == 0
    assert "no step with a loss in common" in capsys.readouterr().out


def short_records(name: str, factor: float, **config: object) -> list[dict]:
    rows = [{"kind": "step", "step": step, "applied": step, "loss": factor * (1 + 1 / step)} for step in range(1, 11)]
    return [{"kind": "run", "schema": 1, "run": name, "id": name, "config": config}, *rows]


def told(play, *runs) -> str:
    return "\n".join(partings.summary(judged(play, *runs)))


def test_ten_epochs_are_too_few_to_judge_and_name_no_suspect(play):
    said = told(play, short_records("a", 1.0, lr=1), short_records("b", 5.0, lr=2))
    assert "too few common steps to judge whether the loss parts (10 of at least 40)" in said
    assert "it ends at 1.1 and at 5.5" in said
    assert "no parting" not in said
    assert "suspect" not in said
    comparison = judged(play, short_records("a", 1.0), short_records("b", 5.0))
    rows = next(section.rows for section in faces.sections(comparison) if section.title == "Where channels part")
    assert rows == [("loss", "b", "too few common steps to judge", "-")]


def test_what_was_set_is_told_as_far_as_it_is_known(play):
    assert "Nothing but the seed was set differently." in told(play, run_records(seed=1), run_records(seed=2))
    twins = told(play, run_records(), run_records())
    assert "Nothing was set differently." in twins
    assert "seed" not in twins
    renamed = told(play, run_records(name="one"), run_records(name="two"))
    assert "Nothing was set differently, names and folders aside." in renamed
    bare = told(play, short_records("a", 1.0), short_records("b", 1.0))
    assert "The settings of a and b were not recorded" in bare
    assert "The settings of b were not recorded" in told(play, run_records(name="one"), short_records("b", 1.0))


def test_one_common_row_proves_nothing(play):
    same = judged(play, short_records("a", 1.0)[:2], short_records("b", 1.0)[:2])
    assert (same.verdict.kind, same.verdict.confidence) == ("same", None)
    assert list(partings.certainty(same)) == ["1 common row, too few to say more."]


@pytest.mark.parametrize(
    ("value", "shown"),
    [("3", '"3"'), (3, "3"), ("1e-4", '"1e-4"'), ("true", '"true"'), ("cosine", "cosine"), (None, "None")],
)
def test_a_number_that_is_text_is_shown_as_text(value, shown):
    assert faces.setting(value) == shown


def test_repeats_are_not_called_seeds(play):
    titles = [section.title for section in faces.sections(judged(play, run_records(), run_records()))]
    assert any(title.startswith("Repeats of one setting") for title in titles)
    assert not any(title.startswith("Seeds") for title in titles)


def test_a_run_that_is_given_twice_is_compared_once(write_run, capsys):
    a, b = write_run(run_records(seed=1), "a.jsonl"), write_run(run_records(seed=2), "b.jsonl")
    assert main(["compare", str(a), str(a)]) == 2
    assert "more than once; name another" in capsys.readouterr().err
    assert main(["compare", str(b), str(a), str(b), "--format", "json"]) == 0
    assert [run["source"] for run in json.loads(capsys.readouterr().out)["runs"]] == [str(b), str(a)]


def test_five_suspects_are_named_and_the_others_counted(play):
    runs = []
    for lr in (1.0, 2.0):
        records = run_records(lr={f"lr_{letter}": lr for letter in "abcdefgh"})
        runs.append([{**row, "lr/main": lr} if row["kind"] == "step" else row for row in records])
    said = told(play, *runs)
    assert "The suspects are lr.lr_a, lr.lr_b, lr.lr_c, lr.lr_d, lr.lr_e and 3 more:" in said


def test_repeats_tell_of_levels_that_no_pair_of_curves_shows():
    """Each seed settles on a level of its own: chance without repeats, and known by them."""
    seeds = [curve(seed) * level for seed, level in ((0, 1.0), (1, 1.35), (2, 0.8), (3, 1.2))]
    assert part(STEPS, seeds[0], seeds[1]).parting is not None
    assert part(STEPS, seeds[0], seeds[1], repeats=[np.array([seeds[0], seeds[2], seeds[3]])]).parting is None
    assert part(STEPS, seeds[0], 6 * seeds[1], repeats=[np.array([seeds[0], seeds[2], seeds[3]])]).parting is not None


def test_what_was_not_seen_has_a_size():
    pair = part(STEPS, curve(0), curve(1))
    assert pair.unseen is not None
    assert part(STEPS, curve(0), curve(1) * (1 + 2 * pair.unseen)).parting is not None


def epochs(per_epoch: int, name: str, *, count: int = 10, tell: bool = True) -> list[dict]:
    """A loss that depends on how often the data was seen, whatever the batch."""
    steps = per_epoch * count
    noise = np.random.default_rng(per_epoch).normal(0, 0.02, steps)
    rows = []
    for step in range(1, steps + 1):
        seen = step / per_epoch
        loss = (3 * np.exp(-seen / 3) + 0.5) * (1 + noise[step - 1])
        row = {"kind": "step", "step": step, "applied": step, "loss": float(loss)}
        rows.append(row | ({"epoch": seen} if tell else {}))
    return [{"kind": "run", "schema": 1, "run": name, "id": name, "config": {"batch": 1000 // per_epoch}}, *rows]


def aligned_by(play, align: str, *runs):
    return compare([(run, diagnose(run)) for run in map(play, runs)], align)


def test_two_batch_sizes_part_by_step_and_not_by_epoch(play):
    runs = epochs(100, "small"), epochs(40, "large")
    by_step, by_epoch = aligned_by(play, "step", *runs), aligned_by(play, "epoch", *runs)
    assert next(item for item in by_step.partings if item.channel == "loss").step is not None
    loss = next(item for item in by_epoch.partings if item.channel == "loss")
    assert (loss.axis, loss.step, loss.pair.rows) == ("epoch", None, 200)
    assert by_epoch.notes == ()


def test_who_does_not_tell_the_axis_is_aligned_by_step_and_named(play):
    said = aligned_by(play, "epoch", epochs(100, "a"), epochs(100, "b", tell=False))
    assert {item.axis for item in said.partings} == {"step"}
    assert any("epoch is not in the log of b" in note for note in said.notes)


def test_rows_at_other_steps_are_compared_between_rows(play):
    sparse = [row for row in run_records(5.0) if row["kind"] != "step" or row["step"] % 10 == 5]
    dense = [row for row in run_records(0.1, seed=1) if row["kind"] != "step" or row["step"] % 4 == 0]
    said = judged(play, dense, sparse)
    loss = next(item for item in said.partings if item.channel == "loss")
    assert loss.step is not None
    assert abs(loss.step - 301) <= 60


def test_runs_without_settings_are_no_repeats_unless_their_names_say_so(play):
    assert judged(play, short_records("a", 1.0), short_records("b", 1.0)).seeds == ()
    assert judged(play, short_records("a-seed1", 1.0), short_records("a-seed2", 1.0)).seeds == ((0, 1),)


def test_the_run_in_question_is_no_witness_of_its_own_noise(play):
    """The mistake is in the code, so all four configs are one; three tell that the fourth is no seed."""
    sick = run_records(seed=4)
    for row in sick[300:-2]:
        row["loss"] *= 3
    said = judged(play, run_records(seed=1), run_records(seed=2), run_records(seed=3), sick)
    assert said.verdict.run == 3
    assert {item.run for item in said.partings if item.step is not None} == {3}
    loss = next(item for item in said.partings if item.run == 3 and item.channel == "loss")
    assert loss.repeats == 3


def test_confidence_says_what_it_rests_on(play):
    planned = judged(play, run_records(0.1), run_records(5.0))
    assert planned.verdict.confidence == 0.99
    assert "planned" in planned.verdict.rests_on[0]
    worse = run_records(seed=2, lr=1e-4)
    for row in worse[300:-2]:
        row["loss"] *= 1.4
    alone = judged(play, run_records(seed=1, lr=1e-3), worse).verdict
    assert (alone.confidence, alone.cause) == (0.9, 0.9)
    assert "own noise" in alone.rests_on[0]
    backed = judged(play, run_records(seed=1, lr=1e-3), worse, *(run_records(seed=n, lr=1e-3) for n in (5, 6))).verdict
    assert backed.confidence is not None
    assert backed.confidence > 0.9
    together = judged(play, run_records(seed=1), run_records(seed=2)).verdict
    assert (together.kind, together.confidence) == ("together", None)
    assert "would not be seen" in together.rests_on[0]


def test_what_chance_never_did_is_surer_also_where_no_setting_is_known_to_differ(play):
    """Code that differs is in no setting: ten times the loss is no matter of the seed."""
    little, much = run_records(seed=2), run_records(seed=2)
    for records, factor in ((little, 1.4), (much, 10.0)):
        for row in records[300:-2]:
            row["loss"] *= factor
    assert judged(play, run_records(seed=1), little).verdict.confidence == 0.5
    sure = judged(play, run_records(seed=1), much).verdict
    assert sure.confidence == 0.98
    assert "times the noise" in sure.rests_on[0]


def test_what_one_has_and_the_other_has_not_is_a_sentence(play):
    broken = run_records(seed=2)
    for row in broken[500:-2]:
        row["loss"] = float("nan")
    said = told(play, run_records(seed=1), broken)
    assert "has, and w0.1-s1 has not: non-finite-loss since step 500" in said


def test_speed_and_memory(play):
    runs = []
    for name, seconds in (("a", 0.1), ("b", 0.2)):
        rows = short_records(name, 1.0)
        extra = {"time/step": seconds, "time/data": 0.05, "memory/cuda_peak": 2.0**31, "memory/rss": 2.0**30}
        runs.append([row | (extra if row["kind"] == "step" else {}) for row in rows])
    section = next(one for one in faces.sections(judged(play, *runs)) if one.title == "Speed and memory")
    assert section.rows == [
        ("speed (median)", "10 steps/s", "5 steps/s"),
        ("wait for data (median)", "50 ms (50% of a step)", "50 ms (25% of a step)"),
        ("peak memory", "2 GiB cuda_peak", "2 GiB cuda_peak"),
    ]


def forty() -> list[list[dict]]:
    return [run_records(0.1 if n % 4 else 5.0, seed=n, lr=1e-3 if n % 2 else 1e-4) for n in range(40)]


def test_forty_runs_have_no_column_each(play):
    said = judged(play, *forty())
    found = {section.title: section for section in faces.sections(said)}
    assert max(len(section.head) for section in found.values()) <= 7
    assert len(found["Runs, the best first"].rows) == 40
    accuracy = [float(row[2]) for row in found["Runs, the best first"].rows]
    assert accuracy == sorted(accuracy, reverse=True)  # the runs weigh their losses otherwise: the metric ranks
    groups = found["Groups of one setting"].rows
    assert len(groups) == 3
    assert "±" in groups[0][2]


def test_a_page_without_network_in_which_hostile_names_stay_text(tmp_path, write_run):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    paths = []
    for name, weight in (("a.jsonl", 0.1), ("b.jsonl", 5.0)):
        records = run_records(weight, **{evil: weight})
        records[0]["run"] = evil
        for row in records:
            if row["kind"] == "step":
                row[f"loss/{evil}"] = row["loss/a"]
        paths.append(str(write_run(records, name)))
    target = tmp_path / "x.html"
    assert main(["compare", *paths, "-o", str(target)]) == 0
    page = target.read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "prefers-color-scheme:dark" in page
    assert page.count('class="chart"') >= 3
    assert len(page) < 1_000_000


def test_a_page_of_another_kind_is_refused(write_run, capsys):
    paths = [str(write_run(run_records(seed=seed), f"{seed}.jsonl")) for seed in (1, 2)]
    assert main(["compare", *paths, "-o", "x.pdf"]) == 2
    assert ".html, .md or .json" in capsys.readouterr().err


def rows(path, losses):
    """A log of JSON lines with one loss a step."""
    path.write_text("".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in enumerate(losses)))
    return path


def test_runs_that_are_never_finite_agree_in_nothing(tmp_path, capsys):
    first, other = (rows(tmp_path / name, [float("nan")] * 60) for name in ("a.jsonl", "b.jsonl"))
    assert main(["compare", str(first), str(other)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("a and b: the loss is finite in none of the 60 common steps.")
    assert "number by number" not in said
    assert "Sure to" not in said


def test_a_folder_alone_is_told_from_a_run_alone(tmp_path, capsys):
    rows(tmp_path / "a.jsonl", [1.0, 2.0])
    assert main(["compare", str(tmp_path)]) == 2
    assert "is a folder; name the runs in it" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "a.jsonl")]) == 2
    assert "needs at least two runs" in capsys.readouterr().err


def test_columns_in_which_many_runs_tell_nothing_are_left_out(tmp_path, capsys):
    paths = [str(rows(tmp_path / f"{name}.jsonl", [1.0 + name / 1000] * 60)) for name in range(8)]
    assert main(["compare", *paths, "--format", "markdown"]) == 0
    head = next(line for line in capsys.readouterr().out.splitlines() if "final loss" in line)
    assert [cell.strip() for cell in head.strip("|").split("|")][1:] == ["run", "final loss", "worst"]


def test_a_page_that_cannot_be_put_in_its_place_leaves_nothing_behind(tmp_path, capsys):
    first, other = (rows(tmp_path / name, [1.0] * 60) for name in ("a.jsonl", "b.jsonl"))
    (tmp_path / "c.html").mkdir()
    assert main(["compare", str(first), str(other), "-o", str(tmp_path / "c.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl", "c.html"}


def test_how_a_component_is_described_is_no_suspect():
    assert about_seed("components.spectrum.description")
    assert not about_seed("components.spectrum.unit")


def test_runs_of_one_name_are_told_apart_by_as_much_of_their_path_as_it_takes():
    paths = ["logs/a/run.jsonl", "logs/b/run.jsonl", "logs/c/other.jsonl"]
    assert named([("run", paths[0]), ("run", paths[1]), ("third", paths[2])]) == ["a/run", "b/run", "third"]
    assert named([("run", "a/run.jsonl"), ("run", "b/run.jsonl")]) == ["a/run", "b/run"]
    assert named([("run", "x/first.jsonl"), ("run", "x/second.jsonl")]) == ["first", "second"]
    assert named([("run", "a/lr0.1"), ("run", "a/lr0.2")]) == ["lr0.1", "lr0.2"]
    assert named([("run", "[path]"), ("run", "[path]")]) == ["[path] #1", "[path] #2"]
    assert named([("run", "a.csv"), ("run", "a.json")]) == ["a #1", "a #2"]


@pytest.mark.parametrize(
    ("name", "falls"),
    [
        *(("loss", True), ("validation loss/kl", True), ("validation metric/RMSE", True), ("metric/abs_REL", True)),
        *(("metric/accuracy", False), ("validation metric/Delta_1", False), ("metric/mIoU", False)),
    ],
)
def test_the_best_of_a_metric_goes_by_its_name_however_it_is_written(name, falls):
    """The best RMSE is the smallest."""
    assert should_fall(name) is falls
