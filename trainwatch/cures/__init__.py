"""What cures a finding, as settings of the run's own config: a path that is there, and the value to write instead.

A cure is derived from what was measured (weights from shares of the gradient, a rate from the update's ratio) or from
what the program says of itself (its defaults). Where neither tells one setting apart from all others there is no cure:
a guess would be tried on somebody's GPU hours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainwatch.cures.balance import balanced, positive, too_loud, too_quiet
from trainwatch.cures.calm import calmer, full_range, no_growth, norm_limit
from trainwatch.cures.curriculum import longer_ramp, loud_late, phased
from trainwatch.cures.defaults import defaults, ending, guard, miscounted, named, of_component
from trainwatch.cures.rates import rate_down, rate_up, whole_length
from trainwatch.cures.setting import Cure, Setting, Settings
from trainwatch.header import flat
from trainwatch.run import Run
from trainwatch.schema import Finding


def cure(finding: Finding, run: Run) -> tuple[Setting, ...]:
    """The settings that would cure a finding; empty where none is known.

    What the rule itself prescribes comes first. A default that the program declares for the same setting is better than
    a number that was derived, where that default leaves the length to a ratio.
    """
    own = [Setting(path, _ratio_instead(path, value, run), "") for path, value in finding.patch.items()]
    found = own or list(CURES.get(finding.rule, _none)(finding, run))
    config = dict(flat(run.header.config))
    return tuple(item for item in found if item.path not in config or config[item.path] != item.value)


def _none(_finding: Finding, _run: Run) -> Settings:
    return ()


def _ratio_instead(path: str, value: Any, run: Run) -> Any:
    """0 instead of a number of steps, where that is the default and a ratio stands beside it."""
    parent = path.rpartition(".")[0]
    beside = {name.rpartition(".")[2] for name, _ in flat(run.header.config) if name.rpartition(".")[0] == parent}
    default = defaults(run).get(path)
    return default if default == 0 and {"ratio", "share", "fraction"} & beside else value


CURES: Mapping[str, Cure] = {
    "aggressive-ramp": longer_ramp,
    "all-at-once": phased,
    "amp-scale-collapse": full_range,
    "class-imbalance": balanced,
    "clipping-saturated": norm_limit,
    "component-dead": of_component,
    "component-ignored": too_quiet,
    "component-sign": positive,
    "curriculum-shock": longer_ramp,
    "gradient-dominance": too_loud,
    "gradient-explosion": calmer,
    "late-activation": loud_late,
    "length-collapse": ending,
    "loss-divergence": calmer,
    "loss-scale-imbalance": too_loud,
    "lr-desync": miscounted,
    "lr-too-high": rate_down,
    "lr-too-low": rate_up,
    "lr-zero": whole_length,
    "non-finite-gradient": calmer,
    "non-finite-input": guard,
    "non-finite-loss": calmer,
    "overflow-risk": full_range,
    "post-clip-norm": named,
    "precision-mismatch": named,
    "resume-discontinuity": named,
    "schedule-desync": miscounted,
    "stale-data": named,
    "warmup-ignored": named,
    "weight-growth": no_growth,
}
SYMPTOMS = frozenset(
    [
        "clipping-saturated",
        "gradient-explosion",
        "length-collapse",
        "loss-divergence",
        "non-finite-gradient",
        "non-finite-loss",
    ]
)
"""Rules whose cure treats what is seen, whatever it comes from."""
PACE = frozenset(["gradient-explosion", "loss-divergence", "lr-too-high", "lr-too-low"])
"""Rules whose cure is another rate, first of all."""
