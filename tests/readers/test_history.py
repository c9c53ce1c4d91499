"""Histories written as one JSON document: lists of numbers, or a list of objects."""

import json

import pytest

from trainwatch.readers import ReadError, read, read_all

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
        [{"lr": 0.1, "loss": 0.5, "acc": 0.75}, {"lr": 0.01, "loss": 0.25, "acc": 0.5}],
        {"predictions": [{"id": 1, "loss": 0.5}, {"id": 2, "loss": 0.25}]},
        {"betas": [0.9, 0.99], "acc": [1, 2], "milestones": [30, 60, 90], "rewards": [1, 2]},
    ],
)
def test_what_is_no_history(tmp_path, document):
    """Several trainings in one document, results of a test or of a search, settings."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ReadError):
        read(path)


def of_document(tmp_path, document):
    """The training that one document holds."""
    path = tmp_path / "history.json"
    path.write_text(json.dumps(document))
    return read(path)


@pytest.mark.parametrize(("evaluations", "steps"), [(11, [0, *range(10)]), (10, range(10)), (9, range(9))])
def test_an_evaluation_before_training_and_an_interruption(tmp_path, evaluations, steps):
    """One more than there are rows, as many, one less: the losses of training stay whole."""
    losses = [float(10 - i) for i in range(10)]
    run = of_document(tmp_path, {"loss": losses, "val_loss": [11.0 - i for i in range(evaluations)]})
    assert run.train["loss"].tolist() == losses
    assert run.eval["loss"].tolist() == [11.0 - i for i in range(evaluations)]
    assert run.eval.step.tolist() == list(steps)
    assert not run.notes


def test_a_list_that_fits_no_rows_is_named(tmp_path):
    """Two evaluations beside five rows: nothing tells of which."""
    run = of_document(tmp_path, {"loss": [5.0, 4.0, 3.0, 2.0, 1.0], "val_loss": [2.5, 2.0]})
    assert run.train["loss"].tolist() == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert [note for note in run.notes if "val_loss" in note]


def test_one_epoch(tmp_path):
    """A history of a single epoch has one row."""
    run = of_document(tmp_path, {"loss": [3.0], "val_loss": [2.5]})
    assert (run.train["loss"].tolist(), run.eval["loss"].tolist()) == ([3.0], [2.5])


@pytest.mark.parametrize(
    "text",
    [
        b'{"loss":[3,2,1],"caf\xe9":[1,2,3]}',
        b'{"loss":[1,2,' + b"9" * 5000 + b"]}",
        b'{"loss":[1,2,3],"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"loss":[3,2,1',
        b'{"loss":[' + b"1.5," * (3 << 20) + b"1]}",
    ],
    ids=["Latin-1", "a long number", "deep", "cut off", "large"],
)
def test_a_history_that_cannot_be_read_says_why(tmp_path, text):
    """It begins with a list of losses, so it is not said to be without a loss."""
    path = tmp_path / "history.json"
    path.write_bytes(text)
    with pytest.raises(ReadError, match=r"cut off or no JSON|larger than"):
        read(path)


def test_json_lines_with_lists_of_losses_stay_json_lines(tmp_path):
    """Several objects are no document, however they end."""
    path = tmp_path / "log.json"
    path.write_text("".join(f'{{"parts_loss": [1, 2], "step": {i}, "loss": {9 - i}}}\n' for i in range(5)))
    assert read(path).format == "JSON lines"


def test_a_long_history_is_read_in_parts(tmp_path):
    """Losses of 45,000 steps, an evaluation every 1,000."""
    losses = [1.0 + 1.0 / (1 + i) for i in range(45_000)]
    run = of_document(tmp_path, {"train_losses": losses, "val_losses": [float(i) for i in range(45)]})
    assert run.train["loss"].tolist() == losses
    assert run.eval.step.tolist() == list(range(999, 45_000, 1000))


def test_an_evaluation_before_the_first_epoch(tmp_path):
    """The epochs count the losses."""
    run = of_document(
        tmp_path, {"epoch": [1, 2, 3], "train_loss": [3.0, 2.0, 1.0], "val_acc": [0.125, 0.25, 0.5, 0.75]}
    )
    assert (run.train.step.tolist(), run.train["loss"].tolist()) == ([1, 2, 3], [3.0, 2.0, 1.0])
    assert run.eval.step.tolist() == [0, 1, 2, 3]


def test_a_document_with_figures_beside_its_lists_is_no_console_output(tmp_path):
    """A number a line for each list, and the last test's loss with its name: the lists are the training."""
    losses = [3.0 - 0.125 * i for i in range(20)]
    document = {"config": {"lr": 0.5}, "epochs": [*range(1, 21)], "train_loss": losses, "val_loss": losses}
    path = tmp_path / "training_history.json"
    path.write_text(json.dumps({**document, "test_loss": 1.25, "test_wer": 0.5}, indent=2))
    run = read(path)
    assert run.format == "JSON history"
    assert (run.train.step.tolist(), run.train["loss"].tolist()) == ([*range(1, 21)], losses)
    assert (run.eval.step[-1], run.eval["metric/wer"][-1], run.eval.text["split"][20]) == (20, 0.5, "test")


def test_two_trainings_whose_names_begin_with_their_own_word(tmp_path):
    """Each has a loss and its validation, of another length: two trainings, and nothing of either is left out."""
    first = {"cnn_loss": [3.0, 2.0, 1.5, 1.25, 1.0], "cnn_val_loss": [3.5, 2.5, 2.0, 1.75, 1.5]}
    second = {"rnn_loss": [0.75, 0.5, 0.25], "rnn_val_loss": [1.0, 0.75, 0.5], "rnn_val_accuracy": [0.25, 0.5, 0.75]}
    path = tmp_path / "history.json"
    path.write_text(json.dumps({**first, **second}))
    cnn, rnn = read_all(path)
    assert (cnn.name, cnn.train["loss"].tolist()) == ("history/cnn", first["cnn_loss"])
    assert (rnn.name, rnn.train["loss"].tolist()) == ("history/rnn", second["rnn_loss"])
    assert rnn.eval["loss"].tolist() == second["rnn_val_loss"]
    assert not cnn.notes + rnn.notes


def test_heads_of_one_length_are_one_training(tmp_path):
    """The losses of a box and of a class, each with its validation."""
    lists = {f"{head}{side}_loss": [3.0, 2.0, 1.5] for head in ("box", "cls") for side in ("", "_val")}
    path = tmp_path / "history.json"
    path.write_text(json.dumps(lists))
    (run,) = read_all(path)
    assert run.components() == ["box", "cls"]


def test_an_object_for_each_epoch_is_one_column(tmp_path):
    """What the epochs count are the rows; what the objects hold is said to be left out."""
    counts = [{"crop": 4, "flip": i} for i in range(3)]
    run = of_document(tmp_path, {"epoch": [1, 2, 3], "val_acc": [0.25, 0.5, 0.75], "lr": [0.5, 0.25, 0], "aug": counts})
    assert run.eval["metric/acc"].tolist() == [0.25, 0.5, 0.75]
    assert [note for note in run.notes if note.startswith("aug is left out")]
