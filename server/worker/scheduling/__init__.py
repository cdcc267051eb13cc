"""What an engine does next: plans in batches, background jobs between them, fair shares, predicted times."""
