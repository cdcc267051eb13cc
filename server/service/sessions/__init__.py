"""Sessions: what an episode has seen, planned and pursues, and the table of those that are open."""
