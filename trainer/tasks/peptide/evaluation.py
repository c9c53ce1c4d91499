"""How good the answers are. The metric is given what the model predicts, its EOS included, and never the true length.

Suffixes of tensors: B samples, S positions, T supervision steps, V tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainer.config import SHORTEST_PEPTIDE
from trainer.curriculum import Corruption
from trainer.horizon import Micro
from trainer.tasks.peptide.chemistry import EOS, PAD, RESIDUE_MASS, spell
from trainer.tasks.peptide.data import Batch, Shape, collate, draw
from trainer.tasks.peptide.grid import LENGTHS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from trainer.config import EvaluationConfig
    from trainer.tasks.peptide.bank import Peptides

CLEAN = Corruption(SHORTEST_PEPTIDE, 10)
"""What the easy half of the validation set is drawn from: the first stage of both curricula."""
VALIDATION_STREAM = 2**32
"""Added to the data's seed: the validation set shares no random number with any run."""
RESIDUE_TOLERANCE, PREFIX_TOLERANCE = 0.1, 0.5
"""Da: Casanovo's tolerances for one residue and for the masses before it. They make K and Q equal, and F and M[ox]."""
SHOWN = 8  # answers that a sample record holds


def validation_set(peptides: Peptides, config: EvaluationConfig, seed: int, shape: Shape) -> list[Batch]:
    """The fixed validation set: even samples clean, odd ones noisy; the same for every run, stage and curriculum."""
    shortest, longest = config.length
    noisy = Corruption(shortest, longest, config.noise_peaks, config.dropout, config.ppm_error)
    halves = (CLEAN, noisy)
    stream = VALIDATION_STREAM + seed
    spectra = [draw(peptides, "validation", halves[i % 2], stream, i, shape) for i in range(config.samples)]
    firsts = range(0, config.samples, config.batch_size)
    groups = [(first, spectra[first : first + config.batch_size]) for first in firsts]
    return [collate(group, shape, Micro(first, len(group), 0, 1.0, True)) for first, group in groups]


def ended(tokens_BS: NDArray[np.integer]) -> NDArray[np.integer]:
    """Answers with everything after their first EOS set to PAD."""
    past = np.cumsum(tokens_BS == EOS, axis=1) - (tokens_BS == EOS) > 0
    return np.where(past, PAD, tokens_BS)


def residues_of(answer_S: NDArray[np.integer]) -> NDArray[np.integer]:
    """The residues of one answer, from the N-terminus."""
    stop = np.flatnonzero(answer_S <= EOS)
    return answer_S[: stop[0] if stop.size else None][::-1]


def matched_residues(answer: NDArray[np.integer], truth: NDArray[np.integer]) -> int:
    """Residues that agree in mass, Casanovo's way: from the N-terminus, and past the first miss from the C-terminus."""
    found = np.zeros(max(len(answer), len(truth)), dtype=bool)
    for mine, true, agree in _paired(answer, truth):
        found[max(mine, true)] = agree
    if found.all():
        return len(found)
    stop = int(np.argmin(found))
    for mine, true, agree in _paired(answer[stop:][::-1], truth[stop:][::-1]):
        found[max(len(answer) - mine, len(truth) - true) - 1] = agree
    return min(int(found.sum()), len(answer), len(truth))


def _paired(answer: NDArray[np.integer], truth: NDArray[np.integer]) -> Iterator[tuple[int, int, bool]]:
    """Places at which both have come to the same mass, each with whether the residues there agree too.

    Both are walked at once; where their masses so far part, the lighter one goes on alone until it has caught up.
    """
    said, real = RESIDUE_MASS[answer], RESIDUE_MASS[truth]
    said_sum, real_sum = np.cumsum(said), np.cumsum(real)
    mine = true = 0
    while mine < len(said) and true < len(real):
        ahead = said_sum[mine] - real_sum[true]
        if abs(ahead) < PREFIX_TOLERANCE:
            yield mine, true, bool(abs(said[mine] - real[true]) < RESIDUE_TOLERANCE)
        mine, true = mine + int(ahead < PREFIX_TOLERANCE), true + int(ahead > -PREFIX_TOLERANCE)


