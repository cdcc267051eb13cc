"""The flight recorder: plans kept in MCAP files of bounded size."""
