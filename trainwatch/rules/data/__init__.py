"""Data: what the batches hold, and whether they come twice."""
