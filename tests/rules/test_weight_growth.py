"""weight-growth: norms that grow without end."""

import numpy as np
import pytest

RULE = "weight-growth"
N = 1000
ROW = np.arange(N)
SAMPLED = (ROW == 0) | ((ROW + 1) % 50 == 0)


def run_of(norm, loss=None):
    return {"weight_norm/main": np.where(SAMPLED, norm, np.nan), "loss": np.ones(N) if loss is None else loss}


def test_growth_without_end_is_an_alarm_where_nothing_is_learned(make_run, judge):
    """An info while the loss falls; an alarm at a thousand times, whatever the loss does."""
    growing = 10 * np.exp(ROW / 250)
    falls = 3 * np.exp(-ROW / 300)
    (finding,) = judge(make_run(run_of(growing)), RULE)
    assert (finding.severity, finding.subject) == ("warning", "group:main")
    assert finding.evidence["growth"] > 50
    assert [f.severity for f in judge(make_run(run_of(growing, falls)), RULE)] == ["info"]
    assert [f.severity for f in judge(make_run(run_of(growing**2.5, falls)), RULE)] == ["warning"]


HEALTHY = {
    "weights that begin at 0 and grow as the root": np.sqrt(ROW),
    "a start, and then a level": 1 + 30 * (1 - np.exp(-ROW / 150)),
    "the root of the steps from a small start": 0.1 + np.sqrt(ROW / 10),
    "three times in all": 10 + 20 * ROW / N,
    "weight decay": 10 * np.exp(-ROW / 300),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_healthy(case, make_run, judge):
    """None of them grows without end."""
    assert judge(make_run(run_of(HEALTHY[case])), RULE) == []


def test_a_loss_that_turned_when_the_weights_had_grown(make_run, judge):
    """It is judged since then, and dated before; weights that leapt once and stand are none."""
    turned = np.where(ROW < 300, 3 * np.exp(-ROW / 100), 0.15 + (ROW - 300) / 1000)
    (finding,) = judge(make_run(run_of(10 * np.exp(ROW / 250), turned)), RULE)
    assert (finding.severity, finding.first_step) == ("warning", 1)
    assert judge(make_run(run_of(np.where(ROW < 600, 10.0, 200.0))), RULE) == []


def test_what_feeds_on_itself_needs_four_times_alone(make_run, judge):
    """The same factor from each sample to the next; not steps added up, nor one leap; a game's loss proves nothing."""
    itself = {name: values[:200] for name, values in run_of(10 * np.exp(ROW / 100), 2 + ROW / 100).items()}
    (finding,) = judge(make_run(itself), RULE)
    assert (finding.severity, finding.first_step) == ("warning", 1)
    assert judge(make_run(itself | {"loss/actor": itself["loss"]}), RULE) == []
    for norm in (10 + 0.3 * ROW, np.where(ROW < 120, 10.0, 70.0)):
        assert judge(make_run({name: values[:200] for name, values in run_of(norm, 2 + ROW / 100).items()}), RULE) == []


def test_an_early_look_at_a_last_layer_that_learns(make_run, judge):
    """Three times in three samples, as evenly as what feeds on itself; but the loss falls to a tenth meanwhile."""
    early = {name: values[:100] for name, values in run_of(2 * np.exp(ROW / 90), 27 * np.exp(-ROW / 35)).items()}
    assert judge(make_run(early), RULE) == []
    assert judge(make_run(early | {"loss": 27 + 0 * ROW[:100]}), RULE) != []


SHORT = np.arange(150)
FEW = (SHORT == 0) | ((SHORT + 1) % 50 == 0)


def short(norm, ratio, loss=None):
    columns = {"weight_norm/main": norm, "update_ratio/main": ratio}
    return {name: np.where(FEW, values, np.nan) for name, values in columns.items()} | {
        "loss": np.where(SHORT < 60, 1.0, 3.0) if loss is None else loss
    }


def test_updates_that_go_along_the_weights(make_run, judge):
    """Four samples of a rate that falls are enough; not where the updates are large and go across, or it is learned."""
    rate = (1 + np.cos(np.pi * SHORT / 150)) / 2
    norm = 10 * np.exp(np.cumsum(0.04 * rate))
    (finding,) = judge(make_run(short(norm, 0.04 * rate)), RULE)
    assert (finding.severity, finding.subject, finding.first_step) == ("warning", "group:main", 1)
    assert judge(make_run(short(norm, 0.2 * rate)), RULE) == []
    assert judge(make_run(short(10 + SHORT / 10, 0.04 * rate)), RULE) == []
    falls = short(norm, 0.04 * rate, np.exp(-SHORT / 50))
    assert [found.severity for found in judge(make_run(falls), RULE)] == ["info"]


def test_a_game_proves_it_by_everything_at_once(make_run, judge):
    """Six times, by one factor, as most of what the updates did; less is what policies and critics do."""
    score = {"reward/return": np.zeros(150)}
    cases = ((20.0, 0.02, ["warning"]), (8.0, 0.015, ["warning"]), (20.0, 0.04, []), (20.0, 0.2, []), (5.0, 0.012, []))
    for times, ratio, severities in cases:
        run = make_run(short(10 * times ** (SHORT / 149), np.full(150, ratio)) | score)
        assert [found.severity for found in judge(run, RULE)] == severities


def test_the_very_same_factor_in_a_short_run(make_run, judge):
    """Three samples of a hundredth a step; a line to as much is none."""
    for norm, count in ((10 * 1.01**SHORT, 1), (10 + 0.3 * SHORT, 0)):
        columns = {name: values[:110] for name, values in short(norm, np.full(150, 0.005)).items()}
        assert len(judge(make_run(columns), RULE)) == count


def test_a_component_that_comes_in_late_says_nothing_of_the_weights(make_run, judge):
    """The total rises because one more thing is counted; at one weighting the loss falls all along."""
    growing = 10 * np.exp(ROW / 250)
    main, extra, late = 3 * np.exp(-ROW / 300), 5 * np.exp(-ROW / 2000), np.clip((ROW - 600) / 100, 0, 1)
    columns = run_of(growing, main + late * extra)
    assert [found.severity for found in judge(make_run(columns), RULE)] == ["warning"]
    told = {"loss/main": main, "weight/main": np.ones(N), "loss/extra": extra, "weight/extra": late}
    assert [found.severity for found in judge(make_run(columns | told), RULE)] == ["info"]


def test_weights_that_blew_up_before_the_second_sample(make_run, judge):
    """Sixty times in one sample, and then they stand: others name the leap."""
    leapt = short(np.where(SHORT == 0, 10.0, 600 + SHORT / 20), np.full(150, 1e-5))
    assert judge(make_run(leapt), RULE) == []


def test_weights_that_are_all_off_at_last_hide_no_loss(make_run, judge):
    """Then the total itself is looked at: it falls."""
    falls, weight = 3 * np.exp(-ROW / 300), (ROW < 900).astype(float)
    columns = run_of(10 * np.exp(ROW / 250), falls) | {"weight/a": weight, "loss/a": falls}
    assert [found.severity for found in judge(make_run(columns), RULE)] == ["info"]


@pytest.mark.parametrize(("validation", "severity"), [(1.0, "info"), (2.0, "warning")])
def test_what_is_learned_by_heart_is_no_excuse(validation, severity, make_run, judge):
    """The training loss falls, and the held-out loss has risen from its best: the growth is paid for."""
    evals = [{"step": step, "loss": 0.5 * (validation if step > 500 else 1)} for step in range(50, N + 1, 50)]
    (finding,) = judge(make_run(run_of(10 * np.exp(ROW / 250), 3 * np.exp(-ROW / 300)), evals=evals), RULE)
    assert finding.severity == severity
