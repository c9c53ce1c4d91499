"""What the names in somebody else's log mean: losses, their components, validation, learning rate, norms, counters.

Nothing is known of a foreign log but its names and their company. :func:`recognise` reads one name by itself;
:class:`Naming` looks at all names of a log and gives each the channel that our own recorder would have written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal

Role = Literal["step", "epoch", "batch", "planned", "rate", "norm", "scale", "loss", "measure", "ignored"]

SPLITS = {
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "metrics": "validation",  # StyleGAN's folder of figures that only an evaluation gives
    "test": "test",
}
TRAIN = {"train", "training", "trn"}
FILLERS = {"avg", "average", "mean", "current", "running", "optim", "optimizer", "global", "num", "n", "end"}
AVERAGES = {"avg", "average", "mean"}
SUMMARIES = {"best", "lowest", "highest", "smoothed", "improved", "improve", "improving"}
"""What was best so far is no measurement of this step, nor is what it ``improved from``."""

STEPS = {
    *(("step",), ("steps",), ("iter",), ("iters",), ("iteration",), ("iterations",), ("it",)),
    *(("update",), ("updates",), ("timesteps",), ("total", "timesteps")),
}
STAGES = {("stage",), ("curriculum", "stage"), ("curriculum", "stage", "idx"), ("curriculum", "stage", "index")}
PHASES = {"fine", "tune", "tuning", "finetune", "finetuning", "pretrain", "pretraining"}
BATCHES = {("batch",), ("micro", "step"), ("minibatch",)}
PLANNED = {("total", "steps"), ("max", "steps"), ("total", "iters")}
NORMS = {("grad", "norm"), ("total", "grad", "norm"), ("gradient", "norm"), ("gnorm",), ("gradnorm",), ("norm",)}
RATE = re.compile(r"lr\d*")
SCALES = {("loss", "scale"), ("grad", "scale"), ("amp", "scale"), ("scaler", "scale"), ("scale",)}
ABOUT_LOSS = {"scale", "scaler", "scaling", "weight", "weights", "coef", "factor", "type", "fn", "function", "window"}
COEFFICIENTS = frozenset(["weight", "weights", "coef", "coeff", "coefficient", "lambda", "lam"])
"""Words for what a loss is multiplied by."""
TOTALS = {("loss",), ("total", "loss"), ("loss", "total"), ("losses",), ("objective",)}
LOSS = re.compile(r"loss|crossentropy|smoothl1|\wl[12]$|focal|hinge|huber|triplet|elbo")
FIGURES = {"cer", "wer", "acc", "accuracy"}
"""Figures of merit, also of a part that a loss is called after: ``cer_ctc``, ``acc_focal``."""
LOSSES = {"ce", "bce", "xent", "nll", "kl", "kld", "ctc", "conf", "penalty"}
"""Names that losses have without saying so, whole words of them."""
FIDELITY = {"psnr", "ssim"}
"""Good where they are high. Of an evaluation's ``ssim_loss`` the name does not say whether it was turned round."""

SHORT = {"pix", "percep", "style", "gan", "total", "real", "fake", "rec", "fea"}
"""What stands behind the ``l`` of BasicSR's losses: ``l_pix``, ``l_g_gan``."""

PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+")
WORD = re.compile(r"[A-Za-z0-9]+")
EFFORT = re.compile(r"(?i)time|elapsed|runtime|speed|throughput|per_second|samples?/s|wps|\beta\b|memory")
"""What an evaluation cost is no figure of its merit."""
UNFIT = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Reading:
    """One name by itself: its role, the split it says (``""`` for training), and what is left of it as a stem."""

    role: Role
    split: str
    stem: str
    total: bool = False


@dataclass(frozen=True)
class Place:
    """Where a value goes: ``split`` is empty for training, and the table then ``train``, else ``eval``."""

    split: str
    channel: str
    role: Role

    @property
    def told(self) -> str:
        """What the value becomes: a step is what the rows are counted by, and no channel."""
        return "step" if self.role == "step" else self.channel


_TOLD: dict[str, Place] = {}
"""Names whose place the user said (:func:`told`): they are not guessed."""


@contextmanager
def told(places: Mapping[str, Place]) -> Iterator[None]:
    """Within it, each of these names means what the user says, to whoever reads a log in this process."""
    before = dict(_TOLD)
    _TOLD.update(places)
    _forget()
    try:
        yield
    finally:
        _TOLD.clear()
        _TOLD.update(before)
        _forget()


def _forget() -> None:
    recognise.cache_clear()
    by_role.cache_clear()


