"""What a comparison says in sentences: where runs part, how sure that is, and which setting is suspect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainwatch.compare import Apart, Comparison, first_of, is_seed
from trainwatch.parting import ENOUGH
from trainwatch.text import wording
from trainwatch.text.names import labels
from trainwatch.text.wording import clean

COLUMNS = 6  # runs that have a column and sentences each; of more, every table has a row each
SUSPECTS = 5  # that are named in the sentence; the tables below it have them all
NAMED = 3  # channels and findings that a sentence names


def verdict(said: Comparison) -> str:
    """Where runs part first and which setting is suspect, in one sentence."""
    names, found = labels(said), said.verdict
    first = first_of(said.partings)
    if first is None or found.run is None:
        return next(summary(said)) if len(names) == 2 else _none_parts(said, names[0])
    own = [item for item in said.partings if item.run == found.run and item.step is not None]
    loss = next((item.step for item in own if item.channel == "loss" and item.step != found.step), None)
    follows = f", and its loss from step {loss:,} on" if loss is not None else ""
    who = f"{names[found.run]} parts from {names[0]}"
    if len(names) > 2:
        some = f"{found.parted} of {len(names) - 1} runs part from {names[0]}, {names[found.run]} first"
        who = some if found.parted > 1 else f"Of {len(names) - 1} runs only {who}"
    where = f"{place(first)} in {_listed(found.channels)}"
    return f"{who}, at {where}{follows}; {_suspected(said, found.run)}."


def certainty(said: Comparison) -> Iterator[str]:
    """How sure the verdict is and what it rests on; and what was done otherwise than asked."""
    found = said.verdict
    parts = "that more than chance parts them" if found.kind == "parts" else "of it"
    sure = [f"{found.confidence:.0%} {parts}"] if found.confidence is not None else []
    sure += [f"{found.cause:.0%} of the suspect"] if found.cause is not None else []
    why = clean("; ".join(found.rests_on))
    yield f"Sure to {', '.join(sure)}. It rests on: {why}." if sure else f"{why[:1].upper()}{why[1:]}."
    for note in said.notes:
        yield f"Note: {clean(note)}."


def pairs(said: Comparison) -> Iterator[str]:
    """The sentences on each pair; none where there are too many to read, or the verdict is all there is to say."""
    names, lead = labels(said), verdict(said)
    for index in range(1, len(names) if len(names) <= COLUMNS else 0):
        told = [line for line in _pair(said, names, index) if line != lead]
        if told:
            yield " ".join(told)


def summary(said: Comparison) -> Iterator[str]:
    """What parted, when, and which setting is suspect: a few sentences for each run after the first."""
    names = labels(said)
    for index in range(1, len(names)):
        yield from _pair(said, names, index)


def parted_in(said: Comparison, channel: str) -> list[Apart]:
    """The partings that a figure of this channel shows: its own, and the first of all."""
    first = first_of(said.partings)
    own = {channel, channel.replace("loss/", "contribution/", 1)}
    return [item for item in said.partings if item.step is not None and (item.channel in own or item is first)]


def parts(item: Apart, names: Sequence[str]) -> str:
    """A parting in words; ``names`` are the runs' in the order of the comparison."""
    return f"{names[item.run]} parts from {names[0]} in {item.channel} at {place(item)}"


def place(item: Apart) -> str:
    """Where a channel parts: its step, and the place on the axis that runs are aligned by."""
    step = f"step {item.step or 0:,}"
    if item.axis == "step" or item.position is None:
        return step
    return f"{item.axis} {wording.number(round(item.position, 2))} ({step})"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(clean(name, 80) for name in names[:NAMED]) + more


def _suspected(said: Comparison, run: int) -> str:
    suspects = [item for item in said.suspects if item.run == run]
    if suspects:
        return f"suspect: {_listed([item.path for item in suspects])} ({clean(suspects[0].why)})"
    lacking = _unrecorded(said, run)
    if lacking:
        return f"the settings of {lacking} were not recorded"
    if any({0, run} <= set(group) for group in said.seeds):
        return "no setting is suspect: nothing but seed, names and folders was set differently"
    differing = sum(item.values[run] != item.values[0] for item in said.config)
    return (
        f"none of the {differing} settings that differ speaks of it"
        if differing
        else "no setting differs: see the code"
    )


def _unrecorded(said: Comparison, run: int) -> str:
    """Which of the first run and this one did not record its settings: their names, or nothing."""
    names = labels(said)
    return " and ".join(names[index] for index in (0, run) if not said.runs[index]["settings"])


