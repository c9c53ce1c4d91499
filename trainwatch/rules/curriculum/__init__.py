"""Curriculum: the plan that was declared against the one that runs."""
