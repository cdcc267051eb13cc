"""`presage data`: collecting, opening and inspecting episodes."""
