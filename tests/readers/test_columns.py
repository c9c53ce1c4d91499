"""Columns of text: each layout that a trainer leaves, and what is none."""
# ruff: noqa: E501

import pytest

from trainwatch.readers import ReadError, open_run, read, read_all

LAYOUTS = {
    "Ultralytics": (
        "                  epoch,         train/box_loss,         train/cls_loss,   metrics/mAP50(B),         val/box_loss,                 lr/pg0\n"
        "                      1,                 1.25,                   3.5,              0.25,                  1.5,                0.003\n"
        "                      2,                 1.125,                  2.5,              0.5,                   1.25,               0.006\n",
        {"loss/box": [(1, 1.25), (2, 1.125)], "loss/cls": [(1, 3.5), (2, 2.5)], "lr/pg0": [(1, 0.003), (2, 0.006)]},
        {"loss/box": [(1, 1.5), (2, 1.25)], "metric/mAP50_B": [(1, 0.25), (2, 0.5)]},
    ),
    "Lightning": (
        "epoch,step,train_loss,val_loss\n0,49,0.5,\n0,99,0.25,\n0,99,,0.75\n1,149,0.125,\n",
        {"loss": [(49, 0.5), (99, 0.25), (149, 0.125)]},
        {"loss": [(99, 0.75)]},
    ),
    "TSV": ("step\tloss\tdev_loss\n1\t2.5\t2.75\n2\tnan\tinf\n", {"loss": [(1, 2.5)]}, {"loss": [(1, 2.75)]}),
    "decimal commas": ("step;loss;lr\n1;2,5;1e-3\n2;1,25;1e-3\n", {"loss": [(1, 2.5), (2, 1.25)]}, {}),
    "DeePMD": (
        "#  step      rmse_val    rmse_trn    lr\n# If there is no available reference data, rmse_*_{val,trn} will print nan\n"
        "      0      1.50e+01    1.25e+01    1.0e-03\n    100      1.00e+00    5.00e-01    9.0e-04\n",
        {"lr/main": [(0, 0.001), (100, 0.0009)]},
        {"metric/rmse": [(0, 15.0), (100, 1.0)]},
    ),
    "DeepXDE": (
        "# step, loss_train, loss_test, metrics_test\n0.000000000000000000e+00 2.5e+00 2.75e+00\n1.000000000000000000e+03 5.0e-01 7.5e-01\n",
        {"loss": [(0, 2.5), (1000, 0.5)]},
        {"loss": [(0, 2.75), (1000, 0.75)]},
    ),
    "two columns": ("1 8.5\n2 7.5\n3 7.25\n4 7.0\n", {"loss": [(1, 8.5), (2, 7.5), (3, 7.25), (4, 7.0)]}, {}),
    "export of W&B": (
        '"Step","run 7 - lm_loss","run 7 - lm_loss__MIN","run 7 - lm_loss__MAX"\n"4","12.5","12.5","12.5"\n"52","9.5","9.5","9.5"\n',
        {"loss": [(4, 12.5), (52, 9.5)]},
        {},
    ),
    "a header that was written again": (
        "step,loss\n1,2.5\n2,2.0\nstep,loss\n3,1.5\n",
        {"loss": [(1, 2.5), (2, 2.0), (3, 1.5)]},
        {},
    ),
}


