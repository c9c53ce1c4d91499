"""Gradients: whether they arrive, how large they are, and what is done to them."""
