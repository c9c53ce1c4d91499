"""training-mode-evaluation: the recorder saw dropout or batch norm in training mode while the model was evaluated."""

import pytest

RULE = "training-mode-evaluation"


def evals(*counts, split="validation", kind="dropout"):
    return [
        {"step": 10 * (i + 1), "split": split, "loss": 1.0, f"training_mode/{kind}": count}
        for i, count in enumerate(counts)
    ]


def test_it_is_told_from_the_first_evaluation_on(make_run, judge):
    (found,) = judge(make_run({"loss": [1.0] * 20}, evals=evals(3)), RULE)
    assert (found.severity, found.subject, found.first_step, found.state) == (
        "warning",
        "split:validation",
        10,
        "active",
    )
    assert found.message.startswith("3 dropout modules are in training mode in 1 of 1 evaluations of validation")


def test_what_was_mended_is_over(make_run, judge):
    (found,) = judge(make_run({"loss": [1.0] * 50}, evals=evals(0, 1, 1, 0, kind="batch_norm")), RULE)
    assert (found.first_step, found.last_step, found.state) == (20, 30, "over")
    assert found.message.startswith("1 batch norm module is in training mode in 2 of 4 evaluations")


@pytest.mark.parametrize("rows", [evals(0, 0, 0), evals(3, 3, split="train"), [{"step": 10, "loss": 1.0}]])
def test_eval_mode_and_training_data_are_left_alone(make_run, judge, rows):
    assert judge(make_run({"loss": [1.0] * 50}, evals=rows), RULE) == []


@pytest.mark.usefixtures("nothing_compiled")
def test_a_real_model_that_is_never_put_in_eval_mode_is_told(tmp_path):
    torch = pytest.importorskip("torch")
    import trainwatch

    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 2))
    with trainwatch.Recorder(tmp_path / "run.jsonl") as watch:
        watch.attach(net)
        for step in range(1, 4):
            watch.losses({"loss": net(torch.randn(3, 4)).square().mean()}).backward()
            watch.step()
            with watch.phase("eval"), torch.no_grad():
                watch.evaluate(step, "validation", {"loss": net(torch.ones(3, 4)).square().mean()})
    told = [one for one in trainwatch.diagnose(trainwatch.read(tmp_path / "run.jsonl")).findings if one.rule == RULE]
    assert [(one.severity, one.first_step, one.evidence["dropout"]) for one in told] == [("warning", 1, 1)]
