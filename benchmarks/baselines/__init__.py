"""What a user would run otherwise, written plainly: the published planning loops without any of this project's speed.

Kept to measure against, and to check the fast path with; nothing outside `benchmarks` and the tests imports it.
"""