def _none_parts(said: Comparison, base: str) -> str:
    losses = [item.pair for item in said.partings if item.channel == "loss"]
    if not losses:
        return f"No run has a step with a loss in common with {base}."
    if not any(pair.finite for pair in losses):
        return f"No run has a step with a finite loss in common with {base}."
    if not any(pair.differs for pair in losses):
        return f"The loss is the same number by number as in {base} wherever they have steps in common."
    few = sum(pair.too_few for pair in losses)
    tail = f"; {few} of them have too few steps in common with it to judge" if few else ""
    return f"No run parts from {base} beyond noise{tail}."


def _pair(said: Comparison, names: Sequence[str], index: int) -> Iterator[str]:
    """The sentences on a run and the first one."""
    ends = next((item.final for item in said.values if item.channel == "loss"), ())
    partings = [item for item in said.partings if item.run == index]
    loss = next((item for item in partings if item.channel == "loss"), None)
    last = [wording.number(ends[run]) if ends and ends[run] is not None else "nothing" for run in (0, index)]
    yield _loss_sentence(names[0], names[index], loss, last)
    parted = [item for item in partings if item.step is not None and item.channel != "loss"]
    first = first_of(parted)
    if first:
        beside = [item.channel for item in parted if item.position == first.position]
        yield f"The first to part: {', '.join(map(clean, beside))}, at {place(first)}."
    suspects = [item for item in said.suspects if item.run == index]
    if suspects:
        verb = "suspect is" if len(suspects) == 1 else "suspects are"
        more = f" and {len(suspects) - SUSPECTS} more" if len(suspects) > SUSPECTS else ""
        listed = ", ".join(clean(item.path, 80) for item in suspects[:SUSPECTS])
        yield f"The {verb} {listed}{more}: {clean(suspects[0].why)}."
    else:
        yield from _same_settings(said, index)
    yield from _only(said, names, index)


def _only(said: Comparison, names: Sequence[str], index: int) -> Iterator[str]:
    """What one of a pair has and the other has not."""
    for has, lacks in ((index, 0), (0, index)):
        alone = [
            f"{item.rule} since step {item.first_step[has]:,}"
            for item in said.findings
            if item.first_step[has] is not None and item.first_step[lacks] is None and lacks not in item.unjudged
        ]
        if alone:
            yield f"{names[has]} has, and {names[lacks]} has not: {_listed(alone)}."


def _same_settings(said: Comparison, index: int) -> Iterator[str]:
    """What can be said of two runs that differ in no setting, or in nothing but the seed."""
    lacking = _unrecorded(said, index)
    if lacking:
        yield f"The settings of {lacking} were not recorded, so none can be suspected."
    elif any({0, index} <= set(group) for group in said.seeds):
        differing = [item.path for item in said.config if item.values[index] != item.values[0]]
        if any(map(is_seed, differing)):
            yield "Nothing but the seed was set differently."
        else:
            yield f"Nothing was set differently{', names and folders aside' if differing else ''}."


def _loss_sentence(first: str, other: str, loss: Apart | None, last: Sequence[str]) -> str:
    both = f"{first} and {other}"
    if loss is None:
        return f"{both} have no step with a loss in common."
    pair = loss.pair
    same = f"the same number by number up to step {pair.same_until:,}" if pair.same_until is not None else ""
    if pair.parting is None:
        if not pair.finite:
            return f"{both}: the loss is finite in none of the {pair.rows:,} common steps."
        if pair.same_until is not None and not pair.differs:
            return f"{both}: the loss is the same number by number in all {pair.rows:,} common steps."
        tail = f", and {same}" if same else ""
        if pair.too_few:
            few = f"too few common steps to judge whether the loss parts ({pair.rows:,} of at least {ENOUGH})"
            return f"{both}: {few}; it ends at {last[0]} and at {last[1]}{tail}."
        return f"{both}: no parting of the loss beyond noise{tail} ({pair.rows:,} common steps)."
    how = "is not finite in one of them"
    if pair.parting.difference == pair.parting.difference:  # not NaN
        side = "higher" if pair.parting.difference > 0 else "lower"
        gap, noise = wording.number(abs(pair.parting.difference)), wording.number(pair.parting.noise)
        how = f"is {side} by {gap} in {other}, against a noise of {noise}"
    return f"{both}: the loss parts at {place(loss)} and {how}{f'; {same}' if same else ''}."
