"""Numerics: values that are no numbers."""
