"""The pages: all runs, and one run."""
