"""Clips to frames: what a file says of itself, its frames, and decoding in processes of its own."""
