"""Speed, compared with other detectors: `python benchmarks/speed`."""
