"""Metrics, traces and the state of the machine's clock."""
