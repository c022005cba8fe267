"""Scaling: one machine compared with clusters, and estimates for larger clusters."""
