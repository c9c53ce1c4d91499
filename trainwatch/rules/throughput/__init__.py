"""Throughput: where the time and the memory go."""
