"""`presage train`: its configuration, its data, and a trainer for each family."""