@lru_cache(maxsize=4096)
def recognise(name: str) -> Reading:
    """What a name says without any company; what the user said of it comes first."""
    if place := _TOLD.get(name):
        return Reading(place.role, place.split, place.channel.removeprefix("loss/"), place.channel == "loss")
    words = WORD.findall(name)
    low = [word.lower() for word in words]
    split = next((SPLITS[word] for word in low if word in SPLITS), "")
    if split and TRAIN.intersection(low):
        split = "train"  # "train_eval/loss"
    if low[-2:-1] == ["loss"] and low[-1] == "epoch" and not split:
        split = "train"  # the mean of an epoch beside the loss of its steps
    said = [word for word in words if word.lower() not in SPLITS and word.lower() not in TRAIN]
    if low[-2:] == ["loss", "value"]:
        said.pop()
    parts = tuple(word for word in _parts(said) if word not in FILLERS)
    stem = "_".join(said) or "_".join(words) or "value"
    if SUMMARIES.intersection(low) or name.endswith(("__MIN", "__MAX")):
        return Reading("ignored", split, stem)
    role, total = _counter(name) or _role(parts, "".join(said).lower())
    if parts == ("obj",) and len(words) > len(said):
        role, total = "loss", True  # `train_obj` of DARTS, the objective; YOLO's `obj` is of one object
    return Reading(role, split, _stem(said) if role == "loss" else stem, total)


@lru_cache(maxsize=1024)
def by_role(names: tuple[str, ...]) -> dict[Role, list[str]]:
    """The names that stand together on a line, by their roles."""
    found: dict[Role, list[str]] = {}
    for name in names:
        found.setdefault(recognise(name).role, []).append(name)
    return found


def _parts(words: Iterable[str]) -> list[str]:
    return [part.lower() for word in words for part in PART.findall(word)]


def _counter(name: str) -> tuple[Role, bool] | None:
    """The role of a counter, which may stand in a folder: ``trainer/global_step``, ``time/total_timesteps``."""
    words = [word for word in WORD.findall(name.rpartition("/")[2]) if word.lower() not in TRAIN]
    spoken = [part for part in _parts(words) if part not in SPLITS]
    parts = tuple(part for part in spoken if part not in FILLERS)
    if parts in STEPS and AVERAGES.intersection(spoken):
        return "measure", False  # `step_avg:154.7ms` is what a step took
    if parts in STEPS and len(spoken) < len(_parts(words)):
        return "batch", False  # `val step` counts within an evaluation
    if parts in PLANNED:
        return "planned", False
    if parts in STEPS:
        return "step", False
    if parts in (("epoch",), ("epochs",)) or (parts[-1:] == ("epoch",) and _phased(name, parts[:-1])):
        return "epoch", False
    return ("batch", False) if parts in BATCHES else None


