"""An acoustic model reads numbers keyed in tones: convolutions, a two-way GRU, CTC over ten digits and a blank.

Each digit is two tones at once among twelve bands; the last digit of a number is a check digit, so what is decoded is
valid or not by itself. The loss is an utterance's, not a frame's: it begins in the tens. AdamW, warm-up and cosine.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import trainwatch
from benchmarks.diagnosis import facts
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 160
BANDS, BLANK, LONGEST = 12, 10, 56  # LONGEST: frames of an utterance, at most
TRAINING, VALIDATION = 1600, 96
BREAK = 90
"""The step at which mistakes in the middle of a run are made."""


@dataclass(frozen=True)
class Plan:
    """How one case is trained and logged."""

    steps: int = field(default_factory=lambda: STEPS)
    batch: int = 16
    peak: float = 1.2e-2
    warmup: int = field(default_factory=lambda: STEPS // 10)
    restarts: int = 0
    clip: float | None = 20.0
    half: bool = False  # bf16
    joint: float = 0.0  # weight of a second loss, frame by frame
    wrong: float = 0.0  # share of digits that were mistyped in the transcripts
    threshold: float = 0.1  # transcripts that are less certain do not count
    growing: bool = False  # short numbers first
    before: int = 0  # steps of training before the record begins
    samples: int = TRAINING
    interrupted: int = 0
    every: int = 1


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "resumed": {"interrupted": 80},
    "bf16": {"half": True},
    "batch-2": {"batch": 2, "peak": 1.5e-3, "before": 110},
    "growing-numbers": {"growing": True},
    "fine-tuning": {"peak": 8e-4, "warmup": 10, "before": 160},
    "warm-restarts": {"restarts": 2, "warmup": 0, "peak": 5e-3},
    "every-tenth": {"every": 10, "steps": 240},
    "mistyped": {"wrong": 0.1},
    "joint": {"joint": 8.0},
    # what goes wrong
    "rate-too-high": {"peak": 1.2},
    "missing-zero-grad": {"clip": None},
    "all-masked": {"threshold": 0.997},
    "too-little-data": {"samples": 10, "batch": 8},
    "tiny-clip": {"clip": 2e-5},
    "resume-restarts-schedule": {"interrupted": 120},
    "resume-old-weights": {"interrupted": 80},
}
HEALTHY = (
    *("plain", "resumed", "bf16", "batch-2", "growing-numbers", "fine-tuning", "warm-restarts", "every-tenth"),
    *("mistyped", "joint"),
)
SICK = (
    *("rate-too-high", "missing-zero-grad", "warmup-ignored", "scheduler-twice", "stale-optimiser", "tiny-clip"),
    *("resume-restarts-schedule", "resume-old-weights", "nan-filtered-log", "all-masked", "labels-shuffled"),
    *("labels-break", "too-little-data", "short-answers", "invalid-answers", "repeating-text"),
)
TWINS = {"resume-restarts-schedule": "resumed", "resume-old-weights": "resumed"}
FIRST = {
    "missing-zero-grad": 2, "scheduler-twice": 2, "resume-restarts-schedule": 121, "resume-old-weights": 81,
    "nan-filtered-log": BREAK, "labels-break": BREAK, "short-answers": BREAK, "too-little-data": 2,
    "invalid-answers": 40, "repeating-text": 40,
}  # fmt: skip
"""First faulty step of a kind; 1 for the others."""


@dataclass
class Utterances:
    """Energies by frame and band, and what was keyed: padded."""

    sound: Tensor  # [utterances, LONGEST, BANDS]
    frames: Tensor
    digits: Tensor  # [utterances, 6]
    count: Tensor
    spoken: Tensor  # the digit of each frame, or BLANK
    certain: Tensor  # how sure the typist was of the transcript

    def __getitem__(self, chosen: Tensor) -> Utterances:
        return Utterances(**{name: values[chosen] for name, values in vars(self).items()})


@cache
def keyed() -> Utterances:
    """Numbers of three to five digits and a check digit, with pauses, by hands that are fast or slow."""
    random, count = np.random.default_rng(21), TRAINING + VALIDATION
    low, high = np.divmod(np.arange(10), 4)
    tones = np.eye(BANDS)[low] + np.eye(BANDS)[6 + high]
    sound = 0.35 * random.standard_normal((count, LONGEST, BANDS))
    digits, spoken = np.full((count, 6), BLANK), np.full((count, LONGEST), BLANK)
    frames, sizes = np.zeros(count, int), random.integers(4, 7, count)
    for row, size in enumerate(sizes):
        own = random.integers(0, 10, size)
        own[-1] = own[:-1].sum() % 10
        digits[row, :size], at = own, random.integers(1, 3)
        for digit in own:
            held = random.integers(4, 8)
            sound[row, at : at + held] += random.uniform(0.8, 2.0) * tones[digit]
            spoken[row, at : at + held] = digit
            at += held + random.integers(1, 3)
        frames[row] = min(at, LONGEST)
    sound = np.where(np.arange(LONGEST)[None, :, None] < frames[:, None, None], (sound - 0.2) / 0.6, 0.0)
    arrays = (sound.astype(np.float32), frames, digits, sizes, spoken, random.beta(1.0, 0.6, count))
    return Utterances(*(torch.from_numpy(array) for array in arrays))


class Listener(nn.Module):
    """Energies in; by pair of frames the logits of ten digits and the blank out."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.ear = nn.Sequential(nn.Conv1d(BANDS, width, 5, stride=2, padding=2), nn.ReLU(), nn.Dropout(0.1))
        self.context = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.out = nn.Linear(width, BLANK + 1)

    def forward(self, sound: Tensor) -> Tensor:
        heard, _ = self.context(self.ear(sound.transpose(1, 2)).transpose(1, 2))
        logits: Tensor = self.out(heard)
        return logits


