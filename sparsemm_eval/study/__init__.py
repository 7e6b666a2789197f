"""Studies: a grid of evaluations described in one file, run cell by cell, resumable."""
