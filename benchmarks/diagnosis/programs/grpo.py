"""A tiny language model that half learnt to sort from examples goes on by trying: what it sorts well is rewarded.

Four digits are asked. To each question the model gives a group of eight answers; an answer is worth by how much it was
paid better than its group, in spreads of that group (group-relative policy optimisation). A group that was paid alike
teaches nothing. The policy's loss is about 0 by nature and says little, the reward says all; a small penalty holds the
policy near the supervised model. AdamW, a linear warm-up and decay, clipping; each draw of answers makes two steps,
half of the questions each. Validation says how often the likeliest answer is right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.diagnosis import facts, mistakes
from benchmarks.diagnosis.data import shuffled
from benchmarks.diagnosis.loop import Batch, Channels, Components, Evaluation, Parts, Resume, Sampling, declared
from trainwatch.schedule import schedule_value

HELD_OUT = False
STEPS = 130
SYMBOLS = "0123456789=._"
EQUALS, END, BLANK = 10, 11, 12
ASKED, LONGEST = 5, 7  # symbols of a question, and of an answer with its end at most
TRAINING, VALIDATION = 4000, 200  # questions
GROUPS, GROUP = 24, 8  # questions a step, answers to each
PEAK, CLIP, KL = 4e-3, 2.0, 0.02  # the rate's peak, the gradient's limit, the weight of the divergence
TRUST = 0.2  # how far the policy's ratio may go from 1
PARTLY = 0.2  # of the reward is for digits that stand in the right place, the rest for the whole answer
RECORDS = frozenset({"components", "shares", "norms", "optimizer"})

HEALTHY = (
    *("plain", "resumed", "on-policy", "no-penalty", "entropy-bonus", "loss-only", "rare-rows", "small-groups"),
    *("saturated", "harder-later", "frozen-embedding", "not-by-spread"),
)
SICK = (
    *("rate-too-high", "rate-too-low", "stale-optimiser", "warmup-ignored", "one-owns-gradient", "component-sign"),
    *("component-detached", "short-answers", "too-little-data", "stale-workers", "flat-groups", "resume-old-weights"),
)
TWINS = {"resume-old-weights": "resumed", "stale-workers": "harder-later"}

Pay = Callable[[Tensor, Tensor], Tensor]


class Policy(nn.Module):
    """Symbols in, logits of the next symbol out; those of the last call are kept."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.symbols, self.memory = nn.Embedding(len(SYMBOLS), 24), nn.GRU(24, width, batch_first=True)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(SYMBOLS)))
        self.logits = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.logits = self.head(self.memory(self.symbols(x))[0])
        return self.logits

    @torch.no_grad()
    def answers(self, asked: Tensor, chance: torch.Generator | None = None) -> Tensor:
        """An answer to each question, drawn symbol by symbol, or the likeliest; blank after its end."""
        drawn, new, state = [], asked, None
        over = torch.zeros(len(asked), 1, dtype=torch.bool)
        for _ in range(LONGEST):
            out, state = self.memory(self.symbols(new), state)
            logits = self.head(out[:, -1])
            new = torch.multinomial(logits.softmax(-1), 1, generator=chance) if chance else logits.argmax(-1)[:, None]
            drawn.append(new.masked_fill(over, BLANK))
            over = over | (new == END)
        return torch.cat(drawn, 1)


