"""Sources: read bytes, and give batches of events, one user at a time."""