def curve(run, channel, table):
    rows = run.table(table)
    return [
        (step, value) for step, value in zip(rows.step.tolist(), rows[channel].tolist(), strict=True) if value == value
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout(tmp_path, layout):
    """Steps, losses and evaluations."""
    text, train, evaluated = LAYOUTS[layout]
    path = tmp_path / "results.csv"
    path.write_text(text)
    run = read(path)
    assert run.format == "columns (CSV, TSV)"
    for table, expected in (("train", train), ("eval", evaluated)):
        for channel, values in expected.items():
            assert curve(run, channel, table) == values, (table, channel)


def test_non_finite_cells_are_kept(tmp_path):
    """nan and inf are values; an empty cell is none."""
    path = tmp_path / "log.tsv"
    path.write_text("step\tloss\tdev_loss\n1\t2.5\t\n2\tnan\t-inf\n3\tInfinity\t1.0\n")
    run = read(path)
    assert run.train.codes("loss").tolist() == [0, 1, 2]
    assert run.eval.codes("loss").tolist() == [3, 0]


def test_an_evaluation_that_is_nothing_but_zeros_was_not_made(tmp_path):
    """A loss of 0 beside an accuracy of 0; beside an error rate of 0, or by itself, it is what was measured."""
    path = tmp_path / "results.csv"
    path.write_text(
        "epoch,train/box_loss,metrics/recall(B),metrics/mAP50(B),val/box_loss\n"
        "1,2.5,0,0,0\n2,2.0,0,0,0\n3,1.5,0,0,1.75\n4,1.25,0.5,0.5,1.5\n"
    )
    run = read(path)
    assert curve(run, "loss", "train") == [(1, 2.5), (2, 2.0), (3, 1.5), (4, 1.25)]
    assert curve(run, "loss", "eval") == [(3, 1.75), (4, 1.5)]
    assert sum("were not made" in note for note in run.notes) == 1
    for figure in ("val_wer", "val_seconds"):
        path.write_text(f"epoch,loss,val_loss,{figure}\n1,2.5,0,0\n2,2.0,0,0\n")
        assert curve(read(path), "loss", "eval") == [(1, 0.0), (2, 0.0)]


def test_rows_of_another_width_are_counted(tmp_path):
    """A torn line, a warning that was printed into the file."""
    path = tmp_path / "log.csv"
    path.write_text("step,loss,lr\n1,2.5,0.1\nWarning, something\n2,1.5,0.1\n3,1.")
    run = read(path)
    assert curve(run, "loss", "train") == [(1, 2.5), (2, 1.5)]
    assert any("skipped 2 lines" in note for note in run.notes)


def test_epochs_that_begin_again_are_another_run(tmp_path):
    """Keras' CSVLogger with append=True."""
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss\n" + "".join(f"{e},{1 / (e + 1)}\n" for e in (*range(5), *range(8))))
    assert [(run.nth, run.train.size) for run in read_all(path)] == [(1, 5), (2, 8)]


@pytest.mark.parametrize(
    "text",
    [
        "name,age\nx,3\ny,4\n",
        "a b c\n1 2 3\n4 5 6\n",
        "1 2\n1 3\n1 4\n",
        "a,b\n",
        "step,loss\nx,y\nz,w\n",
        "1,2\n3,4\n",
    ],
)
def test_tables_that_are_no_logs(tmp_path, text):
    """No counter and no loss, or no numbers."""
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ReadError):
        read(path)


def test_the_tag_of_a_download_from_tensorboard(tmp_path):
    """What the value is stands in the file's name alone."""
    path = tmp_path / "run-baseline-tag-batch_loss.csv"
    path.write_text("Wall time,Step,Value\n1.5,10,0.5\n2.5,20,0.25\n")
    run = read(path)
    assert (run.train.step.tolist(), run.train["loss"].tolist()) == ([10, 20], [0.5, 0.25])


def test_episodes_of_a_monitor(tmp_path):
    """A line of JSON that is no header; the steps of all episodes together are the training's."""
    path = tmp_path / "0.monitor.csv"
    path.write_text('#{"t_start": 1650.5, "env_id": "Walker-v3"}\nr,l,t\n-1.5,100,0.5\n-0.5,60,1.0\n2.5,200,2.0\n')
    run = read(path)
    assert run.train.step.tolist() == [100, 160, 360]
    assert run.train["logged/episode_reward"].tolist() == [-1.5, -0.5, 2.5]


@pytest.mark.parametrize(
    ("header", "channel"),
    [
        ("Episode,Mean length,Mean reward", "logged/Mean_reward"),
        ("Generation,Population,Mean_Fitness", "logged/Mean_Fitness"),
        ("episode,epsilon,Total_Return", "logged/Total_Return"),
    ],
)
def test_games_and_what_was_paid_for_them(tmp_path, header, channel):
    """No loss, and nothing else that counts: the games do."""
    path = tmp_path / "training_log.csv"
    path.write_text(f"{header}\n10,25,-3.5\n20,30,-1.25\n30,35,2.0\n")
    run = read(path)
    assert (run.train.step.tolist(), run.train[channel].tolist()) == ([10, 20, 30], [-3.5, -1.25, 2.0])


def test_a_series_with_scores_is_no_training(tmp_path):
    """Nothing is paid for its episodes."""
    path = tmp_path / "ratings.csv"
    path.write_text("Episode,Score,Votes\n1,8.5,120\n2,8.75,130\n3,9.0,150\n")
    with pytest.raises(ReadError):
        read(path)


def test_a_merge_that_was_not_resolved(tmp_path):
    """The marks are no rows; both sides are read, and the file says so."""
    path = tmp_path / "log.csv"
    sides = "<<<<<<< HEAD\n2,0.75\n=======\n3,0.5\n4,0.25\n>>>>>>> 0a1b2c3d\n"
    path.write_text("epoch,loss\n0,2.0\n1,1.5\n" + sides)
    run = read(path)
    assert run.train["loss"].tolist() == [2.0, 1.5, 0.75, 0.5, 0.25]
    assert [note for note in run.notes if "merge that was not resolved" in note]
    assert not [note for note in run.notes if note.startswith("skipped")]


