"""Workloads: data, model, losses and evaluation of one task each."""
