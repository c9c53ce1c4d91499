"""Histories written as one JSON document: lists of numbers, or a list of objects."""

import json

import pytest

from trainwatch.readers import ReadError, read

HISTORIES = {
    "Keras": {"loss": [2.5, 2.0, 1.5, 1.25], "val_loss": [2.75, 2.25, 2.0, 2.0], "accuracy": [0.25, 0.5, 0.5, 0.75]},
    "below a key": {
        "config": {"lr": 0.001},
        "history": {"loss": [2.5, 2.0, 1.5, 1.25], "val_loss": [2.75, 2.25, 2, 2]},
    },
    "a side each": {"train": {"loss": [2.5, 2.0, 1.5, 1.25]}, "val": {"loss": [2.75, 2.25, 2.0, 2.0]}},
    "records": [
        {"model/parameters": 512},
        *(
            {"epoch": i, "train_loss": a, "val_loss": b}
            for i, a, b in [(0, 2.5, 2.75), (1, 2, 2.25), (2, 1.5, 2), (3, 1.25, 2)]
        ),
    ],
}


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("indent", [None, 2])
def test_each_history(tmp_path, history, indent):
    """A row for each epoch, the evaluation beside it."""
    path = tmp_path / "history.json"
    path.write_text(json.dumps(HISTORIES[history], indent=indent))
    run = read(path)
    assert run.train["loss"].tolist() == [2.5, 2.0, 1.5, 1.25]
    assert run.eval["loss"].tolist() == [2.75, 2.25, 2.0, 2.0]
    assert run.train.step.tolist() == [0, 1, 2, 3]


def test_a_shorter_list_has_a_number_for_each_part(tmp_path):
    """A loss for each step, an evaluation for each epoch."""
    path = tmp_path / "losses.json"
    path.write_text(json.dumps({"train_losses": [4.0, 3.0, 2.0, 1.0], "val_losses": [3.5, 1.5]}))
    run = read(path)
    assert run.train["loss"].tolist() == [4.0, 3.0, 2.0, 1.0]
    assert run.eval.step.tolist() == [1, 3]


@pytest.mark.parametrize(
    "document",
    [
        {"first": {"loss": [2.5, 2.0]}, "second": {"loss": [3.5, 3.0]}},  # two trainings: which is meant?
        [{"question": 1, "accuracy": 0.5}, {"question": 2, "accuracy": 0.75}],
        {"shape": [3, 224, 224], "name": "resnet"},
    ],
)
def test_what_is_no_history(tmp_path, document):
    """Several trainings in one document, results of a test, settings."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ReadError):
        read(path)
