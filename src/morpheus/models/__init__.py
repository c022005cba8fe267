"""Workshop of rooms 2 and 4: the network, its training, what it learnt, and its files."""
