"""Workshop of room 3: the only place where a value becomes a number."""
