"""confounded-stage: boundaries that change several factors at once."""


def plan(*stages):
    listed = [{"start": 100 * index, **stage} for index, stage in enumerate(stages)]
    return {"total_steps": 400, "curriculum": {"name": "P", "stages": listed}}


def test_several_factors_at_one_boundary(make_run, judge):
    """Said once, with the worst boundary."""
    one = {"data": {"length": [7, 10], "noise": [0, 0]}, "weights": {"a": 1, "b": 0}}
    two = {"data": {"length": [7, 12], "noise": [0, 0]}, "weights": {"a": 1, "b": 0.5}}
    three = {"data": {"length": [7, 15], "noise": [0, 2]}, "weights": {"a": 1, "b": 0.7}}
    (found,) = judge(make_run({}, header=plan(one, two, three)), "confounded-stage")
    assert (found.severity, found.first_step, found.last_step) == ("info", 100, 200)
    assert found.evidence == {"boundaries": 2, "confounded": 2, "factors": 3}
    assert "length, noise, the weight of b" in found.message


def test_one_factor_at_a_time(make_run, judge):
    """Several weights are one balance; what only one stage speaks of is not known to change."""
    stages = ({"weights": {"a": 1, "b": 0}}, {"weights": {"a": 0.5, "b": 0.5}}, {"data": {"length": [7, 9]}})
    assert judge(make_run({}, header=plan(*stages)), "confounded-stage") == []
    assert judge(make_run({}, header={"total_steps": 5}), "confounded-stage") == []
