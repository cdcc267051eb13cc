"""The application: planning, prediction, embedding, sessions and goals. Free of transports and of torch."""
