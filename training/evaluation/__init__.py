"""Closed-loop evaluation, diagnostics of a model, and the statistics of both."""
