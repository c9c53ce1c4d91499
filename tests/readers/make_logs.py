"""Writes the logs in ``tests/data/logs`` with the writers that people really use, and what they must be read as.

Run by hand where those are installed: ``KERAS_BACKEND=torch python tests/readers/make_logs.py``. It needs keras,
dvclive, lightning, mlflow, pandas with pyarrow, stable-baselines3, swanlab, tensorboard, torch, tqdm, trackio,
transformers, ultralytics and wandb; the tests need none of them. ``python tests/readers/make_logs.py mlflow dvclive``
writes only those, each where its writer is installed, and leaves the others as they lie.
"""

import contextlib
import io
import json
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import warnings
import zlib
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "data" / "logs"
STEPS = range(10, 310, 10)
EVALS = (100, 200, 300)
TRUTH = {}


def loss(step):
    return 0.5 + 4.0 * math.exp(-step / 100)


def norm(step):
    return math.nan if step == 150 else math.inf if step == 160 else 1.0 + 1 / step


def rate(step):
    return 1e-3 * (1 - step / 400)


def truth(name, table, **columns):
    columns = {key: list(values) for key, values in columns.items()}
    named = {
        key: [value if math.isfinite(value) else str(value) for value in values] for key, values in columns.items()
    }
    TRUTH.setdefault(name, {})[table] = named


def hugging_face():
    from transformers import TrainerState
    from transformers.trainer_callback import PrinterCallback

    history = []
    for step in STEPS:
        history.append(
            {
                "loss": loss(step),
                "grad_norm": norm(step),
                "learning_rate": rate(step),
                "epoch": step / 100,
                "step": step,
            }
        )
        if step % 100 == 0:
            for name in ("near", "far"):
                figures = {f"eval_{name}_loss": loss(step) + len(name), f"eval_{name}_runtime": 0.5}
                history.append({**figures, f"eval_{name}_accuracy": step / 1000, "epoch": step / 100, "step": step})
    history.append({"train_loss": 1.25, "train_runtime": 60.0, "total_flos": 1e9, "epoch": 3.0, "step": 300})
    folder = FOLDER / "hugging_face" / "checkpoint-300"
    folder.mkdir(parents=True)
    state = TrainerState(epoch=3.0, global_step=300, max_steps=400, num_train_epochs=4, log_history=history)
    state.save_to_json(str(folder / "trainer_state.json"))
    name = "hugging_face/checkpoint-300/trainer_state.json"
    truth(name, "train", step=STEPS, loss=map(loss, STEPS), grad_norm=map(norm, STEPS), **{"lr/main": map(rate, STEPS)})
    for split in ("near", "far"):
        truth(name, f"eval:{split}", step=EVALS, loss=(loss(step) + len(split) for step in EVALS))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for row in history[:-1]:
            PrinterCallback().on_log(None, type("State", (), {"is_local_process_zero": True}), None, logs=dict(row))
    (FOLDER / "hugging_face.log").write_text(printed.getvalue())
    truth("hugging_face.log", "train", step=STEPS, loss=(float(f"{loss(step):.4g}") for step in STEPS))


