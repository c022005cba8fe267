"""Suppressions: rules that people have written, by which alerts are held back for a while."""