@lru_cache(maxsize=1)
def lists() -> Batch:
    """Four digits each, in an order of chance, the same sorted, and how many different ones there are."""
    numbers = torch.randperm(10_000, generator=torch.Generator().manual_seed(2))[: TRAINING + VALIDATION]
    digits = torch.stack([numbers // 10**place % 10 for place in range(4)], 1)
    ordered = digits.sort(1).values
    asked = functional.pad(digits, (0, 1), value=EQUALS)
    answer = functional.pad(functional.pad(ordered, (0, 1), value=END), (0, LONGEST - 5), value=BLANK)
    return {"x": asked, "y": answer, "different": 1 + (ordered.diff(dim=1) > 0).sum(1)}


def spoken(model: nn.Module, asked: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of every symbol where an answer stands, [..., symbol]; which places count."""
    logits = model(torch.cat([asked, answer[:, :-1]], 1))[:, ASKED - 1 :]
    return logits.log_softmax(-1), answer != BLANK


def said(likely: Tensor, answer: Tensor) -> Tensor:
    """The log-probabilities of the symbols that were chosen."""
    return likely.gather(-1, answer[..., None])[..., 0]


@lru_cache(maxsize=8)
def supervised(seed: int, steps: int = 210) -> Policy:
    """The model that was shown examples for a while: where each training starts, and the reference."""
    torch.manual_seed(seed)
    model, data, chance = Policy(), lists(), torch.Generator().manual_seed(seed)
    adam = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for number in range(steps):
        adam.param_groups[0]["lr"] = 3e-3 * min(1.0, number / 30, 1.2 * (1.0 - number / steps))
        rows = torch.randint(TRAINING, (64,), generator=chance)
        likely, counts = spoken(model, data["x"][rows], data["y"][rows])
        adam.zero_grad()
        (-(said(likely, data["y"][rows]) * counts).sum() / counts.sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        adam.step()
    model.logits = torch.zeros(())
    return model


def paid(answer: Tensor, right: Tensor) -> Tensor:
    """The reward of each answer: 1 if it is right, something if digits stand where they should."""
    places = ((answer == right) & (right < END)).float().mean(1) * (LONGEST / 4)
    return PARTLY * places + (1.0 - PARTLY) * (answer == right).all(1).float()


@dataclass(kw_only=True)
class Trials(Parts):
    """A training whose batches are the policy's own answers."""

    reference: Policy
    questions: Callable[[int], Batch]
    groups: int = GROUPS
    group: int = GROUP
    reuse: int = 2  # steps that a draw of answers makes
    pay: Pay = paid
    by_spread: bool = True
    epsilon: float = 1e-4  # beside a group's spread
    held: Batch = field(default_factory=dict)
    noted: dict[str, float] = field(default_factory=dict)  # of the last step

    def tried(self, number: int) -> Batch:
        """The batch of a step; answers are drawn anew when all of the last ones were used."""
        if number % self.reuse == 0:
            self.held = self.drawn(number)
        return {name: values.chunk(self.reuse)[number % self.reuse] for name, values in self.held.items()}

    @torch.no_grad()
    def drawn(self, number: int) -> Batch:
        """Groups of answers to the next questions: what each was paid, and how likely it was."""
        chance = torch.Generator().manual_seed(50_000 * self.seed + number)
        asked = self.questions(number // self.reuse)
        batch = {name: values.repeat_interleave(self.group, 0) for name, values in asked.items()}
        assert isinstance(self.model, Policy)
        answer = self.model.answers(batch["x"], chance)
        reward = self.pay(answer, batch["y"]).view(-1, self.group)
        better = reward - reward.mean(1, keepdim=True)
        if self.by_spread:
            better = better / (reward.std(1, keepdim=True) + self.epsilon)
        before, reference = (
            said(spoken(model, batch["x"], answer)[0], answer) for model in (self.model, self.reference)
        )
        rewarded = {"answer": answer, "reward": reward.flatten(), "better": better.flatten()}
        return batch | rewarded | {"before": before, "reference": reference}


def losses(model: nn.Module, batch: Batch, noted: dict[str, float]) -> Components:
    """The clipped surrogate and the divergence from the reference, means over symbols; the entropy is noted."""
    likely, counts = spoken(model, batch["x"], batch["answer"])
    now, better, length = said(likely, batch["answer"]), batch["better"][:, None], counts.sum()
    ratio = (now - batch["before"]).exp()
    least = torch.minimum(ratio * better, ratio.clamp(1.0 - TRUST, 1.0 + TRUST) * better)
    apart = batch["reference"] - now
    noted["entropy"] = (-(likely.exp() * likely).sum(-1) * counts).sum().item() / length.item()
    return {"policy": -(least * counts).sum() / length, "kl": ((apart.exp() - apart - 1.0) * counts).sum() / length}


def rewarded(trials: Trials) -> Callable[[int, Batch], Channels]:
    """What is logged of the answers, at every fifth step or on every row if rows are rare."""

    def told(step: int, batch: Batch) -> Channels:
        if step % 5 != 1 and trials.every == 1:
            return {}
        reward = batch["reward"].view(-1, trials.group)
        return {
            "reward": reward.mean().item(),
            "reward_std": reward.std(1).mean().item(),
            "flat_groups": (reward.std(1) < 1e-6).float().mean().item(),
            "length": (batch["answer"] != BLANK).sum(1).float().mean().item(),
            **trials.noted,
        }

    return told


def measure(model: nn.Module) -> Channels:
    """How often the likeliest answer is right, and what it is paid."""
    assert isinstance(model, Policy)
    asked, right = (lists()[name][TRAINING:] for name in ("x", "y"))
    answer = model.answers(asked)
    return {"accuracy": (answer == right).all(1).float().mean().item(), "reward": paid(answer, right).mean().item()}


def draw(model: nn.Module) -> tuple[list[str], Channels]:
    """Answers to 24 questions; one is valid if it ends, and names four digits."""
    assert isinstance(model, Policy)
    answers = model.answers(lists()["x"][-24:], torch.Generator().manual_seed(3))
    texts = ["".join(SYMBOLS[code] for code in answer if code != BLANK) for answer in answers.tolist()]
    valid = sum(text.endswith(".") and text[:-1].isdigit() and len(text) == 5 for text in texts) / len(texts)
    return texts, facts.text_quality(texts, frozenset()) | {"validity": valid}


def asked(size: int, seed: int, most: int = 4) -> Callable[[int], Batch]:
    """Questions by number, of at most so many different digits."""
    known = lists()["different"][:TRAINING] <= most
    return shuffled({name: values[:TRAINING][known] for name, values in lists().items()}, size, seed)


def build(seed: int, variant: str) -> Trials:
    """The parts of a healthy variant."""
    reference = supervised(seed, 550 if variant == "saturated" else 210)
    model = copy.deepcopy(reference)
    trials = Trials(
        model=model,
        optimizer=torch.optim.AdamW([{"params": [*model.parameters()], "name": "policy"}], betas=(0.9, 0.98)),
        reference=reference,
        questions=asked(2 * GROUPS, seed),
        batches=lambda number: trials.tried(number),
        losses=lambda model, batch: losses(model, batch, trials.noted),
        steps=STEPS,
        seed=seed,
        max_norm=CLIP,
        weights=lambda applied: {"policy": 1.0, "kl": KL},  # noqa: ARG005
        at=lambda model: model.logits,
        evaluation=Evaluation(max(STEPS // 13, 1), measure),
        sampling=Sampling(13, draw),
        records=RECORDS,
        header={
            "config": {"groups": GROUPS, "group_size": GROUP, "kl": KL, "clip": CLIP},
            "components": {"policy": {"role": "task"}, "kl": {"unit": "nat", "role": "regulariser"}},
            "schedules": {},
            "gradient_at": "logits",
            "max_grad_norm": CLIP,
        },
    )
    trials.extras = [rewarded(trials)]
    planned(trials, PEAK)
    return VARIANTS[variant](trials) if variant in VARIANTS else trials


def changed(trials: Trials, **fields: Any) -> Trials:
    """The same training, of which parts know each other, with other fields."""
    for name, value in fields.items():
        setattr(trials, name, value)
    return trials


def planned(trials: Trials, peak: float) -> Trials:
    """The rate warms up and falls, and so the header says."""
    form = declared("linear", peak, 0.0, trials.steps, warmup=max(trials.steps // 10, 1))
    trials.optimizer.param_groups[0]["lr"] = peak
    trials.factor = lambda tick: (schedule_value(form, tick + 1) or 0.0) / peak
    trials.header["schedules"]["lr/policy"], trials.header["total_steps"] = form, trials.steps
    trials.header["config"] |= {"lr": peak}
    return trials


def weighed(trials: Trials, **weights: float) -> Trials:
    """These weights all along."""
    return changed(trials, weights=lambda applied: {"policy": 1.0, "kl": KL} | weights)  # noqa: ARG005


def entropy_bonus(trials: Trials) -> Trials:
    """The policy is paid a little for staying undecided: a component that is negative by nature."""
    plain = trials.losses

    def undecided(model: nn.Module, batch: Batch) -> Components:
        raw = plain(model, batch)
        likely, counts = model.logits[:, ASKED - 1 :].log_softmax(-1), batch["answer"] != BLANK  # type: ignore[index, union-attr, operator]
        return raw | {"entropy": ((likely.exp() * likely).sum(-1) * counts).sum() / counts.sum()}

    trials.header["components"]["entropy"] = {"unit": "nat", "role": "regulariser"}
    return weighed(changed(trials, losses=undecided), entropy=0.01)


def rare_rows(trials: Trials) -> Trials:
    """A run twice as long that logs every twentieth step."""
    return planned(changed(trials, every=20, steps=2 * STEPS, records=RECORDS - {"shares"}), PEAK)


def small_groups(trials: Trials) -> Trials:
    """Six questions a step, four answers each: the reward is mostly which six they are."""
    trials.header["config"] |= {"groups": 6, "group_size": 4}
    return planned(changed(trials, groups=6, group=4, questions=asked(12, trials.seed)), 7e-4)


def harder_later(trials: Trials) -> Trials:
    """Lists in which a digit repeats for two fifths of the run, then all: the reward falls back, as it is meant to."""
    change, early, late = 2 * STEPS // 5 // 2 * 2, asked(2 * GROUPS, trials.seed, 3), trials.questions
    stages = [
        {"start": start, "name": name, "weights": {"policy": 1.0, "kl": KL}, "data": {"different": [1, most]}}
        for start, name, most in ((0, "repeats", 3), (change, "all", 4))
    ]
    trials.header["curriculum"] = trials.header["curriculum_running"] = {"name": "repeats-first", "stages": stages}

    def seen(step: int, batch: Batch) -> Channels:
        different = batch["different"].float()
        limits = {
            f"data/different/{name}": round(getattr(different, name)().item(), 3) for name in ("min", "mean", "max")
        }
        return {"stage": int(step > change)} | limits

    trials.extras.append(seen)
    return changed(trials, questions=lambda draw: (early if 2 * draw < change else late)(draw))


def frozen_embedding(trials: Trials) -> Trials:
    """The embedding stays as the supervised model has it, as somebody decided."""
    assert isinstance(trials.model, Policy)
    trials.model.symbols.requires_grad_(False)
    moved = [parameter for parameter in trials.model.parameters() if parameter.requires_grad]
    trials.optimizer = torch.optim.AdamW([{"params": moved, "name": "policy"}], betas=(0.9, 0.98))
    return planned(trials, PEAK)


VARIANTS: dict[str, Callable[[Trials], Trials]] = {
    "resumed": lambda trials: changed(trials, resume=Resume(STEPS // 4 * 2)),
    "on-policy": lambda trials: changed(trials, reuse=1, questions=asked(GROUPS, trials.seed)),
    "no-penalty": lambda trials: weighed(trials, kl=0.0),
    "entropy-bonus": entropy_bonus,
    "loss-only": lambda trials: changed(trials, records=frozenset(), header={}, extras=[], sampling=None),
    "rare-rows": rare_rows,
    "small-groups": small_groups,
    "saturated": lambda trials: planned(trials, 2e-4),
    "harder-later": harder_later,
    "frozen-embedding": frozen_embedding,
    "not-by-spread": lambda trials: changed(trials, by_spread=False),
}


def own(mistake: Callable[[Trials], int]) -> mistakes.Mistake:
    """A mistake that is made in what only these trainings have."""

    def made(parts: Parts) -> int:
        assert isinstance(parts, Trials)
        return mistake(parts)

    return made


def one_owns_gradient(trials: Trials) -> int:
    """The weight of the penalty is 100, as in another paper, whose penalty was a mean over batches."""
    weighed(trials, kl=100.0)
    return 1


def short_answers(trials: Trials) -> int:
    """Against rambling each symbol costs two rewards: nothing pays as well as to say nothing."""
    trials.pay = lambda answer, right: paid(answer, right) - 2.0 * (answer != BLANK).sum(1)
    return 3


def too_little_data(trials: Trials) -> int:
    """The same few questions, again and again."""
    plain = trials.questions
    trials.questions = lambda draw: plain(0)  # noqa: ARG005
    return 3


def stale_workers(trials: Trials) -> int:
    """Who asks the questions has a copy of the first stage's settings."""
    trials.questions = asked(2 * GROUPS, trials.seed, 3)
    return 2 * STEPS // 5 // 2 * 2 + 1


def flat_groups(trials: Trials) -> int:
    """The spread of a group's rewards stands below the line alone; nothing can be drawn from what comes of that."""
    trials.epsilon, trials.fails = 0.0, True
    return mistakes.WHEN_BROKEN


OWN: dict[str, mistakes.Mistake] = {
    "rate-too-high": partial(mistakes.rate_too_high, by=25.0),
    "rate-too-low": partial(mistakes.rate_too_low, by=1e-5),
    "component-sign": partial(mistakes.component_sign, name="kl", weight=-0.5),
    "component-detached": partial(mistakes.component_detached, name="kl"),
    "one-owns-gradient": own(one_owns_gradient),
    "short-answers": own(short_answers),
    "too-little-data": own(too_little_data),
    "stale-workers": own(stale_workers),
    "flat-groups": own(flat_groups),
}


def train(path: Path, seed: int, case: str) -> int:
    """Train one case, write its run file; returns the first faulty step."""
    variant = case if case in HEALTHY else TWINS.get(case, "plain")
    return mistakes.perform(build(seed, variant), path, case, OWN)
