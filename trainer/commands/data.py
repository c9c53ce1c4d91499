"""`python -m trainer data build`: the shards of peptides and spectra, ahead of training."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from trainer import feed
from trainer.loading import load

if TYPE_CHECKING:
    from argparse import Namespace


def main(asked: Namespace) -> int:
    """All shards that the config's curricula and validation set draw from: build what is missing, check what is not."""
    config, _ = load(asked.config, asked.settings)
    lengths, bank = feed.needed_lengths(config), feed.shards(config)
    missing = bank.missing(lengths)
    for length in lengths:
        if length not in missing:
            bank.shard(length)
    began = time.monotonic()
    feed.build_shards(bank, missing, config.data.workers)
    seconds, spectra = time.monotonic() - began, len(missing) * bank.peptides
    kept = f"{len(lengths) - len(missing)} were there already"
    if missing:
        rate = f"{spectra:,} spectra in {seconds:.0f} s, {spectra / seconds:,.0f} a second"
        print(f"built {len(missing)} shards ({rate}), {kept}: {bank.path(lengths.start).parent}")
    else:
        print(f"nothing to build, all {kept}: {bank.path(lengths.start).parent}")
    return 0
