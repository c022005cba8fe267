"""Compute figures, and write them to pages."""
