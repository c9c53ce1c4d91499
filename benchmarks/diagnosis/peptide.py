"""The program "peptide": the trainer's own faults, as `benchmarks/faults.py` trained and kept them; nothing is trained.

Its runs are de-novo sequencing on MS2PIP spectra at size tiny: a curriculum, three components, bf16 or fp16.
"""

from __future__ import annotations

import lzma
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.diagnosis.corpus import Case, Record
from benchmarks.diagnosis.kinds import KINDS

HERE = Path(__file__).parents[1]
KIND_OF = {
    "raw-ppm": "loud-entry",
    "clamp-ppm": "clamped-component",
    "stale-stages": "stale-workers",
    "local-counter": "local-counter",
    "absolute-anneal": "absolute-anneal",
    "norm-after-clipping": "norm-after-clip",
    "scale-collapse": "loud-in-half",
    "half-precision-masses": "coarse-precision",
    "component-scale": "loud-entry",
    "mass-after-end": "endless-mass",
    "wrong-curriculum": "wrong-curriculum",
    "warmup-ignored": "warmup-ignored",
    "poisoned-batch": "bad-sample",
    "weights-only-resume": "resume-weights-only",
    "batches-counted": "schedules-by-batches",
}
"""The trainer's faults, by the corpus's kinds."""

UNSEEN = ("narrow-sigma", "first-residue-dropped")
"""No sickness shows in 160 steps: they end no worse than their healthy twins of all seeds, with the same shares."""

IN_THE_HEADER = ("wrong-curriculum",)
"""Wrong before the first step, though the first steps go as they would have."""


def records() -> Iterator[Record]:
    """All of them, sick and healthy."""
    for path in sorted((HERE / "faults").glob("*.jsonl.xz")):
        name, _, seed = path.name.removesuffix(".jsonl.xz").rpartition("-")
        if name in UNSEEN:
            continue
        kind = KINDS[KIND_OF[name]] if name in KIND_OF else None
        case = Case("peptide", name, int(seed), kind is None)
        onset = 0 if kind is None or name in IN_THE_HEADER else begins(name)
        yield Record(case, False, onset, {"": lzma.decompress(path.read_bytes())}, kind)


def begins(name: str) -> int:
    """The first step that goes otherwise, as the trainer itself knows it."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))  # the benchmarks of the trainer import each other by their bare names
    import faults

    from trainer.faults import FAULTS

    pair = faults.pair(FAULTS[name], (), 1)
    return FAULTS[name].begins(pair.config, pair.resumed)
