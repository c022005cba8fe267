"""Flame graphs of the main jobs."""
