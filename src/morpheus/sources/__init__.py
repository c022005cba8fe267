"""Room 1: bytes -> Events."""
