"""Copies of what rules remember."""

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from trainwatch.copying import copied
from trainwatch.header import Header


@dataclass
class Spike:
    step: int


@dataclass
class State:
    rows: np.ndarray = field(default_factory=lambda: np.arange(3.0))
    first: Spike | None = None
    last: Spike | None = None
    said: dict[str, list[tuple[Spike, ...]]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)


def test_what_can_change_is_copied():
    state = State(first=Spike(1), said={"a": [(Spike(2),)]}, seen={3})
    copy = copied(state)
    copy.rows[0], copy.first.step, copy.said["a"][0][0].step = 7.0, 8, 9
    copy.said["b"] = []
    copy.seen.add(4)
    assert (state.rows[0], state.first, state.said, state.seen) == (0.0, Spike(1), {"a": [(Spike(2),)]}, {3})


def test_what_two_fields_share_is_shared_in_the_copy():
    spike = Spike(1)
    copy = copied(State(first=spike, last=spike))
    assert copy.first is copy.last
    assert copy.first is not spike


def test_a_kind_that_is_seldom_is_copied_too():
    counts = {"a": Counter("aab"), "b": deque([[1]], maxlen=3)}
    copy = copied(counts)
    assert copy == counts
    copy["a"]["b"] += 1
    copy["b"][0].append(2)
    assert counts == {"a": Counter("aab"), "b": deque([[1]])}


def test_what_is_frozen_is_its_own_copy():
    header = Header()
    assert copied(header) is header
