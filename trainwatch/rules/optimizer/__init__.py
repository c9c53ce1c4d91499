"""Optimizer: what the steps do to the weights."""