def lightning():
    from lightning.pytorch.loggers import CSVLogger

    with tempfile.TemporaryDirectory() as scratch:
        logger = CSVLogger(scratch, name="lightning", version=0)
        for step in STEPS:
            logger.log_metrics({"train_loss_step": loss(step), "grad_norm": norm(step), "epoch": step // 100}, step)
            if step % 100 == 0:
                logger.log_metrics({"val_loss": loss(step) + 1, "val_acc": step / 1000, "epoch": step // 100}, step)
                logger.log_metrics({"train_loss_epoch": loss(step) + 0.1, "epoch": step // 100}, step)
        logger.log_hyperparams({"batch_size": 32, "optimizer": {"lr": 0.001}})
        logger.save()
        (FOLDER / "lightning").mkdir()
        for name in ("metrics.csv", "hparams.yaml"):
            shutil.copy(Path(logger.log_dir) / name, FOLDER / "lightning" / name)
    truth("lightning/metrics.csv", "train", step=STEPS, loss=map(loss, STEPS), grad_norm=map(norm, STEPS))
    validated = {"step": EVALS, "loss": (loss(s) + 1 for s in EVALS)}
    truth("lightning/metrics.csv", "eval:validation", **validated)
    truth("lightning/metrics.csv", "eval:train", step=EVALS, loss=(loss(s) + 0.1 for s in EVALS))


def tensorboard():
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

    single = [float(np.float32(loss(step))) for step in STEPS]
    for style in ("simple", "tensor"):
        folder = FOLDER / f"tensorboard_{style}"
        writer = SummaryWriter(str(folder))
        for step in STEPS:
            writer.add_scalar("Loss/train", loss(step), step, new_style=style == "tensor")
            writer.add_scalar("grad_norm", norm(step), step, new_style=style == "tensor")
            if step % 100 == 0:
                writer.add_scalar("Loss/val", loss(step), step, new_style=style == "tensor")
        writer.add_scalar("hp_metric", -1, 0)
        writer.add_text("config", "lr: 1e-3")
        writer.close()
        [file] = folder.iterdir()
        file.rename(folder / "events.out.tfevents.1700000000.host.1.0")
        name = f"tensorboard_{style}/events.out.tfevents.1700000000.host.1.0"
        norms = [float(np.float32(norm(step))) for step in STEPS]
        truth(name, "train", step=STEPS, loss=single, grad_norm=norms)
        truth(
            name,
            "eval:validation",
            step=EVALS,
            loss=[v for s, v in zip(STEPS, single, strict=True) if s % 100 == 0],
        )


def tensorboard_parts():
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

    folder = FOLDER / "tensorboard_parts"
    writer = SummaryWriter(str(folder))
    for step in STEPS:
        writer.add_scalar("lr", rate(step), step)
        writer.add_scalars("loss", {"train": loss(step), **({"val": 2.5} if step % 100 == 0 else {})}, step)
        writer.add_scalars("Loss/train", {"kl": loss(step) / 4, "ce": norm(step)}, step)
    writer.close()
    for file in folder.rglob("*tfevents*"):
        file.rename(file.parent / "events.out.tfevents.1700000000.host.1.0")
    name = "tensorboard_parts/events.out.tfevents.1700000000.host.1.0"
    columns = {
        "loss": map(loss, STEPS),
        "loss/kl": (loss(step) / 4 for step in STEPS),
        "loss/ce": map(norm, STEPS),
        "lr/main": map(rate, STEPS),
    }
    truth(name, "train", step=STEPS, **{key: [float(np.float32(v)) for v in column] for key, column in columns.items()})
    truth(name, "eval:validation", step=EVALS, loss=(2.5, 2.5, 2.5))


def keras():
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse", metrics=["mae"])
    inputs = np.random.default_rng(0).standard_normal((64, 4))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        done = model.fit(
            inputs,
            inputs.sum(1, keepdims=True),
            batch_size=16,
            epochs=5,
            validation_split=0.25,
            callbacks=[keras.callbacks.CSVLogger(str(FOLDER / "keras.csv"))],
        )
    (FOLDER / "keras.log").write_text(printed.getvalue())
    truth("keras.csv", "train", step=range(5), loss=done.history["loss"])
    truth("keras.csv", "eval:validation", step=range(5), loss=done.history["val_loss"])


YOLO = """
import json
from pathlib import Path
import cv2, numpy as np
from ultralytics import YOLO
for split in ("train", "val"):
    for index in range(8):
        image, label = Path("data", "images", split, f"{index}.png"), Path("data", "labels", split, f"{index}.txt")
        for file in (image, label):
            file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), cv2.rectangle(np.zeros((64, 64, 3), np.uint8), (9, 9), (9 + 4 * index, 30), 255, -1))
        label.write_text(f"0 {(9 + 2 * index) / 64} 0.3 {4 * index / 64 + 0.02} 0.33")
Path("data.yaml").write_text(f"path: {Path.cwd()}/data\\ntrain: images/train\\nval: images/val\\nnames: {{0: box}}")
losses = []
model = YOLO("yolov8n.yaml")
model.add_callback("on_train_epoch_end", lambda trainer: losses.append(trainer.tloss.tolist()))
small = dict(epochs=5, imgsz=64, batch=8, workers=0)
model.train(data="data.yaml", device="cpu", plots=False, amp=False, optimizer="SGD", **small)
Path("losses.json").write_text(json.dumps(losses))
"""


def ultralytics():
    with tempfile.TemporaryDirectory() as scratch:
        told = {"cwd": scratch, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "check": True}
        done = subprocess.run([sys.executable, "-c", YOLO], **told, env=os.environ | {"YOLO_OFFLINE": "1"})
        losses = json.loads((Path(scratch) / "losses.json").read_text())
        printed = re.sub(r" CPU \(.*?\)", "", done.stdout.decode().replace(scratch, ""))
    (FOLDER / "ultralytics.log").write_bytes(printed[printed.index("Starting training") :].encode())
    columns = zip(("box", "cls", "dfl"), zip(*losses, strict=True), strict=True)
    parts = {f"loss/{part}": [float(f"{value:.4g}") for value in column] for part, column in columns}
    truth("ultralytics.log", "train", step=range(1, 6), **parts)


def stable_baselines():
    from stable_baselines3.common.logger import Logger, make_output_format

    with tempfile.TemporaryDirectory() as scratch:
        formats = [make_output_format(kind, scratch) for kind in ("csv", "json", "log")]
        logger = Logger(scratch, formats)
        for step in STEPS:
            logger.record("time/total_timesteps", step)
            logger.record("rollout/ep_rew_mean", step / 100)
            logger.record("train/policy_gradient_loss", -loss(step) / 100)
            logger.record("train/value_loss", round(loss(step), 2))
            logger.record("train/loss", round(loss(step), 1))
            logger.dump(step)
        logger.close()
        for name in ("progress.csv", "progress.json", "log.txt"):
            shutil.copy(Path(scratch) / name, FOLDER / f"baselines_{name}")
    for name in ("progress.csv", "progress.json", "log.txt"):
        values = {"loss": (round(loss(s), 1) for s in STEPS), "loss/value": (round(loss(s), 2) for s in STEPS)}
        truth(f"baselines_{name}", "train", step=STEPS, **values)


def progress_bar():
    from tqdm import tqdm

    printed = io.StringIO()
    for epoch in range(3):
        bar = tqdm(range(20), desc=f"Epoch {epoch}", file=printed, mininterval=0, ncols=100)
        for batch in bar:
            bar.set_postfix(loss=f"{loss(20 * epoch + batch + 1):.4f}", refresh=False)
    (FOLDER / "tqdm.log").write_text(printed.getvalue())
    truth("tqdm.log", "train", step=range(1, 61), loss=(float(f"{loss(step):.4f}") for step in range(1, 61)))


def _bytes_field(number, value):
    size, head = len(value), bytearray([*_varint(number << 3 | 2)])
    return bytes(head) + bytes(_varint(size)) + value


def _varint(value):
    while value > 127:
        yield value & 127 | 128
        value >>= 7
    yield value


def _strip_host(source, target, start=17, kept=(2, 17, 18), shown=(1, 4, 8)):
    """The same run without the machine that it was made on: its environment, its host, its paths.

    Of the records only those with the numbers ``kept``, of the one that begins the run only what is ``shown``.
    """
    from trainwatch.foreign.protobuf import fields
    from trainwatch.foreign.recordlog import RecordLog

    with target.open("wb") as file:
        file.write(source.read_bytes()[:7])
        for record in RecordLog(source).records():
            for number, wire, value in fields(record):
                if number == start:  # the run: its id, config and name
                    parts = [(inner, part) for inner, _, part in fields(value) if inner in shown]
                    value = b"".join(_bytes_field(inner, part) for inner, part in parts)
                if number in kept and wire == 2:
                    payload = _bytes_field(number, value)
                    sum_ = zlib.crc32(payload, zlib.crc32(b"\x01"))
                    assert file.tell() % 32768 + 7 + len(payload) <= 32768  # one block is enough here
                    file.write(sum_.to_bytes(4, "little") + len(payload).to_bytes(2, "little") + b"\x01" + payload)


def weights_and_biases():
    import wandb

    with tempfile.TemporaryDirectory() as scratch:
        settings = wandb.Settings(mode="offline", silent=True, console="off", disable_git=True, x_disable_stats=True)
        config = {"lr": 0.1, "model": {"layers": 3}}
        run = wandb.init(project="p", name="a name", dir=scratch, config=config, settings=settings)
        for step in STEPS:
            validation = {"val/loss": 1.5} if step % 100 == 0 else {}
            training = {"train/loss": loss(step), "train/grad_norm": norm(step), "lr": rate(step)}
            run.log({**training, **validation}, step=step)
        run.finish()
        [file] = Path(scratch).rglob("*.wandb")
        _strip_host(file, FOLDER / "run-a1b2c3d4.wandb")
    truth("run-a1b2c3d4.wandb", "train", step=STEPS, loss=map(loss, STEPS), grad_norm=map(norm, STEPS))
    truth("run-a1b2c3d4.wandb", "eval:validation", step=EVALS, loss=(1.5, 1.5, 1.5))


def trackio():
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TRACKIO_DIR"] = scratch
        import trackio

        for name in ("first", "second"):
            trackio.init(project="project", name=name, config={"lr": 0.1}, auto_log_gpu=False, auto_log_cpu=False)
            for step in STEPS:
                validation = {"val/loss": 1.5} if step % 100 == 0 else {}
                trackio.log({"train/loss": loss(step), "grad_norm": norm(step), **validation}, step=step)
            trackio.finish()
        shutil.copy(Path(scratch) / "project.db", FOLDER / "trackio.db")
    with contextlib.closing(sqlite3.connect(FOLDER / "trackio.db")) as database:
        kept = "'metrics', 'configs'"
        tables = database.execute(
            f"SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT IN ({kept})"
        ).fetchall()
        database.executescript("".join(f"DROP TABLE {name};" for (name,) in tables))
        database.executescript("PRAGMA journal_mode=DELETE; VACUUM;")
    truth("trackio.db", "train", step=STEPS, loss=map(loss, STEPS), grad_norm=map(norm, STEPS))
    truth("trackio.db", "eval:validation", step=EVALS, loss=(1.5, 1.5, 1.5))


def _steps(log):
    for step in STEPS:
        validation = {"val/loss": 1.5} if step % 100 == 0 else {}
        log({"train/loss": loss(step), "grad_norm": norm(step), **validation}, step)


def _tracked(name):
    truth(name, "train", step=STEPS, loss=map(loss, STEPS), grad_norm=map(norm, STEPS))
    truth(name, "eval:validation", step=EVALS, loss=(1.5, 1.5, 1.5))


def mlflow():
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    import mlflow

    with tempfile.TemporaryDirectory() as scratch:
        for address in (f"sqlite:///{scratch}/mlflow.db", f"file://{scratch}/mlruns"):
            mlflow.set_tracking_uri(address)
            for name in ("first", "second"):
                with mlflow.start_run(run_name=name):
                    mlflow.log_params({"lr": 0.1, "layers": 3})
                    _steps(lambda values, step: mlflow.log_metrics(values, step=step))
        with contextlib.closing(sqlite3.connect(f"{scratch}/mlflow.db")) as source:
            kept = [source.execute(f"SELECT sql FROM sqlite_master WHERE name = '{table}'").fetchone()[0]
                    for table in ("runs", "metrics", "params")]  # fmt: skip
            with contextlib.closing(sqlite3.connect(FOLDER / "mlflow.db")) as target, target:
                target.executescript(";".join(kept))
                for table in ("runs", "metrics", "params"):  # without the tables, and the tags, of no interest here
                    rows = source.execute(f"SELECT * FROM {table}").fetchall()
                    target.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)
                target.execute("UPDATE runs SET user_id = '', source_name = '', artifact_uri = ''")
        [experiment] = [folder for folder in Path(scratch, "mlruns").iterdir() if folder.name == "0"]
        for run in sorted(folder for folder in experiment.iterdir() if folder.is_dir()):
            said = (run / "meta.yaml").read_text()
            name = "first" if "run_name: first" in said else "second"
            target = FOLDER / "mlruns" / "0" / name
            shutil.copytree(run, target, ignore=shutil.ignore_patterns("tags", "artifacts"))
            own = [line for line in said.splitlines() if not line.startswith(("artifact_uri", "user_id"))]
            (target / "meta.yaml").write_text("\n".join(own) + "\n")
            _tracked(f"mlruns/0/{name}/meta.yaml")
    _tracked("mlflow.db")


def dvclive():
    from dvclive import Live

    with tempfile.TemporaryDirectory() as scratch:  # in a repository it would start DVC
        with contextlib.chdir(scratch), Live("dvclive", dvcyaml=None, save_dvc_exp=False) as live:
            live.log_params({"lr": 0.1})

            def log(values, step):
                live.step = step
                for name, value in values.items():
                    live.log_metric(name, value)
                live.make_summary()

            _steps(log)
        shutil.copytree(Path(scratch) / "dvclive", FOLDER / "dvclive", dirs_exist_ok=True)
    _tracked("dvclive/metrics.json")


def swanlab():
    import swanlab

    with tempfile.TemporaryDirectory() as scratch:
        config = {"lr": 0.1, "model": {"layers": 3}}
        swanlab.init(project="p", experiment_name="a name", mode="offline", config=config, logdir=scratch)
        _steps(lambda values, step: swanlab.log(values, step=step))
        swanlab.finish()
        [file] = Path(scratch).rglob("*.swanlab")
        target = FOLDER / "swanlab"
        (target / "files").mkdir(parents=True)
        shutil.copy(file.parent / "files" / "config.yaml", target / "files" / "config.yaml")
        _strip_host(file, target / "run-a1b2c3d4.swanlab", start=10, kept=(10, 11, 13), shown=(1, 4, 10))
    _tracked("swanlab/run-a1b2c3d4.swanlab")


def parquet():
    import pyarrow
    from pyarrow.parquet import write_table

    wide, long = [], []
    for name in ("first", "second"):
        _steps(lambda values, step, name=name: wide.append({"run_name": name, "step": step, **values}))
        kind = {"run_id": name, "attribute_type": "float_series"}
        _steps(
            lambda values, step, kind=kind: long.extend(
                {**kind, "attribute_path": key, "step": step, "float_value": value} for key, value in values.items()
            )
        )
        long.append({**kind, "attribute_path": "sys/name", "attribute_type": "string", "string_value": "a name"})
    for name, rows in (("wide", wide), ("long", long)):
        columns = {key: [row.get(key) for row in rows] for row in rows for key in row}
        write_table(pyarrow.table(columns), FOLDER / f"{name}.parquet")
        _tracked(f"{name}.parquet")


WRITERS = (
    hugging_face,
    lightning,
    tensorboard,
    tensorboard_parts,
    keras,
    ultralytics,
    stable_baselines,
    progress_bar,
    weights_and_biases,
    trackio,
    mlflow,
    dvclive,
    swanlab,
    parquet,
)


def main():
    warnings.simplefilter("ignore")
    chosen = [writer for writer in WRITERS if writer.__name__ in sys.argv[1:]]
    if chosen:
        TRUTH.update(json.loads((FOLDER / "truth.json").read_text()))
    else:
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir(parents=True)
    for write in chosen or WRITERS:
        write()
    (FOLDER / "truth.json").write_text(json.dumps(TRUTH, indent=1))


if __name__ == "__main__":
    main()
