"""Data sets of rendered pages: those of the page tasks, and stand-ins for the seven benchmarks."""
