"""Slips of the pen: a name that differs from a known one as typing errors do, and not as other words do."""

from __future__ import annotations

from collections.abc import Iterable

from trainwatch.lint.names import words

WORDS = words(
    "batch patch match optics model modal mode nodes codes steps stops scale scalar sample sampler simple samples "
    "curricula momenta decoder encoder embedder trainer tracker loader logger lodger weights heights train trail "
    "valid value values state stage stages start stats gamma gemma epoch epochs clip flip crop drop noise losses "
    "token tokens vocab layer layers player lower power width depth input inputs output outputs shape share "
    "schedule scheduled scheduler schema scheme dataset database precision recision resume rescue cache catch "
    "tests texts tasks masks warmup format former forward reward rewards world words length lengths strength "
    "block blocks black clock labels levels level label target targets charge change range ranger angle single "
    "tracking training "
    "global local locals total tools group groups growth gradient gradients adapter adaptor adaptive eval evals"
)
"""Words of configs that are near one another and right: none of them is a slip."""
ENDINGS = words("e d r er ed or al es ing ion ings ions ive able ment ments ness y ies") | {""}
ENOUGH, LONG = 5, 9  # letters of a word from which one slip, and two, leave it recognisable


def distance(one: str, other: str) -> int:
    """Slips between two words: letters that are added, left out, replaced or swapped with their neighbour."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        older, before, row = before, row, [i]
        for j, b in enumerate(other, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b)))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                row[j] = min(row[j], older[j - 2] + 1)
    return row[-1]


def slip(word: str, known: str) -> bool:
    """Whether a word is another one with a slip in it; a plural, an ending or a British spelling is none."""
    if word == known or word in WORDS or len(known) < ENOUGH or len(word) < ENOUGH - 1:
        return False
    if word[:1] != known[:1] or any(letter.isdigit() for letter in word + known):
        return False
    if _without_s(word) == _without_s(known) or word.startswith(known) or known.startswith(word):
        return word.startswith(known) and len(word) == len(known) + 1 and word[-1] == known[-1] and word[-1] != "s"
    if any(_inflected(a, b) for a, b in ((word, known), (word.rstrip("s"), known.rstrip("s")))):
        return False
    return distance(word, known) <= (2 if len(known) >= LONG else 1)


def _inflected(one: str, other: str) -> bool:
    """Whether two words have one stem and different endings: pretrainer and pretrained."""
    alike = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return alike >= ENOUGH and one[alike:] in ENDINGS and other[alike:] in ENDINGS


def _without_s(word: str) -> str:
    return word.replace("z", "s").replace("our", "or").replace("lling", "ling").replace("lled", "led").rstrip("s")


def misspelt(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` is with a slip in one of its words."""
    parts = name.lower().replace("-", "_").split("_")
    found = []
    for other in known:
        theirs = other.lower().split("_")
        if len(theirs) != len(parts):
            continue
        apart = [(a, b) for a, b in zip(parts, theirs, strict=True) if a != b]
        if len(apart) == 1 and slip(*apart[0]):
            found.append((distance(*apart[0]), other))
    return min(found)[1] if found else None
