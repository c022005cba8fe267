"""Streams under load: `python benchmarks/stream`."""
