"""Measurements with a command each; results, with machine and versions, go to `benchmarks/results/`."""
