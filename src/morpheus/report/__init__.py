"""Workshop of the report: arrays and frames in, one page out."""
