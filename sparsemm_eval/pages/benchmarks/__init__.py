"""Small local data sets in the schemas of the seven benchmarks."""
