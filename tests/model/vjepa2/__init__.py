"""Tests of the V-JEPA 2 family."""
