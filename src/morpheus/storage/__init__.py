"""Local folders and object stores, atomic writes, spilled data."""
