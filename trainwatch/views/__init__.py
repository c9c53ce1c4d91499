"""What several rules look at: a run's components, curve, evaluations, schedules, outputs and ranks, each taken once."""