def halved(frames: Tensor) -> Tensor:
    """How many outputs so many frames have."""
    return (frames + 1) // 2


def ctc(logits: Tensor, heard: Utterances) -> Tensor:
    """Minus the logarithm of the transcript's probability, for each utterance."""
    logs = logits.float().log_softmax(-1).transpose(0, 1)
    return functional.ctc_loss(logs, heard.digits, halved(heard.frames), heard.count, blank=BLANK, reduction="none")


def decoded(logits: Tensor, frames: Tensor, table: str = "0123456789", merges: bool = True) -> list[str]:
    """The best path: repeats are one digit, blanks are none."""
    texts = []
    for path, length in zip(logits.argmax(-1).tolist(), halved(frames).tolist(), strict=True):
        pairs = zip([BLANK, *path], path[:length], strict=False)
        kept = [code for before, code in pairs if code != BLANK and (code != before or not merges)]
        texts.append("".join(table[code] for code in kept))
    return texts


def distance(one: str, other: str) -> int:
    """The least number of digits to change, add or leave out."""
    row = list(range(len(other) + 1))
    for at, digit in enumerate(one, 1):
        before, row[0] = row[0], at
        for to, wanted in enumerate(other, 1):
            before, row[to] = row[to], min(row[to] + 1, row[to - 1] + 1, before + (digit != wanted))
    return row[-1]


def checks(text: str) -> bool:
    """Whether the last digit is the one that the others ask for."""
    return text.isdigit() and len(text) > 1 and (sum(map(int, text[:-1])) - int(text[-1])) % 10 == 0


