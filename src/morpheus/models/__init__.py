"""Models: training, scoring, calibration, attribution and the store. They work on arrays."""
