"""Detection quality on labelled logs, compared with other detectors."""
