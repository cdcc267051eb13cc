"""`presage demo`: a simulated robot reaches goals through the real service, and a report of how it went."""
