"""Robots as gymnasium environments, the episodes gathered with them, and the held-out pairs they are judged on.

Nothing here knows a model or a planner; the closed loop that joins them is the command line's.
"""
