"""The transforms of the pipeline."""
