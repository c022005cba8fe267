"""Speed, measured beside the rivals: `python benchmarks/speed`."""