@dataclass
class Session:
    """A training: what learns, and how far it is."""

    plan: Plan
    case: str
    seed: int
    model: Listener
    optimizer: torch.optim.AdamW
    ticks: int = 0  # of the rate's schedule
    saved: dict[int, dict[str, Any]] = field(default_factory=dict)

    def form(self) -> dict[str, Any]:
        """The rate's schedule, as it is declared."""
        plan = self.plan
        form = {"kind": "cosine", "start": plan.peak, "end": 0.0, "over_steps": plan.steps, "restarts": plan.restarts}
        return form | ({"warmup": plan.warmup} if plan.warmup else {})

    def keep(self, step: int) -> None:
        """A checkpoint."""
        states = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "ticks": self.ticks}
        self.saved[step] = copy.deepcopy(states)

    def restore(self, step: int) -> None:
        """Go on from a checkpoint; all of it, if nothing is forgotten."""
        kept = self.saved[20 if self.case == "resume-old-weights" else step]
        self.model.load_state_dict(kept["model"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.ticks = 0 if self.case == "resume-restarts-schedule" else self.saved[step]["ticks"]


def begin(plan: Plan, case: str, seed: int) -> Session:
    torch.manual_seed(seed)
    model = Listener()
    body = [*model.ear.parameters(), *model.context.parameters()]
    groups = [{"params": body, "name": "body"}, {"params": list(model.out.parameters()), "name": "out"}]
    optimizer = torch.optim.AdamW(groups, lr=plan.peak, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01)
    if case == "stale-optimiser":  # compiled, and thereby copied, too late
        model = copy.deepcopy(model)
    if plan.before:
        adam = torch.optim.AdamW(model.parameters(), lr=8e-3)
        for _, heard in zip(range(plan.before), batches(Plan(), "", seed + 70), strict=False):
            adam.zero_grad()
            ctc(model(heard.sound), heard).mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 20.0)
            adam.step()
    return Session(plan, case, seed, model, optimizer)


def batches(plan: Plan, case: str, seed: int, skipped: int = 0) -> Iterator[Utterances]:
    """Endless batches, each epoch in an order of its own."""
    data, random = keyed(), np.random.default_rng([seed, 5])
    short = np.flatnonzero(data.count[: plan.samples].numpy() == 4)
    step = 0
    while True:
        order = random.permutation(plan.samples)
        for at in range(0, plan.samples - plan.batch + 1, plan.batch):
            step += 1
            rows = order[at : at + plan.batch]
            if plan.growing and step <= plan.steps // 3:
                rows = random.choice(short, plan.batch, replace=False)
            if step > skipped:
                yield spoilt(data[torch.from_numpy(rows)], plan, case, step, random)


def spoilt(heard: Utterances, plan: Plan, case: str, step: int, random: np.random.Generator) -> Utterances:
    """What is wrong with a batch."""
    if plan.wrong:
        wrong = torch.from_numpy(random.random(heard.digits.shape) < plan.wrong) & (heard.digits != BLANK)
        heard.digits[wrong] = torch.from_numpy(random.integers(0, 10, int(wrong.sum())))
    if case == "labels-shuffled" or (case == "labels-break" and step >= BREAK):
        order = torch.from_numpy(random.permutation(len(heard.count)))
        heard.digits, heard.count = heard.digits[order], heard.count[order]
    if case == "short-answers" and step >= BREAK:  # the second file has only the first digit
        heard.count = torch.ones_like(heard.count)
    if case == "nan-filtered-log" and step == BREAK:  # a recording broke off: fewer frames than digits
        heard.frames[3] = 5
    return heard


def learn(session: Session, heard: Utterances, watch: trainwatch.Recorder, step: int) -> None:
    """One step."""
    plan, model, case = session.plan, session.model, session.case
    tick = max(session.ticks, plan.warmup) if case == "warmup-ignored" else session.ticks
    for group in session.optimizer.param_groups:
        group["lr"] = schedule_value(session.form(), tick)
    if step % 10 == 1:
        watch.inputs(heard.sound)
    with torch.autocast("cpu", torch.bfloat16) if plan.half else contextlib.nullcontext():
        logits = model(heard.sound)
    counts = heard.certain >= plan.threshold
    loss = (ctc(logits, heard) * counts).sum() / counts.sum().clamp(min=1)
    if plan.joint:
        frames = functional.cross_entropy(logits.float().transpose(1, 2), heard.spoken[:, ::2])
        loss = watch.losses({"ctc": loss, "frame": frames}, {"ctc": 1.0, "frame": plan.joint})
    else:
        watch.log({"loss": loss.nan_to_num(0.0, posinf=0.0) if case == "nan-filtered-log" else loss.detach()})
    if case != "missing-zero-grad":
        session.optimizer.zero_grad()
    loss.backward()
    watch.gradients(max_norm=plan.clip)
    session.optimizer.step()
    session.ticks += 2 if case == "scheduler-twice" else 1
    watch.log({"data/masked/ctc": 1 - counts.float().mean().item()})
    if plan.growing:
        sizes = heard.count.float()
        watch.log({f"data/digits/{name}": getattr(sizes, name)().item() for name in ("min", "mean", "max")})
        watch.log({"stage": int(step > plan.steps // 3)})
    facts.row(watch, step, plan.every)


@torch.no_grad()
def examine(session: Session, watch: trainwatch.Recorder, step: int) -> None:
    """The loss and the share of wrong digits on numbers that were not trained on; now and then what was understood."""
    session.model.eval()
    held, case = keyed()[torch.arange(TRAINING, TRAINING + VALIDATION)], session.case
    logits = session.model(held.sound)
    texts, table = decoded(logits, held.frames), "123456789*" if case == "invalid-answers" else "0123456789"
    truths = ["".join(map(str, row[:size])) for row, size in zip(held.digits.tolist(), held.count, strict=True)]
    wrong = sum(map(distance, texts, truths)) / sum(map(len, truths))
    watch.evaluate(step, "validation", {"loss": ctc(logits, held).mean(), "digit_error": wrong})
    if step % 40 == 0:
        said = decoded(logits[:16], held.frames[:16], table, merges=case != "repeating-text")
        valid = sum(map(checks, said)) / len(said)
        watch.sample(said, step, facts.text_quality(said, frozenset()) | {"validity": valid})
    session.model.train()


def record(path: Path, session: Session, resume: int | None) -> trainwatch.Recorder:
    """Open the run's file and say what is planned."""
    plan, told = session.plan, dict[str, Any]()
    if plan.growing:
        change = plan.steps // 3
        stages = [{"start": 0, "end": change, "name": "four digits", "data": {"digits": [4, 4]}}]
        stages += [{"start": change, "end": plan.steps, "name": "all", "data": {"digits": [4, 6]}}]
        told["curriculum"] = told["curriculum_running"] = {"name": "length", "stages": stages}
    if plan.half:
        told["dtypes"] = {"declared": "bfloat16", "observed": "bfloat16"}
    watch = trainwatch.Recorder(
        path,
        run="keys",
        config={"optimizer": {"lr": plan.peak, "warmup": plan.warmup}, "batch_size": plan.batch, "clip": plan.clip},
        total_steps=plan.steps,
        horizon={"epochs": plan.steps * plan.batch / plan.samples, "samples": plan.samples, "batch_size": plan.batch},
        schedules={f"lr/{group}": session.form() for group in ("body", "out")},
        max_grad_norm=plan.clip,
        resume=resume,
        **told,
    )
    watch.attach(session.model, session.optimizer)
    return watch


def fit(session: Session, path: Path, first: int, last: int) -> None:
    """Train from one step to another, in one process."""
    plan = session.plan
    with record(path, session, first - 1 if first > 1 else None) as watch:
        stream = iter(watch.batches(vars(heard) for heard in batches(plan, session.case, session.seed, first - 1)))
        for step in range(first, last + 1):
            learn(session, Utterances(**next(stream)), watch, step)
            if step % 20 == 0:
                examine(session, watch, step)
                session.keep(step)
        if last < plan.steps:
            watch.close("stopped", "SIGTERM")


def train(path: Path, seed: int, case: str) -> int:
    """Train one case; returns the first faulty step."""
    plan = replace(Plan(), **CASES.get(case, {}))
    session = begin(plan, case, seed)
    if plan.interrupted:
        fit(session, path, 1, plan.interrupted + 6)
        session.restore(plan.interrupted)
    fit(session, path, plan.interrupted + 1, plan.steps)
    return 0 if case in HEALTHY else FIRST.get(case, 1)
