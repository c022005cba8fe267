"""Streams under faults, checked by an oracle that is never killed: `python benchmarks/soak`."""