LOSSY = {
    "a loss and its step": ("0.75 0\n0.5 100\n0.25 200\n", {"loss": [0.75, 0.5, 0.25]}),
    "a total and its parts": ("0.75,0.5,0.25\n0.5,0.375,0.125\n0.25,0.125,0.125\n", {"loss": [0.75, 0.5, 0.25]}),
    "players": (",discriminator,Generator\n0,0.75,3.5\n1,0.5,3.0\n", {"loss/discriminator": [0.75, 0.5]}),
    "sides": ("epoch,train,val\n1,0.75,0.875\n2,0.5,0.75\n", {"loss": [0.75, 0.5]}),
}


@pytest.mark.parametrize("layout", LOSSY)
def test_a_file_whose_name_says_that_it_holds_losses(tmp_path, layout):
    """Its columns need not say it again."""
    text, expected = LOSSY[layout]
    for name in ("loss.csv", "train_losses.txt"):
        path = tmp_path / name
        path.write_text(text)
        run = read(path)
        assert {channel: run.train[channel].tolist() for channel in expected} == expected
    other = tmp_path / "numbers.csv"
    other.write_text("0.75,0.5,0.25\n0.5,0.375,0.125\n0.25,0.125,0.125\n")
    with pytest.raises(ReadError):
        read(other)


def test_a_header_that_is_parted_otherwise_than_its_rows(tmp_path):
    """Commas above, tabs below."""
    path = tmp_path / "train_log.txt"
    path.write_text("epoch,step,tr_loss\n1\t16\t7.5\n1\t32\t7.25\n1\t48\t7.0\n")
    run = read(path)
    assert run.train.step.tolist() == [16, 32, 48]
    assert run.train["loss"].tolist() == [7.5, 7.25, 7.0]


@pytest.mark.parametrize("name", ["val_loss.csv", "test_losses.txt"])
def test_a_file_of_evaluations_without_names_is_no_training(tmp_path, name):
    """What its name says of the numbers holds."""
    path = tmp_path / name
    path.write_text("0.75\n0.5\n0.25\n0.5\n")
    run = read(path)
    assert (run.train.size, run.eval["loss"].tolist()) == (0, [0.75, 0.5, 0.25, 0.5])


EPISODES = [(episode, 300 + episode * 137 % 200) for episode in range(1, 41)]


def test_the_length_of_an_episode_is_no_step(tmp_path):
    """It falls while the episodes go on; read whole and line by line, such a log is one run."""
    path = tmp_path / "scores.csv"
    lines = [f"{episode},{episode / 4},{length}\n" for episode, length in EPISODES]
    path.write_text("episode,reward,steps\n" + lines[0])
    source = open_run(path)
    for line in ("", *lines[1:]):
        with path.open("a") as file:
            file.write(line)
        source.poll()
    source.close()
    for runs in (source.runs, read_all(path)):
        [run] = runs
        assert run.train.step.tolist() == list(range(40))
        assert run.train["logged/steps"].tolist() == [length for _, length in EPISODES]
        assert len(run.headers) == 1


def test_rows_without_a_loss_are_rows_of_their_own_steps(tmp_path):
    """What a policy was paid before it began to learn, and between two updates."""
    path = tmp_path / "progress.csv"
    rows = [(step, step / 8, "" if step < 40 or step % 3 else step / 16) for step in range(2, 90, 2)]
    path.write_text(
        "time/total_timesteps,rollout/ep_rew_mean,train/loss\n" + "".join(f"{a},{b},{c}\n" for a, b, c in rows)
    )
    run = read(path)
    assert run.train.step.tolist() == [step for step, _, _ in rows]
    assert run.train["logged/rollout_ep_rew_mean"].tolist() == [paid for _, paid, _ in rows]
    assert run.train.curve("loss")[1].tolist() == [loss for _, _, loss in rows if loss]


def test_trainings_whose_episodes_begin_again_are_several(tmp_path):
    """The first one played too few steps in its first episode for the counter to tell."""
    path = tmp_path / "loss.csv"
    ends = [[200, 450, 700], [300, 620], [290, 540, 810]]
    rows = [(episode, step) for steps in ends for episode, step in enumerate(steps, 1)]
    path.write_text("episode,step,loss\n" + "".join(f"{episode},{step},0.5\n" for episode, step in rows))
    assert [run.train.step.tolist() for run in read_all(path)] == ends


def test_a_step_that_an_episode_stands_beside_is_a_step(tmp_path):
    """It goes on with the episodes, and back with them where another training begins."""
    path = tmp_path / "loss.csv"
    rows = [(episode, 100 * episode) for _ in range(2) for episode in range(1, 9)]
    path.write_text("episode,step,loss\n" + "".join(f"{episode},{step},0.5\n" for episode, step in rows))
    assert [run.train.step.tolist() for run in read_all(path)] == [list(range(100, 900, 100))] * 2
