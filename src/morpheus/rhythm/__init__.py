"""Workshop of room 6: arrays only."""
