"""W&B: a run for each cell of a study, a run that compares them, and the dashboard."""
