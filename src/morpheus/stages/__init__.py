"""Rooms 2 to 6, one file a word of the command line."""
