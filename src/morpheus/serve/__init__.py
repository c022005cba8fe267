"""The report's page, live: what a run writes into a folder, shown while it grows."""
