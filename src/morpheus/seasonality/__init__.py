"""Seasonality: counts of events per time bin, and anomalies in their periodic pattern."""
