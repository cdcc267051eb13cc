"""Readers of recordings: one file for each format, and which one reads a path."""
