"""Planning benchmarks: speed and quality against plain loops and against the machine's matrix rate.

`python -m benchmarks.planning [--quick] [--json FILE] [--out FOLDER]`. Both sides of every comparison run in turns, in
one process, and their medians are compared. Weights that are not at hand are random: they cost the same time.
"""
