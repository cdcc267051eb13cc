"""Attacks on a running service, each a function; `python -m benchmarks.attack` runs them."""