def _phased(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a counter is of a phase of the training: ``Fine-tune epoch``; ``finetune_epoch`` may be a setting."""
    return "_" not in name and PHASES.issuperset(parts)


def _role(parts: tuple[str, ...], squeezed: str) -> tuple[Role, bool]:
    """The role of a name without its split, and whether it is the total of the losses."""
    if any(RATE.fullmatch(part) for part in (*parts[:1], *parts[-1:])) or ("learning", "rate") in pairwise(parts):
        return "rate", False
    if parts in NORMS:
        return "norm", False
    if parts in SCALES:
        return "scale", False
    if any(a == "loss" and b in ABOUT_LOSS for a, b in pairwise(parts)):
        return "measure", False
    if parts[-1:] in (("ppl",), ("perplexity",)):
        return "measure", False
    if FIGURES.intersection(parts) and "loss" not in squeezed:
        return "measure", False
    if parts[:1] in (("lambda",), ("lam",)):
        return "measure", False  # `lambda_logvar_L1` weighs it
    without = tuple(part for part in parts if part not in ("step", "epoch"))
    if without in TOTALS:
        return "loss", True
    if LOSS.search(squeezed) or (parts[:1] == ("l",) and parts[-1] in SHORT):
        return ("measure" if COEFFICIENTS.intersection(parts[-1:]) else "loss"), False
    weighs = (COEFFICIENTS | {"beta"}).intersection(parts[:1] + parts[-1:])  # `kl_coef`, `beta_kl`
    return ("loss" if LOSSES.intersection(parts) and not weighs else "measure"), False


def _stem(words: list[str]) -> str:
    """A component's name: what is left without the word *loss*."""
    left = [word for word in words if word.lower() not in ("loss", "losses")]
    short = [re.sub(r"(?<=[a-z0-9])_?Loss$", "", word) for word in left]
    return "_".join(short) or "_".join(words)


@dataclass
class Naming:
    """The names of one log and their channels; a name keeps the channel that it was given first."""

    places: dict[tuple[str, str], Place] = field(default_factory=dict)
    _taken: set[tuple[str, str]] = field(default_factory=set)

    def learn(self, names: Iterable[tuple[str, str]]) -> None:
        """Names that are new, each with the split that its surroundings say (``""`` if none)."""
        new = [pair for pair in dict.fromkeys(names) if pair not in self.places]
        for split in sorted({_split(*pair) for pair in new}):  # training first: evaluations are named after it
            self._learn_split(split, [pair for pair in new if _split(*pair) == split])

    def _learn_split(self, split: str, new: list[tuple[str, str]]) -> None:
        for pair in new:
            if place := _TOLD.get(pair[0]):
                self._give(pair, split, place.channel)
        losses = [pair for pair in new if recognise(pair[0]).role == "loss" and pair[0] not in _TOLD]
        losses = [pair for pair in losses if not (split and _of_fidelity(pair[0]))]
        self._total(split, losses)
        for pair in new:
            if pair not in self.places:
                self._give(pair, split, _channel(recognise(pair[0]), pair[0], split))

    def _total(self, split: str, losses: list[tuple[str, str]]) -> None:
        """Which loss is the whole: the one that says so, else the only one there is."""
        if (split, "loss") in self._taken:
            return
        totals = sorted((pair for pair in losses if recognise(pair[0]).total), key=lambda pair: len(pair[0]))
        means = [pair for pair in totals if split and AVERAGES.intersection(_parts(WORD.findall(pair[0])))]
        if means:  # the mean is the evaluation; a total beside it is of single batches
            self.places |= {pair: Place(split, "loss", "ignored") for pair in totals if pair not in means}
            totals = means
        stems = {recognise(pair[0]).stem for pair in losses}
        part = any(("", f"loss/{clean(stem)}") in self._taken for stem in stems)
        alone = losses if len(stems) == 1 and not part else []
        for pair in (totals or alone)[:1]:
            self._give(pair, split, "loss")
        for pair in totals[1:] if not split else ():
            self._give(pair, "train", "loss")  # the mean of an epoch, or of an evaluation on training data

    def _give(self, pair: tuple[str, str], split: str, channel: str) -> None:
        shared = recognise(pair[0]).role in ("epoch", "rate", "norm", "scale")  # `Epoch` and `epoch` of one log
        if (split, channel) in self._taken and not shared:
            channel = f"{channel.partition('/')[0]}/{clean(pair[0])}"
            while (split, channel) in self._taken:
                channel += "_"
        self._taken.add((split, channel))
        self.places[pair] = Place(split, channel, recognise(pair[0]).role)

    def prove_components(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Names, with what their surroundings say, that were shown to be components of the total."""
        for pair in pairs:
            if pair[0] not in _TOLD and pair in self.places and self.places[pair].role == "measure":
                split = self.places[pair].split
                self._give(pair, split, f"loss/{clean(recognise(pair[0]).stem)}")
                self.places[pair] = replace(self.places[pair], role="loss")

    def prove_weights(self, weights: Mapping[str, str]) -> None:
        """Names that were shown to be weights, with the components that they weigh."""
        for name, component in weights.items():
            if name not in _TOLD and (name, "") in self.places:
                self.places[name, ""] = Place("", f"weight/{component}", "measure")

    def prove_lengths(self) -> None:
        """The names of steps were shown to be measures: an episode's length, and no step of the training."""
        for (name, said), place in self.places.items():
            if place.role == "step":
                self.places[name, said] = Place(place.split, f"logged/{clean(name)}", "measure")

    def explained(self) -> dict[str, str]:
        """The guess: for each name its channel, with the split before it where it is no training."""
        shown = [pair for pair, place in self.places.items() if place.role not in HIDDEN or pair[0] in _TOLD]
        places = {pair[0]: self.places[pair] for pair in shown}
        channels = {name: "step" if place.role == "step" else place.channel for name, place in places.items()}
        return {
            name: f"{place.split}:{channels[name]}" if place.split else channels[name] for name, place in places.items()
        }


HIDDEN = ("batch", "planned", "ignored")
"""Roles of names that become no channel."""


def _split(name: str, said: str) -> str:
    return (_TOLD[name].split if name in _TOLD else "") or said or recognise(name).split


def _channel(reading: Reading, name: str, split: str) -> str:
    if reading.role == "rate":
        words = [word for word in WORD.findall(reading.stem) if word.lower() not in ("learning", "rate")]
        group = "_".join(word for word in words if not RATE.fullmatch(word.lower()))
        return f"lr/{group or 'main'}"
    if reading.role == "loss" and split and _of_fidelity(name):
        return f"logged/{clean(name)}"
    if reading.role == "loss":
        return f"loss/{clean(reading.stem)}"
    fixed = {"norm": "grad_norm", "scale": "amp/scale", "epoch": "epoch"}
    if reading.role in fixed and (not split or reading.role == "epoch"):
        return fixed[reading.role]
    if not split and tuple(_parts([reading.stem])) in STAGES:
        return "stage"
    merit = split and not EFFORT.search(name)
    return f"metric/{clean(reading.stem)}" if merit else f"logged/{clean(name)}"


def _of_fidelity(name: str) -> bool:
    return not FIDELITY.isdisjoint(_parts(WORD.findall(name)))


def clean(name: str) -> str:
    """A name as one part of a channel's name may be."""
    return UNFIT.sub("_", name).strip("_") or "value"
