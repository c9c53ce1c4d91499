"""The telemetry format's own arithmetic."""

import math

from trainwatch.schema import CHANNELS, Finding, describe, matches


def test_channel_families():
    """A name belongs to one family at most, by its parts."""
    assert matches("loss/<component>", "loss/mass-2.0")
    assert not matches("loss/<component>", "loss/a/b")
    assert matches("grad_cosine/<a>~<b>", "grad_cosine/ce~mass")
    assert describe("data/length/min").pattern == "data/<name>/min"
    assert describe("made/up") is None
    assert all(describe(channel.pattern.replace("<", "").replace(">", "")) for channel in CHANNELS)


def test_a_finding_is_strict_json():
    """NaN has no number in JSON."""
    finding = Finding("r", "info", "run", 1, 2, "active", "m", evidence={"a": math.nan, "b": -math.inf, "c": 1.5})
    assert finding.to_dict()["evidence"] == {"a": "nan", "b": "-inf", "c": 1.5}
