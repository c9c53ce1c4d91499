"""See the rule's docstring: it is the page that `trainwatch rules codebook-collapse` prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from trainwatch.rule import Findings, Rule
from trainwatch.run import Run
from trainwatch.schedule import MOST
from trainwatch.schema import Finding
from trainwatch.stats import Bools, Floats, History, fall
from trainwatch.table import Chunk

COMMITMENT = re.compile(r"loss/(.*[_.-])?(vq|commit\w*|codebook\w*|quanti[sz]\w*)([_.-].*)?")
USAGE = re.compile(
    r"codebook/.*|(.*[/_.-])?(codes?|codebook|vq)[/_.-]?(used|usage|active|alive|perplexity)"
    r"|(.*[/_.-])?(used|active|alive)[/_.-]?codes?"
)
"""Names under which the use of a codebook is logged."""


@dataclass
class CodebookCollapse(Rule):
    """A vector-quantised model uses next to none of its codes.

    What it sees:
        `codebook/perplexity` (the effective number of codes in use) below two, or below a tenth of its own best, or
        `codebook/used` (a share) below a tenth, for the last third of the run, while the other losses stand still. A
        channel like `codes_used` is a number of codes. A log of fewer than 60 rows is judged by less than two codes
        alone, from 60 steps on. Without such channels: a commitment or codebook loss that fell to a thousandth of its
        first values while the others never came down. Few codes while the others still improve are an info.

    Why it matters:
        All inputs become the same few codes: the bottleneck carries nothing, and the decoder learns the mean.

    What to do:
        Record the usage of each batch, where it is not yet: `watch.log({"codebook/perplexity": p, "codebook/used":
        u})`, p being exp(entropy of the codes' shares) and u the share of the codes that were chosen. Reset dead codes
        to encoder outputs, use moving-average updates or a smaller code dimension with normalised codes, raise the
        commitment weight, start from k-means.

    When it is wrong:
        Codebooks of a handful of codes have a low perplexity by nature.

    References:
        van den Oord et al., VQ-VAE (2017); Dhariwal et al., Jukebox (2020), random restarts; Huh et al. (2023).
    """

    block: ClassVar[int] = 20
    needs: ClassVar[tuple[str, ...]] = ("codebook/<name>|loss/<component>",)
    wants: ClassVar[tuple[str, ...]] = ("codebook/<name>", "loss/<component>")
    causes: ClassVar[tuple[str, ...]] = ("loss-plateau", "loss-stuck", "mode-collapse")

    codes: float = 2.0  # effective codes: one and a bit carries no information
    lost: float = 0.1  # of its best perplexity: nine of ten codes that were in use are lost
    used: float = 0.1  # of the codes: nine of ten are never chosen
    floor: float = 1e-3  # of the first commitment loss: code and output are the same constant
    learned: float = 0.05  # of the other losses: a bottleneck that carries anything brings them down by more
    fewest: int = 60  # rows: usage is low in the first steps of any run; or as many steps, of which there are
    few: int = 20  # rows, where less than two codes are used: a share of a large codebook needs more to be believed

    _history: History = field(default_factory=History, init=False)
    _rows: int = field(default=0, init=False)
    _begun: bool = field(default=False, init=False)  # there was a sign of a codebook

    def update(self, chunk: Chunk) -> Findings:
        """Usage and losses at bounded resolution."""
        columns, begun = self._columns(chunk)
        self._history.push(columns)
        self._rows, self._begun = self._rows + len(chunk), bool(begun[-1])
        return ()

    def finish(self, run: Run, rest: Chunk) -> Iterator[Finding]:
        """Whether the codebook is lost as the run stands."""
        columns, _ = self._columns(rest)
        rows = self._rows + len(rest)
        if rows < self.few or max(rows, run.last_step or 0) < self.fewest or len(columns) < 2:
            return
        series = self._history.series(columns)
        whole = Chunk("train", rest.rows, rest.start - self._rows, rest.stop)
        for name, why in (self._empty(series) or (self._sick(series) if rows >= self.fewest else {})).items():
            values = series[name][np.isfinite(series[name])]
            others = [key for key in series if key.startswith("loss") and not COMMITMENT.fullmatch(key)]
            late = {key: series[key][-2 * len(series[key]) // 3 :] for key in others}
            moves = [key for key in others if fall(late[key]) > 0 and np.median(np.abs(late[key])) > 0]
            if name.startswith("loss/") and (moves or any(fall(series[key]) > self.learned for key in others)):
                continue
            now = float(np.median(values[-max(3, len(values) // 10) :]))
            yield self.finding(
                "info" if moves or not others else "warning",
                f"component:{name.removeprefix('loss/')}" if name.startswith("loss/") else "run",
                (_onset(whole, name, now), int(whole.step[-1])),
                f"{name} {why} ({now:.3g}){'' if moves else ' and no other loss comes down'}: next to no code is used.",
                evidence={"now": now, "best": float(values.max())},
                advice="Reset dead codes, use moving-average updates, or raise the commitment weight.",
                confidence=0.5 if name.startswith("loss/") else 0.85,
            )

    def _columns(self, chunk: Chunk) -> tuple[dict[str, Floats], Bools]:
        """Steps; usage and all losses from the row on in which there is a sign of a codebook, and which rows those are.

        No other model's losses are kept.
        """
        names = [name for name in chunk.channels if name.startswith("loss/") or USAGE.fullmatch(name)][:MOST]
        signs = [chunk[name] for name in names if USAGE.fullmatch(name) or COMMITMENT.fullmatch(name)]
        columns, begun = {"step": chunk.step.astype(np.float64)}, np.full(len(chunk), self._begun)
        if signs:
            begun |= np.logical_or.accumulate(np.isfinite(signs).any(axis=0))
            columns |= {name: np.where(begun, chunk[name], np.nan) for name in names}
        return columns, begun

    def _empty(self, series: dict[str, Floats]) -> dict[str, str]:
        """The channel that counts less than two codes, however few rows there are."""
        for name, values, late in _usage(series):
            if _counts(name, values) and (late < self.codes).mean() > 0.9:
                return {name: "stands below two codes"}
        return {}

    def _sick(self, series: dict[str, Floats]) -> dict[str, str]:
        """The channel that shows a loss or a lack of codes, and how."""
        for name, values, late in _usage(series):
            if _counts(name, values) and (late < self.lost * values.max()).mean() > 0.9:
                return {name: f"fell from {values.max():.3g} and stays there"}
            if "used" in name and not _counts(name, values) and (late < self.used).mean() > 0.9:
                return {name: "stays below a tenth of the codes"}
        measured = any(USAGE.fullmatch(name) for name in series)
        for name, all_values in series.items() if not measured else ():
            values = all_values[np.isfinite(all_values)]
            first = np.median(values[:3]) if len(values) > 6 else 0.0
            if COMMITMENT.fullmatch(name) and first > 0 and np.median(values[-len(values) // 3 :]) < self.floor * first:
                return {name: "is at its floor"}
        return {}


def _usage(series: dict[str, Floats]) -> Iterator[tuple[str, Floats, Floats]]:
    """Name, values and last third of each channel of usage that has six values."""
    for name in filter(USAGE.fullmatch, series):
        values = series[name][np.isfinite(series[name])]
        if len(values) >= 6:
            yield name, values, values[-max(3, len(values) // 3) :]


def _counts(name: str, values: Floats) -> bool:
    """Whether it is a number of codes, and no share, as which a part of one code betrays itself."""
    return ("perplexity" in name or "codes" in name) and not ((values > 0) & (values < 0.99)).any()


def _onset(chunk: Chunk, name: str, now: float) -> int:
    """The first step of the last stretch in which the value stays near where it is."""
    values = chunk[name]
    known = np.flatnonzero(np.isfinite(values))
    away = known[values[known] > 2 * max(now, 1e-30)]
    later = known[known > away[-1]] if len(away) else known
    return int(chunk.step[later[0] if len(later) else known[-1]])
