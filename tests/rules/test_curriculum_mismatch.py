"""curriculum-mismatch: told by identity before the first step, by the weights where identity is not recorded."""

import copy

import numpy as np
import pytest

RULE = "curriculum-mismatch"


def plan(name: str, late: float, **extra) -> dict:
    stages = [
        {"start": 0, "end": 80, "name": "clean", "weights": {"sequence": 1.0, "precursor": 0.0}},
        {"start": 80, "end": 1000, "name": "mass", "weights": {"sequence": 1.0, "precursor": late}},
    ]
    return {"name": name, "stages": stages, **extra}


EXTENDED, DEFAULT = plan("EXTENDED", 0.01), plan("DEFAULT", 0.5, source="trainer/curriculum.py")


def test_it_is_known_before_the_first_step(make_run, judge):
    """Both begin alike: the values differ only from step 80 on."""
    (finding,) = judge(make_run(header={"curriculum": EXTENDED, "curriculum_running": DEFAULT}, end=None), RULE)
    assert (finding.severity, finding.first_step) == ("critical", 0)
    assert finding.evidence["parts_at_step"] == 80
    assert finding.evidence["running_weight"] == 0.5
    assert "trainer/curriculum.py" in finding.message


def test_a_config_that_names_the_running_one_elsewhere_gets_a_patch(make_run, judge):
    """The second source of truth is in the config itself."""
    header = {"curriculum": EXTENDED, "curriculum_running": DEFAULT, "config": {"loop": {"curriculum_name": "DEFAULT"}}}
    (finding,) = judge(make_run(header=header), RULE)
    assert finding.patch == {"loop.curriculum_name": "EXTENDED"}


def test_names_alone_are_enough(make_run, judge):
    """A config that only names its curriculum, a loop that only names what it runs."""
    header = {"config": {"curriculum": "EXTENDED"}, "curriculum_running": {"name": "DEFAULT"}}
    assert len(judge(make_run(header=header), RULE)) == 1


def test_the_same_name_with_other_stages_is_another_curriculum(make_run, judge):
    """A copy that drifted."""
    header = {"curriculum": EXTENDED, "curriculum_running": plan("EXTENDED", 0.4)}
    assert len(judge(make_run(header=header), RULE)) == 1


@pytest.mark.parametrize(
    "header",
    [
        {"curriculum": EXTENDED, "curriculum_running": copy.deepcopy(EXTENDED)},
        {"curriculum": EXTENDED, "curriculum_running": {"name": "extended"}},
        {"curriculum": EXTENDED},
        {"curriculum_running": DEFAULT},
        {},
    ],
)
def test_silent_when_nothing_contradicts(header, make_run, judge):
    """What is not told is not held against the run."""
    assert judge(make_run(header=header), RULE) == []


def test_two_names_for_the_same_stages_are_mentioned_only(make_run, judge):
    """An info."""
    header = {"curriculum": EXTENDED, "curriculum_running": plan("EXTENDED_V1", 0.01)}
    assert [finding.severity for finding in judge(make_run(header=header), RULE)] == ["info"]


def test_weights_that_fit_no_declared_stage_from_the_first_row(make_run, judge):
    """Without a recorded identity."""
    columns = {"weight/sequence": np.ones(40), "weight/precursor": np.full(40, 0.3)}
    (finding,) = judge(make_run(columns, header={"curriculum": EXTENDED}), RULE)
    assert (finding.first_step, finding.last_step) == (1, 20)
    assert finding.confidence < 1


def test_weights_that_began_as_declared_are_not_judged_here(make_run, judge):
    """A later difference is curriculum-weight-drift's."""
    precursor = np.where(np.arange(60) < 10, 0.0, 0.3)
    columns = {"weight/sequence": np.ones(60), "weight/precursor": precursor}
    assert judge(make_run(columns, header={"curriculum": EXTENDED}), RULE) == []


@pytest.mark.parametrize("config", [{"curriculum": "EXTENDED"}, {"training": {"curriculum": {"name": "EXTENDED"}}}])
def test_a_config_that_names_another_than_the_run_was_told(config, make_run, judge):
    """`Recorder(config=cfg, curriculum=DEFAULT)` where cfg says EXTENDED."""
    (finding,) = judge(make_run(header={"config": config, "curriculum": DEFAULT}), RULE)
    assert finding.evidence["declared"] == "EXTENDED"


@pytest.mark.parametrize("said", ["linear", "configs/plan.yaml", "default_v2", True])
def test_what_is_no_other_name_is_not_held_against_the_run(said, make_run, judge):
    """A kind, a path, a longer form of the same name."""
    assert judge(make_run(header={"config": {"curriculum": said}, "curriculum": DEFAULT}), RULE) == []
