"""Values that the application takes and gives: one definition each, free of transports and of torch."""
