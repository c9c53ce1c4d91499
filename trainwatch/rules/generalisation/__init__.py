"""Generalisation: training against evaluation."""
