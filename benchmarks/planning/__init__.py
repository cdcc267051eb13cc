"""How fast plans are, and how good in that time: against plain loops, against the machine's own matrix rate.

`python -m benchmarks.planning [--quick] [--json FILE] [--out FOLDER]`. Both sides of every comparison run in turns, in
one process, and their medians are compared. Weights that are not at hand are random: they cost the same time.
"""
