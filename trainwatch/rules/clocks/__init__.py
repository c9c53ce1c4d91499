"""Clocks: the counters and schedules that a run is driven by."""
