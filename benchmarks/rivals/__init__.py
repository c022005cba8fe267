"""Other detectors for comparison, in a separate environment."""