def score(answer_BS: NDArray[np.integer], truth_BS: NDArray[np.integer]) -> dict[str, float]:
    """Metrics of answers against the truth, both int [B, S], spelled from the C-terminus with EOS and PAD.

    `token_accuracy`: of the true residues and EOS, the share predicted in its place. `sequence_accuracy`: answers
    equal to the truth, token by token. `aa_precision`, `aa_recall`, `peptide_precision`: by mass, Casanovo's matching.
    """
    pairs = [(residues_of(a), residues_of(t)) for a, t in zip(ended(answer_BS), truth_BS, strict=True)]
    matched = np.array([matched_residues(a, t) for a, t in pairs])
    said, true = (np.array([len(pair[side]) for pair in pairs]) for side in (0, 1))
    return accuracy(answer_BS, truth_BS) | {
        "aa_precision": float(matched.sum() / max(said.sum(), 1)),
        "aa_recall": float(matched.sum() / true.sum()),
        "peptide_precision": float(((matched == true) & (said == true)).mean()),
    }


def accuracy(answer_BS: NDArray[np.integer], truth_BS: NDArray[np.integer], suffix: str = "") -> dict[str, float]:
    """The two metrics of `score` that count tokens, the suffix added to their names; none where there is no answer."""
    if not len(truth_BS):
        return {}
    right_BS = ended(answer_BS) == truth_BS
    return {
        f"token_accuracy{suffix}": float(right_BS[truth_BS != PAD].mean()),
        f"sequence_accuracy{suffix}": float(right_BS.all(axis=1).mean()),
    }


def accuracy_by(answer_BS: NDArray[np.integer], truth_BS: NDArray[np.integer]) -> dict[str, float]:
    """`accuracy` by the true length, in the bins that have a peptide, and of the clean and the noisy half."""
    length_B, clean_B = (truth_BS > EOS).sum(axis=1), np.arange(len(truth_BS)) % 2 == 0
    groups = {f"_length_{low}_{high}": (length_B >= low) & (length_B <= high) for low, high in LENGTHS}
    groups |= {"_clean": clean_B, "_noisy": ~clean_B}
    parts = [accuracy(answer_BS[rows], truth_BS[rows], suffix) for suffix, rows in groups.items()]
    return {name: value for part in parts for name, value in part.items()}


def quality(answer_BS: NDArray[np.integer]) -> dict[str, float]:
    """What the answers look like by themselves: validity (they end, and are not empty), diversity, lengths.

    `longest_run` is the mean over answers of the longest stretch of one residue.
    """
    said = [residues_of(answer) for answer in ended(answer_BS)]
    lengths = np.array([len(answer) for answer in said])
    valid = (answer_BS == EOS).any(axis=1) & (lengths > 0)
    counts = np.bincount(np.concatenate(said), minlength=1) if lengths.sum() else np.ones(1)
    shares = counts[counts > 0] / counts.sum()
    return {
        "validity": float(valid.mean()),
        "diversity": len({answer.tobytes() for answer in said}) / len(said),
        "entropy": float(-(shares * np.log(shares)).sum()),
        "length_mean": float(lengths.mean()),
        "length_std": float(lengths.std()),
        "longest_run": float(np.mean([_longest_run(answer) for answer in said])),
    }


def _longest_run(answer: NDArray[np.integer]) -> int:
    """Longest stretch of one and the same residue."""
    edges = np.flatnonzero(np.diff(answer, prepend=-1, append=-1))
    return int(np.diff(edges).max(initial=0))


@torch.no_grad()
def evaluate(
    forward: Callable[[Batch], tuple[torch.Tensor, Mapping[str, torch.Tensor]]], batches: list[Batch]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Evaluate a model: `forward` gives logits [T, B, S, V] and named means of a batch, without label smoothing.

    -> values (metrics, accuracy by length and noise, token accuracy of each supervision step, those means) and a sample
    record (`outputs`, `quality`).
    """
    answers, means, weights = [], [], []
    for batch in batches:
        logits_TBSV, told = forward(batch)
        answers.append(logits_TBSV.argmax(-1).cpu().numpy())
        means.append({name: float(value) for name, value in told.items()})
        weights.append(len(batch.charge_B))
    answer_TBS = np.concatenate(answers, axis=1)
    truth_BS = np.concatenate([batch.tokens_BS.cpu().numpy() for batch in batches])
    values = score(answer_TBS[-1], truth_BS) | accuracy_by(answer_TBS[-1], truth_BS)
    for step, answer_BS in enumerate(answer_TBS, 1):
        values[f"token_accuracy_step_{step}"] = accuracy(answer_BS, truth_BS)["token_accuracy"]
    # what it is judged by comes first: a chart with room for a dozen curves shows the first dozen
    values |= {name: float(np.average([one[name] for one in means], weights=weights)) for name in means[0]}
    pairs = zip(answer_TBS[-1][:SHOWN], truth_BS, strict=False)
    shown = [f"{spell(residues_of(a))} for {spell(residues_of(t))}" for a, t in pairs]
    return values, {"outputs": shown, "quality": quality(answer_TBS[-1])}
