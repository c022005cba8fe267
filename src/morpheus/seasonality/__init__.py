"""Time-series anomalies: counts per time bin and their periodic pattern."""
