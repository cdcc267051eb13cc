"""Layers that networks are made of, and their fast versions for processors and accelerators."""
