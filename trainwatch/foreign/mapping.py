"""What the user says that names in a log mean, where the guess is wrong: ``--map val=dev_loss``.

On the left stands what ``--explain-channels`` shows on the right of its arrows, or a short form of it: a channel, a
split before it where it is of an evaluation (``validation:loss/kl``), a split alone for its loss, ``lr`` for the
learning rate, a counter, or ``none`` for what shall be left out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from trainwatch.foreign.channels import SPLITS, Place, Role, clean
from trainwatch.schema import describe

COUNTERS: dict[str, Role] = {"step": "step", "epoch": "epoch", "batch": "batch", "total_steps": "planned"}
ROLES: dict[str, Role] = {"loss": "loss", "lr": "rate", "grad_norm": "norm", "amp/scale": "scale", **COUNTERS}
"""What a channel, or the part before its slash, says of its role; every other one is a measure."""
KNOWN = ("val", "test", "loss", "loss/<component>", "lr", "grad_norm", "metric/<name>", "none", *COUNTERS)
FREE = ("logged", "metric", "loss")  # families with names of the user's own


class MappingError(Exception):
    """What a name shall be taken for is no channel, or no log has such a name; the text is one sentence."""


def places(assignments: Iterable[str]) -> dict[str, Place]:
    """For each name its place, from ``channel=name``. Raises MappingError."""
    found = {}
    for assignment in assignments:
        channel, sign, name = assignment.partition("=")
        if not (sign and channel.strip() and name.strip()):
            raise MappingError(f"--map {assignment!r} has the wrong form; write channel=name, as in val=dev_loss.")
        found[name.strip()] = _place(channel.strip())
    return found


def _place(said: str) -> Place:
    if said == "none":
        return Place("", "none", "ignored")
    split, _, channel = said.rpartition(":")
    if channel in SPLITS and not split:
        split, channel = channel, "loss"
    channel = "lr/main" if channel == "lr" else channel
    family, _, own = channel.partition("/")
    if (own and family in FREE and own == clean(own)) or channel in COUNTERS or describe(channel):
        return Place(SPLITS.get(split, split), channel, ROLES.get(channel) or ROLES.get(family, "measure"))
    raise MappingError(f"--map {said}: there is no such channel{nearest(said, KNOWN)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'dev_loss'?``, or what there is, where no name is near."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are {', '.join(known[:12])}{' and others' * (len(known) > 12)}." if known else "."


def require(names: Iterable[str], known: Iterable[str]) -> None:
    """Raises MappingError if a mapped name stands in none of the logs, whose names are ``known``."""
    known = list(dict.fromkeys(known))
    for name in names:
        if name not in known:
            raise MappingError(f"--map: no log that was read has a name {name!r}{nearest(name, known)}")
