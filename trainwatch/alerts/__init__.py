"""Findings to somebody who is not looking: what is told, to whom, how often; and the request that a run stop."""
