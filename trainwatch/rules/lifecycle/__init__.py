"""Lifecycle: how a run begins and ends."""
