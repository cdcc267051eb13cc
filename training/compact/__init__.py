"""End-to-end training of the compact family."""
