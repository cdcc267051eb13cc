"""Simulated robots as gymnasium environments."""
